"""`python -m sglang.launch_server [flags]`, or `sglang serve [MODEL] [flags]`: serve a model over HTTP."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

from sglang.srt.server_args import ServerArgs, parse_with_server_args


@contextlib.contextmanager
def ctrl_c_ends_at_once() -> Iterator[None]:
    """Around what may fetch for hours in threads, which Python would wait for."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else it is ignored, as for a job in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def start(args: ServerArgs) -> int:
    from sglang.srt.model_loader.hub import with_folders
    from sglang.srt.utils.child import say, startup_errors

    with startup_errors(), ctrl_c_ends_at_once():
        args = with_folders(args, say)
    if args.node_rank > 0:
        from sglang.srt.entrypoints.worker_node import serve
    else:
        from sglang.srt.entrypoints.http_server import serve

    return serve(args)


def main(argv: list[str], prog: str = "python -m sglang.launch_server", model_first: bool = False) -> NoReturn:
    """Serve until the end of the process. `model_first`: the model may be named without --model-path."""
    # First: --help and mistakes wait for no slow import, nor an installation.
    args, _ = parse_with_server_args(argv, prog, "Serve a model over HTTP.", model_first=model_first)
    from sglang.srt.utils.child import run_and_leave

    run_and_leave(lambda: start(args))


if __name__ == "__main__":
    main(sys.argv[1:])
