"""Builds, checks and times the experimental Hopper prefill attention (prefill_hopper.cu).

`python benchmark/kernels/attention/bench_prefill_hopper.py [--layer sliding] [--define CLUSTER=1 ...]`: needs nvcc, a
Hopper GPU and torch. Checked against float64: small ragged batches whole, the timed sizes by sampled tokens. Prints
milliseconds, TFLOP/s (visible pairs only) and the floor at 790 TFLOP/s.
"""

import argparse
import ctypes
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

Q_HEADS = 16
PEAK = 790e12  # bf16 FLOP/s of an H200 on random data, measured


class Layer(NamedTuple):
    head: int
    kv_heads: int
    window: int  # in keys; 0: all


LAYERS = {"full": Layer(512, 2, 0), "sliding": Layer(256, 8, 1024)}
SOURCE = Path(__file__).with_name("prefill_hopper.cu")
# (cached, new) tokens of each request: single tokens, both sides of tiles, clusters, blocks of keys, windows; prefixes
BATCHES = [
    [(0, 64)],
    [(0, 1)],
    [(0, 7), (0, 8), (0, 9), (0, 15), (0, 16), (0, 17)],
    [(63, 1), (64, 1), (65, 30), (1000, 3)],
    [(0, 63), (5, 65), (0, 200), (130, 77)],
    [(300, 700), (0, 1000)],
    [(1023, 1), (1024, 1), (1087, 2), (2000, 130), (0, 1500)],
]


def compile_source(defines, out, *flags):
    """Runs nvcc; returns what the assembler said of registers, spills and the matrix products' order."""
    command = [
        "nvcc",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-std=c++17",
        "-O3",
        "-lineinfo",
        "-Xptxas",
        "-v",
        *flags,
    ]
    command += [*(f"-D{d}" for d in defines), "-o", str(out), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    lines = [line.replace("ptxas info    : ", "").strip() for line in done.stderr.splitlines()]
    return [line for line in lines if "spill" in line or "registers" in line or "serializ" in line]


def build(defines, folder):
    out = Path(folder) / "prefill_hopper.so"
    for line in compile_source(defines, out, "-shared", "-Xcompiler", "-fPIC"):
        print("   ", line)
    library = ctypes.CDLL(str(out))
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    library.prefill_launch.argtypes = [pointer] * 6 + [integer] * 4 + [ctypes.c_float, integer, pointer]
    return library


def make_work(layer, batch, tokens):
    """[n, 8] int32, struct Work: `tokens` tokens of a request and a KV head each, those with the most keys first."""
    work, q_row, k_row = [], 0, 0
    for cached, new in batch:
        for first in range(0, new, tokens):
            for head in range(layer.kv_heads):
                count = min(new - first, tokens)
                work.append((q_row + first, count, cached + first, head, k_row, cached + new, 0, 0))
        q_row, k_row = q_row + new, k_row + cached + new
    work.sort(key=lambda row: -min(row[2], layer.window or row[2]))
    return torch.tensor(work, dtype=torch.int32)


def make_inputs(layer, batch, spread):
    """q, k, v on the GPU; scores have a standard deviation of about `spread`."""
    new, keys = sum(n for _, n in batch), sum(c + n for c, n in batch)
    q = torch.randn(new, Q_HEADS, layer.head, device="cuda", dtype=torch.bfloat16) * (spread * layer.head**-0.5)
    k, v = (torch.randn(keys, layer.kv_heads, layer.head, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return q, k, v


def scatter(x, slots, rows):
    """`x` at `slots` of a pool of `rows`, whose other rows are NaN: nothing may read them."""
    pool = torch.full((rows, *x.shape[1:]), float("nan"), device="cuda", dtype=x.dtype)
    pool[slots.long()] = x
    return pool


def make_slots(keys, run):
    """int32 [keys] slots in runs of `run` neighbours, the runs in random order and a row apart."""
    starts = torch.randperm(-(-keys // run), device="cuda") * (run + 1)
    slots = (starts[:, None] + torch.arange(run, device="cuda")).flatten()[:keys]
    return slots.int(), -(-keys // run) * (run + 1)


def attend(library, layer, q, k, v, out, work, blocks, slots=None):
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    pointers = [ctypes.c_void_p(None if x is None else x.data_ptr()) for x in (q, k, v, out, work, slots)]
    sizes = (len(q), len(k), len(work), layer.window)
    error = library.prefill_launch(*pointers, *sizes, 1.0, blocks, stream)
    assert error == 0, f"the launch returned {error}"


def reference(layer, q, k, v, batch, tokens=None):
    """float64 [tokens, 16, head], of all tokens or of the sampled rows of q in `tokens`."""
    out, q_row, k_row = [], 0, 0
    group = Q_HEADS // layer.kv_heads
    for cached, new in batch:
        rows = torch.arange(q_row, q_row + new, device="cuda")
        if tokens is not None:
            rows = tokens[(tokens >= q_row) & (tokens < q_row + new)]
        for row in rows.split(64):
            key, last = torch.arange(cached + new, device="cuda"), (row - q_row + cached)[:, None]
            hidden = (key > last) | (key <= last - (layer.window or len(key)))
            heads = []
            for head in range(layer.kv_heads):
                keys, values = (x[k_row : k_row + cached + new, head].double() for x in (k, v))
                scores = torch.einsum("tgd,kd->tgk", q[row, head * group : (head + 1) * group].double(), keys)
                scores.masked_fill_(hidden[:, None], float("-inf"))
                heads.append(torch.einsum("tgk,kd->tgd", scores.softmax(-1), values))
            out.append(torch.cat(heads, dim=1))
        q_row, k_row = q_row + new, k_row + cached + new
    return torch.cat(out)


def error(out, expected):
    return ((out.double() - expected).norm() / expected.norm()).item()


def check(library, layer, batch, spread, blocks, run):
    q, k, v = make_inputs(layer, batch, spread)
    expected = reference(layer, q, k, v, batch)
    slots = None
    if run:
        slots, rows = make_slots(len(k), run)
        k, v = (scatter(x, slots, rows) for x in (k, v))
    guard = 16  # rows behind the output that must stay untouched
    out = torch.full((len(q) + guard, *q.shape[1:]), float("nan"), device="cuda", dtype=torch.bfloat16)
    work = make_work(layer, batch, library.prefill_tokens()).cuda()
    attend(library, layer, q, k, v, out, work, blocks, slots)
    relative = error(out[: len(q)], expected)
    first = out[: len(q)].clone()
    attend(library, layer, q, k, v, out, work, blocks, slots)
    same = torch.equal(first, out[: len(q)])
    right = relative < 6e-3 and bool(out[len(q) :].isnan().all()) and same
    print(
        f"    {'ok   ' if right else 'WRONG'} {relative:.2e} repeats {same}  spread {spread}  runs {run}  {batch}",
        flush=True,
    )
    if not right:
        where = (first.double() - expected).abs().nan_to_num(99.0)
        print("      by token ", [f"{x:.2g}" for x in where.amax((1, 2))[:20].tolist()])
        print("      by head  ", [f"{x:.2g}" for x in where.amax((0, 2)).tolist()])
        print("      by column", [f"{x:.2g}" for x in where.view(*where.shape[:2], -1, 16).amax((0, 1, 3)).tolist()])
    return right


def milliseconds(run, least):
    """Median, shortest and longest of `least` to 30 runs."""
    times = []
    while len(times) < least or (len(times) < 30 and sum(times) < 400):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times), min(times), max(times)


def measure(library, layer, size, blocks, run):
    count, length = (int(x) for x in size.split("x"))
    batch = [(0, length)] * count
    q, k, v = make_inputs(layer, batch, 1.0)
    out = torch.full_like(q, float("nan"))
    work = make_work(layer, batch, library.prefill_tokens()).cuda()
    tokens = torch.randint(len(q), (24,), device="cuda").unique()
    expected = reference(layer, q, k, v, batch, tokens)
    slots = None
    if run:
        slots, rows = make_slots(len(k), run)
        k, v = (scatter(x, slots, rows) for x in (k, v))
    attend(library, layer, q, k, v, out, work, blocks, slots)
    relative = error(out[tokens], expected)
    seen = min(layer.window or length, length)  # pairs: the first tokens see less
    flops = count * 4 * layer.head * Q_HEADS * (seen * (seen + 1) / 2 + (length - seen) * seen)
    ms, low, high = milliseconds(lambda: attend(library, layer, q, k, v, out, work, blocks, slots), 3)
    rate, floor = flops / ms / 1e9, flops / PEAK * 1e3
    print(
        f"    {size:>9} runs {run:>3} {ms:9.3f} ms {rate:5.0f} TFLOP/s {ms / floor:5.2f} x floor"
        f"  ({low:.3f}..{high:.3f}, error {relative:.1e}, finite {bool(out.isfinite().all())})",
        flush=True,
    )
    if run == 1:  # the other way: all keys to rows in order first
        ms = milliseconds(lambda: (k.index_select(0, slots), v.index_select(0, slots)), 3)[0]
        print(f"    {'':>9} bringing K and V in order first: {ms:.3f} ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--define", nargs="*", default=[], help="macros of the source, NAME=VALUE")
    parser.add_argument("--layer", choices=LAYERS, default="full")
    parser.add_argument("--sizes", nargs="*", default=["8x1024", "1x8192", "1x32768", "1x100000"])
    parser.add_argument("--runs", nargs="*", type=int, default=[0, 64, 1], help="neighbouring slots; 0: rows in order")
    parser.add_argument("--no-check", action="store_true", help="sampled tokens of the timed sizes only")
    args = parser.parse_args()
    layer = LAYERS[args.layer]
    print(f"{torch.cuda.get_device_name()}  {args.layer}  {' '.join(args.define) or 'as written'}", flush=True)
    blocks = torch.cuda.get_device_properties(0).multi_processor_count
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        library = build([f"HEAD={layer.head}", *args.define], folder)
        if not args.no_check:
            cases = [(b, spread, run) for run in args.runs for b in BATCHES for spread in (1.0, 8.0)]
            if not all([check(library, layer, *case[:2], blocks, case[2]) for case in cases]):
                sys.exit("wrong results: not timed")
        for run in args.runs:
            for size in args.sizes:
                measure(library, layer, size, blocks, run)


if __name__ == "__main__":
    main()
