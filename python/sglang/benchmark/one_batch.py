"""`python -m sglang.benchmark.one_batch`: upstream's newer name of `sglang.bench_one_batch`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("sglang.bench_one_batch", run_name="__main__", alter_sys=True)
