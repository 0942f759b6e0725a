"""What 26B-A4B must reach on one H200: floors, targets and other implementations' figures, as data. No I/O.

Random weights, bfloat16, one GPU, prompts of 1024 tokens, 256 out, exact. `floor`: bytes that must move at 4.3 TB/s
(measured) or arithmetic at 790 TFLOP/s. `upstream`: release 0.5.17 with PR #26588's changes in it, measured on such a
card with the same weights and workload, the better of two runs. `published`: that pull request's own table.
"""

from dataclasses import dataclass
from typing import Any

MODEL = "benchmark/gemma4/configs/26b-a4b"
DETERMINISTIC = "--enable-deterministic-inference"


@dataclass(frozen=True)
class Target:
    workload: str
    figure: str
    match: dict[str, Any]  # of a record's workload
    field: str  # of its result
    upstream: float | None = None
    published: float | None = None
    floor: float | None = None
    target: float | None = None  # the first one
    target_text: str = ""  # where a number does not say it
    batch_size: int | None = None  # of a static batch
    scale: float = 1.0
    more_is_better: bool = False
    deterministic: bool = False

    def read(self, record: dict) -> float | None:
        """The figure in a study's record, None if it is a record of something else, or of several ranks."""
        flags = record["set"]["flags"] + record["server_flags"]
        is_plain = not record["set"]["env"] and not set(record["set"]["flags"]) - {DETERMINISTIC}
        if MODEL not in flags or "--tp-size" in flags or not is_plain or (DETERMINISTIC in flags) != self.deterministic:
            return None
        if any(record["workload"].get(name) != value for name, value in self.match.items()):
            return None
        result = record["result"]
        if self.batch_size is not None:
            result = next((row for row in result["batches"] if row["batch_size"] == self.batch_size), {})
        value = result.get(self.field)
        return None if value is None else value * self.scale

    def times_floor(self, value: float) -> float:
        """How far from the floor; 1 is as good as the hardware allows."""
        return self.floor / value if self.more_is_better else value / self.floor


_EXACT = {"kind": "serving", "input_len": 1024, "output_len": 256}
_ALONE = _EXACT | {"request_rate": None, "max_concurrency": 1}
_RATE = _EXACT | {"request_rate": 8.0, "max_concurrency": 64, "num_prompts": 80}
_FULL = _EXACT | {"request_rate": None, "max_concurrency": 64, "num_prompts": 192}
_BATCH = {"kind": "one_batch", "input_len": 1024}
_RATE_NAME = "8 a second, 64 at once"
_TTFT, _TPOT, _E2E = "median_ttft_ms", "median_tpot_ms", "median_e2e_latency_ms"


def _decode(size: int, upstream: float, floor: float, target: float) -> Target:
    row = {"batch_size": size, "scale": 1e3, "upstream": upstream, "floor": floor, "target": target}
    return Target(f"static batch of {size}", "decode step ms", _BATCH, "median_decode_latency", **row)


TARGETS = [
    Target("one at a time", "median TPOT ms", _ALONE, _TPOT, 4.81, None, 1.83, 2.7, "2.7, then 2.2"),
    Target("one at a time", "median TTFT ms", _ALONE, _TTFT, 55.7, None, 14, 30),
    Target(_RATE_NAME, "median TPOT ms", _RATE, _TPOT, 20.5, 16.62, 12.0, 14.0, "14.0, then 13.0"),
    Target(_RATE_NAME, "median TTFT ms", _RATE, _TTFT, 64.7, 74.04, 28, 45),
    Target(_RATE_NAME, "median E2E ms", _RATE, _E2E, 5286, 4338.6, 3100, 3700),
    Target(
        "64 at once", "output tok/s", _FULL, "output_throughput", 2837, None, 3500, 3200,
        more_is_better=True,
    ),
    Target("start to ready, no compiled kernels", "s", {"kind": "cold_start"}, "ready_seconds", 178, None, None, 45),
    Target(
        "static batch of 8", "prefill tok/s", _BATCH, "prefill_throughput", 47_000, None, 79_000, 65_000,
        batch_size=8, more_is_better=True,
    ),
    _decode(1, 5.33, 1.8, 2.4),
    _decode(8, 9.33, 5.7, 6.8),
    _decode(26, 15.6, 11.2, 13),
    _decode(64, 19.95, 15.0, 17),
    Target(
        "deterministic, one at a time", "median TPOT ms", _ALONE, _TPOT, 13.84, None, 1.83,
        target_text="1.10 times our other mode", deterministic=True,
    ),
    Target(
        f"deterministic, {_RATE_NAME}", "median TPOT ms", _RATE, _TPOT, 52.0, None, 12.0,
        target_text="1.10 times our other mode", deterministic=True,
    ),
]  # fmt: skip
