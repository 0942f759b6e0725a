"""bench_one_batch on several ranks: its process is rank 0, the others are children that go through the same steps.

Those (run_bench_rank.py) hear the server's settings as a server's ranks do, and from rank 0 what is to be run once that
can't fail any more for a mistake of the user's.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sglang.srt.managers.process_supervisor import ChildDied, ProcessSupervisor
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.child import ProcessConfig

MODULE = "sglang.benchmark.run_bench_rank"


@contextmanager
def other_ranks(args: ServerArgs) -> Iterator[ProcessConfig | None]:
    """The other ranks of `args` inside the `with`, and what makes this process rank 0; None where it is alone. If one
    ends, so does this process. Raises ValueError for ranks on other machines."""
    if args.nnodes > 1:
        raise ValueError(f"--nnodes {args.nnodes}: bench_one_batch runs on one machine; use bench_serving")
    if args.tp_size == 1:
        yield None
        return
    supervisor = ProcessSupervisor(_end)
    try:
        for rank in range(1, args.tp_size):
            supervisor.start(f"rank {rank}", MODULE, args.to_dict(), rank)
        yield ProcessConfig(args.to_dict(), supervisor.ipc_dir)
    finally:
        supervisor.shutdown()


def _end(death: ChildDied) -> None:
    if death.explained:
        os._exit(death.exit_code)
    print(f"error: {death}: the benchmark ends", file=sys.stderr, flush=True)
    os._exit(1)  # rank 0 may be waiting for it inside a step


@contextmanager
def leading(bench, own: argparse.Namespace) -> Iterator[None]:
    """Around what rank 0 has planned: the others plan and run the same."""
    from sglang.srt.managers.join_ranks import ending_with_others

    if bench.tp.size > 1:
        bench.tp.broadcast_bytes(json.dumps(vars(own)).encode())
    with ending_with_others(bench.tp.size):
        yield
