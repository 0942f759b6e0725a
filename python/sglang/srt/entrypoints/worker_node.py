"""A node that only computes (--node-rank above 0): its ranks' schedulers, no HTTP. It lives as long as all of them."""

import logging
import signal
import sys
import threading

from sglang.srt.entrypoints.backend import WARMUP_SECONDS
from sglang.srt.managers.process_supervisor import SCHEDULER_MODULE, ChildDied, ProcessSupervisor
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.child import STARTUP_FAILED, end_signals, setup_logging

logger = logging.getLogger(__name__)


def serve(args: ServerArgs) -> int:
    """Run this node's ranks in a process whose main thread this is; the exit code. 0: stopped by a signal, 2: a rank
    could not start, 1: a rank ended otherwise, as all do when another node does."""
    setup_logging(args.log_level, f"node {args.node_rank}")
    ended = threading.Event()
    deaths: list[ChildDied] = []

    def on_death(death: ChildDied) -> None:
        deaths.append(death)
        ended.set()

    supervisor = ProcessSupervisor(on_death)
    for number in end_signals():
        signal.signal(number, lambda *_: ended.set())
    try:
        supervisor.start_ranks(SCHEDULER_MODULE, args)
        # When the server is ready is known on node 0 only.
        supervisor.give_up_after(max(args.watchdog_timeout, WARMUP_SECONDS))
        ended.wait()
    finally:
        supervisor.shutdown()
    if not deaths:
        return 0
    if deaths[0].explained:
        return STARTUP_FAILED
    print(f"error: {deaths[0]}: the node ends", file=sys.stderr, flush=True)
    return 1
