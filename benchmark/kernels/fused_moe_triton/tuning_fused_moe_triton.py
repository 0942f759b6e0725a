"""Times tiles of the experts' two products on this GPU and writes the JSON files a server looks up.

    python benchmark/kernels/fused_moe_triton/tuning_fused_moe_triton.py --model FOLDER --resume-file tuning.jsonl

For each token count all candidates (search_space.py) are timed briefly and the best of each BLOCK_SIZE_M longer, twice.
The pair of tiles with the least sum under one BLOCK_SIZE_M wins: both products share one alignment. A candidate that
does not compile, does not fit or computes something wrong is dropped and counted. Finished token counts stand in the
resume file, so a run may be cut off and goes on where it was.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from search_space import candidates
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from workload import Batch, Experts, Shape, add_arguments, shape_from

from sglang.srt.ops.moe import config
from sglang.srt.ops.moe.config import Tiles, default_tiles
from sglang.srt.ops.moe.fused_moe import grouped_gemm, precompile
from sglang.srt.ops.norms.activation import gelu_tanh_and_mul_reference
from sglang.srt.utils.triton_runtime import triton
from sglang.test.kernel_timing import graph_us

ROUNDS = ((3, 8), (15, 3), (50, 1))  # (timed replays, candidates of a BLOCK_SIZE_M that go on)
MAX_ERROR = 0.01  # of a row's length; rounding to bfloat16 gives 0.002, a wrong element of 2816 about 0.03

SIDES = {False: "up", True: "down"}


class Rejected(Exception):
    """A candidate that cannot be used; the message is the reason, in the words that the summary counts."""


# timer(tokens, down, tiles, replays) -> microseconds; raises Rejected
Timer = Callable[[int, bool, Tiles, int], float]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One token count's tiles and microseconds, of the up and the down product."""

    tokens: int
    tiles: tuple[Tiles, Tiles]
    us: tuple[float, float]
    default_us: tuple[float, float]
    rejected: dict[str, int]  # candidates by reason

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"tiles": [t.to_json() for t in self.tiles]}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "Outcome":
        tiles = tuple(Tiles.from_json(t) for t in entry["tiles"])
        return cls(entry["tokens"], tiles, tuple(entry["us"]), tuple(entry["default_us"]), entry["rejected"])


def best_by_rows(timer: Timer, tokens: int, down: bool, tiles: list[Tiles], rejected: collections.Counter) -> dict:
    """block_m -> (microseconds, tiles) of its fastest candidate."""
    for replays, keep in ROUNDS:
        times: dict[int, list[tuple[float, Tiles]]] = collections.defaultdict(list)
        for candidate in tiles:
            try:
                times[candidate.block_m].append((timer(tokens, down, candidate, replays), candidate))
            except Rejected as reason:
                rejected[str(reason)] += 1
        best = {rows: sorted(timed, key=lambda t: t[0])[:keep] for rows, timed in times.items()}
        tiles = [candidate for timed in best.values() for _, candidate in timed]
    return {rows: timed[0] for rows, timed in best.items()}


def tune(timer: Timer, tokens: int, num_experts: int, up: list[Tiles], down: list[Tiles]) -> Outcome:
    """The fastest pair of tiles with one block_m. Raises RuntimeError if nothing can be used.

    The pair is timed again, beside the default: the best of many timings is partly luck.
    """
    rejected: collections.Counter = collections.Counter()
    best_up = best_by_rows(timer, tokens, False, up, rejected)
    best_down = best_by_rows(timer, tokens, True, down, rejected)
    if not best_up.keys() & best_down.keys():
        raise RuntimeError(f"{tokens} tokens: no candidates left, rejected: {dict(rejected)}")
    rows = min(best_up.keys() & best_down.keys(), key=lambda rows: best_up[rows][0] + best_down[rows][0])
    pair = best_up[rows][1], best_down[rows][1]
    default = (default_tiles(tokens, num_experts),) * 2
    us, default_us = (
        tuple(timer(tokens, side, tiles[side], ROUNDS[-1][0]) for side in SIDES) for tiles in (pair, default)
    )
    if sum(default_us) <= sum(us):
        pair, us = default, default_us
    return Outcome(tokens, pair, us, default_us, dict(rejected))


class Progress:
    """The resume file: a line a finished token count, with what it was measured for."""

    def __init__(self, path: Path | None, measured_for: dict[str, Any]):
        self.path = path
        self.measured_for = measured_for
        self.outcomes = {outcome.tokens: outcome for outcome in self._read()}

    def _read(self) -> list[Outcome]:
        """Lines of other shapes, devices and versions are passed over; a last one cut off in writing is removed."""
        if self.path is None or not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        if not text.endswith("\n"):  # so that the next line does not join the torn one
            text = text[: text.rfind("\n") + 1]
            self.path.write_text(text, encoding="utf-8")
        found = []
        for number, line in enumerate(text.splitlines(), 1):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as e:
                raise ValueError(f"{self.path}:{number}: not JSON: {e}") from e
            if entry.get("measured_for") == self.measured_for:
                found.append(Outcome.from_json(entry))
        return found

    def add(self, outcome: Outcome) -> None:
        self.outcomes[outcome.tokens] = outcome
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"measured_for": self.measured_for, **outcome.to_json()}) + "\n")


class GpuTimer:
    """Times one product of one layer with random weights, and checks what it computes once for each tile."""

    def __init__(self, shape: Shape, fuse_activation: bool):
        self.shape = shape
        self.activation = "gelu_tanh" if fuse_activation else None
        self.experts = Experts(shape)
        self.batch: Batch | None = None
        self.checked: set[tuple[bool, Tiles]] = set()
        self.want: dict[bool, Tensor] = {}
        self.compiled = CompilePool()

    def plan(self, up: list[Tiles], down: list[Tiles]) -> None:
        """Start to compile what will be timed, in the background."""
        for side, tiles in ((False, up), (True, down)):
            for candidate in tiles:
                self.compiled.submit(self._program(side, candidate))

    def __call__(self, tokens: int, down: bool, tiles: Tiles, replays: int) -> float:
        self.compiled.wait(self._program(down, tiles))
        if self.batch is None or tokens != self.batch.tokens:
            self.batch, self.checked = Batch(self.shape, tokens), set()
            self.want = {side: self._reference(side) for side in SIDES}
        out = torch.full_like(self.want[down], torch.nan)
        plans = self.batch.plans(tiles.block_m)
        try:
            calls = [lambda plan=plan: self._product(down, tiles, plan, out) for plan in plans]
            if (down, tiles) not in self.checked:
                calls[0]()
                error = (out.float() - self.want[down].float()).norm(dim=1) / self.want[down].float().norm(dim=1)
                if not error.max() <= MAX_ERROR:  # NaN is wrong too
                    raise Rejected("wrong result")
                self.checked.add((down, tiles))
            return graph_us(calls, replays)
        except triton.runtime.errors.OutOfResources as e:
            raise Rejected("needs more than the GPU has") from e

    def _product(self, down: bool, tiles: Tiles, plan, out: Tensor) -> Tensor:
        if down:
            return grouped_gemm(self.batch.h, self.experts.down, plan, 1, tiles, out=out)
        return grouped_gemm(
            self.batch.x, self.experts.gate_up, plan, self.shape.topk, tiles, activation=self.activation, out=out
        )

    def _reference(self, down: bool) -> Tensor:
        """The product of the first routing by torch, a row a pair."""
        expert_of, order = torch.sort(self.batch.ids[0].flatten(), stable=True)
        every = torch.arange(self.shape.num_experts, device=order.device)
        ends = torch.searchsorted(expert_of, every, right=True, out_int32=True)
        rows, weights = self.batch.h[order], self.experts.down
        if not down:
            rows, weights = self.batch.x[order // self.shape.topk], self.experts.gate_up
        sorted_out = F.grouped_mm(rows, weights.transpose(1, 2), offs=ends)
        out = torch.empty_like(sorted_out)
        out[order] = sorted_out
        return gelu_tanh_and_mul_reference(out) if self.activation and not down else out

    def _program(self, down: bool, tiles: Tiles) -> tuple:
        """Arguments of `precompile`; the n of a kernel that applies the activation is that of its result."""
        _, n, k = self.shape.products(1)[down]
        activation = None if down else self.activation
        return self.shape.dtype, n if activation is None else n // 2, k, tiles, activation


class CompilePool:
    """Compiles kernels in other processes, each into Triton's cache, from where this one takes them."""

    def __init__(self):
        workers = max(1, (os.cpu_count() or 2) - 1)
        context = multiprocessing.get_context("spawn")  # a fork would share this process's GPU context
        self.pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
        self.futures: dict[tuple, concurrent.futures.Future] = {}

    def submit(self, program: tuple) -> None:
        if program not in self.futures:
            self.futures[program] = self.pool.submit(precompile, *program)

    def wait(self, program: tuple) -> None:
        self.submit(program)
        try:
            self.futures[program].result()
        except concurrent.futures.process.BrokenProcessPool:
            raise
        except Exception as e:  # the compiler has many; each only costs this candidate
            raise Rejected(f"does not compile ({type(e).__name__})") from e

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


def write_configs(folder: Path, shape: Shape, device_name: str, outcomes: dict[int, Outcome]) -> list[Path]:
    """Both JSON files, in upstream's format; each is read back as a server reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for side in SIDES:
        path = folder / config.file_name(shape.num_experts, shape.intermediate, device_name, shape.dtype, side)
        table = {str(tokens): outcomes[tokens].tiles[side].to_json() for tokens in sorted(outcomes)}
        path.write_text(json.dumps(table, indent=4) + "\n", encoding="utf-8")
        config.load_table(path)
        paths.append(path)
    return paths


def markdown(shape: Shape, outcomes: dict[int, Outcome], bytes_per_s: float, flops_per_s: float) -> str:
    """A row a token count; both products together, in microseconds."""
    lines = [
        "| tokens | default us | tuned us | speed-up | floor us | of floor | up tiles | down tiles |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for tokens in sorted(outcomes):
        o = outcomes[tokens]
        default, tuned, floor = sum(o.default_us), sum(o.us), shape.floor_us(tokens, bytes_per_s, flops_per_s)
        tiles = ["/".join(str(v) for v in dataclasses.astuple(t)) for t in o.tiles]
        lines.append(
            f"| {tokens} | {default:.1f} | {tuned:.1f} | {default / tuned:.2f} | {floor:.1f} | {floor / tuned:.0%} "
            f"| {tiles[0]} | {tiles[1]} |"
        )
    return "\n".join(lines)


def spaces(shape: Shape, tokens: int, shared_memory: int, fuse_activation: bool) -> tuple[list[Tiles], list[Tiles]]:
    """Candidates of the up and the down product; `shared_memory` in bytes a program."""
    (_, n_up, k_up), (_, n_down, k_down) = shape.products(tokens)
    fixed = tokens, shape.topk, shape.num_experts
    memory = shape.dtype.itemsize, shared_memory
    outputs = 2 if fuse_activation else 1
    up = candidates(*fixed, n_up // outputs, k_up, *memory, outputs)
    return up, candidates(*fixed, n_down, k_down, *memory)


def run(
    num_experts: int,
    todo: dict[int, tuple[list[Tiles], list[Tiles]]],
    timer: Timer,
    progress: Progress,
    budget_s: float | None,
    clock: Callable[[], float] = time.monotonic,
) -> list[int]:
    """Tune the candidates of each token count in `todo`; returns the token counts that the budget left out."""
    start = clock()
    for done, (tokens, (up, down)) in enumerate(tqdm(todo.items(), desc="token counts")):
        if budget_s is not None and clock() - start > budget_s:
            return list(todo)[done:]
        progress.add(tune(timer, tokens, num_experts, up, down))
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--output-dir", type=Path, help="default: the package's folder for this Triton version")
    parser.add_argument("--resume-file", type=Path, help="JSON lines of finished token counts; read, then appended to")
    parser.add_argument("--time-budget-seconds", type=float, help="start no further token count after this long")
    parser.add_argument("--fuse-activation", action="store_true", help="up product with the activation in its kernel")
    args = parser.parse_args()
    shape = shape_from(args, parser)
    if not torch.cuda.is_available():
        parser.error("there is no GPU to time on")

    device_name = torch.cuda.get_device_name()
    shared_memory = torch.cuda.get_device_properties().shared_memory_per_block_optin
    folder = args.output_dir or config.PACKAGE / "configs" / config.version_folder(triton.__version__)
    sizes = {field.name: str(getattr(shape, field.name)) for field in dataclasses.fields(shape)}
    measured_for = {"device": device_name, "triton": triton.__version__, "fused": args.fuse_activation, **sizes}
    progress = Progress(args.resume_file, measured_for)

    todo = {
        tokens: spaces(shape, tokens, shared_memory, args.fuse_activation)
        for tokens in args.batch_sizes
        if tokens not in progress.outcomes
    }
    timer = GpuTimer(shape, args.fuse_activation)
    try:
        for up, down in todo.values():
            timer.plan(up, down)
        left = run(shape.num_experts, todo, timer, progress, args.time_budget_seconds)
    finally:
        timer.compiled.close()

    outcomes = {tokens: progress.outcomes[tokens] for tokens in args.batch_sizes if tokens in progress.outcomes}
    print(f"\n{device_name}, Triton {triton.__version__}, {sizes}\n")
    print(markdown(shape, outcomes, args.bandwidth * 1e12, args.tflops * 1e12))
    rejected = sum((collections.Counter(o.rejected) for o in outcomes.values()), collections.Counter())
    print("\nrejected candidates:", dict(rejected) or "none")
    if outcomes:
        print("written:", *write_configs(folder, shape, device_name, outcomes), sep="\n  ")
    if left:
        print("the time budget left out, to be run with the same resume file:", *left)


if __name__ == "__main__":
    main()
