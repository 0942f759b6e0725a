"""The process of a rank of bench_one_batch but the first: `python -m sglang.benchmark.run_bench_rank`, see
bench_ranks.py."""

import argparse
import json
import os
import signal
from contextlib import redirect_stdout

from sglang.srt.utils.child import (
    exit_when_parent_dies,
    read_process_config,
    run_and_leave,
    setup_logging,
    startup_errors,
)


def main() -> None:
    """Ends by rank 0's hand."""
    process = read_process_config()
    exit_when_parent_dies(process.ipc_dir)
    from sglang.bench_one_batch import plan
    from sglang.benchmark.static_bench import Bench
    from sglang.srt.server_args import ServerArgs

    setup_logging("error", f"bench rank {process.tp_rank}")
    with startup_errors():
        bench = Bench(ServerArgs.from_dict(process.server_args), process)
    own = argparse.Namespace(**json.loads(bench.tp.broadcast_bytes(None)))
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        plan(bench, own, nowhere)()
    signal.pause()


if __name__ == "__main__":
    run_and_leave(main)
