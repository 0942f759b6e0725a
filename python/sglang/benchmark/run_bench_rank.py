"""The process of a rank of bench_one_batch but the first: `python -m sglang.benchmark.run_bench_rank`, see
bench_ranks.py."""

import argparse
import json
import os
import signal
from contextlib import redirect_stdout

from sglang.srt.utils.child import (
    exit_when_parent_dies,
    read_launch_config,
    run_and_leave,
    setup_logging,
    startup_errors,
)


def main() -> None:
    """Ends by rank 0's hand."""
    launch = read_launch_config()
    exit_when_parent_dies(launch.ipc_dir)
    from sglang.bench_one_batch import plan
    from sglang.benchmark.static_bench import Bench
    from sglang.srt.server_args import ServerArgs

    setup_logging("error", f"bench rank {launch.tp_rank}")
    with startup_errors():
        bench = Bench(ServerArgs.from_dict(launch.server_args), launch)
    own = argparse.Namespace(**json.loads(bench.tp.broadcast_bytes(None)))
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        plan(bench, own, nowhere)()
    signal.pause()


if __name__ == "__main__":
    run_and_leave(main)
