"""What can be measured of a setting, as data, and the form a record has. `name` is what tables call it."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Serving:
    """Random prompts of exact lengths in tokens; `request_rate` in requests a second, None: all at once."""

    num_prompts: int
    input_len: int
    output_len: int
    request_rate: float | None
    max_concurrency: int
    kind: str = "serving"

    @property
    def name(self) -> str:
        if self.request_rate is None:
            return f"concurrency {self.max_concurrency}"
        return f"rate {self.request_rate:g}, up to {self.max_concurrency} at once"


@dataclass(frozen=True)
class OneBatch:
    """Static batches of these sizes, without a server."""

    batch_sizes: tuple[int, ...]
    input_len: int
    output_len: int
    kind: str = "one_batch"
    name: str = "static batches"


@dataclass(frozen=True)
class ColdStart:
    """One start with an empty kernel cache, until the server is ready."""

    kind: str = "cold_start"
    name: str = "cold start"


@dataclass(frozen=True)
class KernelBench:
    """A kernel benchmark; it compares with and without the switch by itself."""

    bench: tuple[str, ...]  # script, relative to the repository, and arguments
    kind: str = "kernel"

    @property
    def name(self) -> str:
        return self.bench[0]


Workload = Serving | OneBatch | ColdStart | KernelBench


def as_json(workload: Workload) -> dict:
    """As a record holds it: what JSON gives back for it, so that the two can be compared."""
    fields = dataclasses.asdict(workload) | {"name": workload.name}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
