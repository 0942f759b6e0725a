"""`python -m sglang.launch_server [flags]`: serve a model over HTTP."""

import sys

from sglang.srt.server_args import ServerArgs, prepare_server_args


def start(args: ServerArgs) -> int:
    if args.node_rank > 0:
        from sglang.srt.entrypoints.worker_node import serve
    else:
        from sglang.srt.entrypoints.http_server import serve

    return serve(args)


if __name__ == "__main__":
    args = prepare_server_args(sys.argv[1:])  # first: --help and mistakes wait for no slow import, nor an installation
    from sglang.srt.utils.child import run_and_leave

    run_and_leave(lambda: start(args))
