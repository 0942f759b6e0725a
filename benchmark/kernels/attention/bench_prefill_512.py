"""Builds, checks and times the experimental Hopper prefill attention for heads of 512 (prefill_512.cu).

`python benchmark/kernels/attention/bench_prefill_512.py [--define CLUSTER=1 ...] [--sizes 8x1024 1x8192]`: needs nvcc,
a Hopper GPU and torch. Checked against float64: small ragged batches whole, the timed sizes by sampled tokens. Prints
milliseconds, TFLOP/s (visible pairs only) and the floor at 790 TFLOP/s.
"""

import argparse
import ctypes
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

Q_HEADS, KV_HEADS, HEAD = 16, 2, 512
GROUP = Q_HEADS // KV_HEADS
PEAK = 790e12  # bf16 FLOP/s of an H200 on random data, measured
SOURCE = Path(__file__).with_name("prefill_512.cu")
# (cached, new) tokens of each request: single tokens, both sides of tiles, clusters and blocks of keys, prefixes
BATCHES = [
    [(0, 64)],
    [(0, 1)],
    [(0, 7), (0, 8), (0, 9), (0, 15), (0, 16), (0, 17)],
    [(63, 1), (64, 1), (65, 30), (1000, 3)],
    [(0, 63), (5, 65), (0, 200), (130, 77)],
    [(300, 700), (0, 1000)],
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
    out = Path(folder) / "prefill_512.so"
    for line in compile_source(defines, out, "-shared", "-Xcompiler", "-fPIC"):
        print("   ", line)
    library = ctypes.CDLL(str(out))
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    library.prefill_512_launch.argtypes = [pointer] * 6 + [integer] * 3 + [ctypes.c_float, integer, pointer]
    return library


def make_work(batch, tokens):
    """[n, 4] int32: first row in q, tokens, row of key 0, first position; `tokens` tokens each, most keys first."""
    work, q_row, k_row = [], 0, 0
    for cached, new in batch:
        for first in range(0, new, tokens):
            work.append((q_row + first, min(new - first, tokens), k_row, cached + first))
        q_row, k_row = q_row + new, k_row + cached + new
    work.sort(key=lambda row: -row[3])
    return torch.tensor(work, dtype=torch.int32)


def make_inputs(batch, spread):
    """q, k, v on the GPU; scores have a standard deviation of about `spread`."""
    new, keys = sum(n for _, n in batch), sum(c + n for c, n in batch)
    q = torch.randn(new, Q_HEADS, HEAD, device="cuda", dtype=torch.bfloat16) * (spread * HEAD**-0.5)
    k, v = (torch.randn(keys, KV_HEADS, HEAD, device="cuda", dtype=torch.bfloat16) for _ in range(2))
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


def attend(library, q, k, v, out, work, blocks, slots=None):
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    pointers = [ctypes.c_void_p(None if x is None else x.data_ptr()) for x in (q, k, v, out, work, slots)]
    error = library.prefill_512_launch(*pointers, len(q), len(k), len(work), 1.0, blocks, stream)
    assert error == 0, f"the launch returned {error}"


def reference(q, k, v, batch, tokens=None):
    """float64 [tokens, 16, head], of all tokens or of the sampled rows of q in `tokens`."""
    out, q_row, k_row = [], 0, 0
    for cached, new in batch:
        rows = torch.arange(q_row, q_row + new, device="cuda")
        if tokens is not None:
            rows = tokens[(tokens >= q_row) & (tokens < q_row + new)]
        for row in rows.split(64):
            key, last = torch.arange(cached + new, device="cuda"), (row - q_row + cached)[:, None]
            hidden = key > last
            heads = []
            for head in range(KV_HEADS):
                keys, values = (x[k_row : k_row + cached + new, head].double() for x in (k, v))
                scores = torch.einsum("tgd,kd->tgk", q[row, head * GROUP : (head + 1) * GROUP].double(), keys)
                scores.masked_fill_(hidden[:, None], float("-inf"))
                heads.append(torch.einsum("tgk,kd->tgd", scores.softmax(-1), values))
            out.append(torch.cat(heads, dim=1))
        q_row, k_row = q_row + new, k_row + cached + new
    return torch.cat(out)


def error(out, expected):
    return ((out.double() - expected).norm() / expected.norm()).item()


def check(library, batch, spread, blocks, run):
    q, k, v = make_inputs(batch, spread)
    expected = reference(q, k, v, batch)
    slots = None
    if run:
        slots, rows = make_slots(len(k), run)
        k, v = (scatter(x, slots, rows) for x in (k, v))
    guard = 16  # rows behind the output that must stay untouched
    out = torch.full((len(q) + guard, *q.shape[1:]), float("nan"), device="cuda", dtype=torch.bfloat16)
    work = make_work(batch, library.prefill_512_tokens()).cuda()
    attend(library, q, k, v, out, work, blocks, slots)
    relative = error(out[: len(q)], expected)
    first = out[: len(q)].clone()
    attend(library, q, k, v, out, work, blocks, slots)
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


def measure(library, size, blocks, run):
    count, length = (int(x) for x in size.split("x"))
    batch = [(0, length)] * count
    q, k, v = make_inputs(batch, 1.0)
    out = torch.full_like(q, float("nan"))
    work = make_work(batch, library.prefill_512_tokens()).cuda()
    tokens = torch.randint(len(q), (24,), device="cuda").unique()
    expected = reference(q, k, v, batch, tokens)
    slots = None
    if run:
        slots, rows = make_slots(len(k), run)
        k, v = (scatter(x, slots, rows) for x in (k, v))
    attend(library, q, k, v, out, work, blocks, slots)
    relative = error(out[tokens], expected)
    flops = count * 4 * HEAD * Q_HEADS * length * (length + 1) / 2
    ms, low, high = milliseconds(lambda: attend(library, q, k, v, out, work, blocks, slots), 3)
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
    parser.add_argument("--sizes", nargs="*", default=["8x1024", "1x8192", "1x32768", "1x100000"])
    parser.add_argument("--runs", nargs="*", type=int, default=[0, 64, 1], help="neighbouring slots; 0: rows in order")
    parser.add_argument("--no-check", action="store_true", help="sampled tokens of the timed sizes only")
    args = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}  {' '.join(args.define) or 'as written'}", flush=True)
    blocks = torch.cuda.get_device_properties(0).multi_processor_count
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        library = build(args.define, folder)
        if not args.no_check:
            cases = [(b, spread, run) for run in args.runs for b in BATCHES for spread in (1.0, 8.0)]
            if not all([check(library, *case[:2], blocks, case[2]) for case in cases]):
                sys.exit("wrong results: not timed")
        for run in args.runs:
            for size in args.sizes:
                measure(library, size, blocks, run)


if __name__ == "__main__":
    main()
