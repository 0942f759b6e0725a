"""`python -m sglang.benchmark.offline_throughput`: upstream's newer name of `sglang.bench_offline_throughput`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("sglang.bench_offline_throughput", run_name="__main__", alter_sys=True)
