"""`python -m sglang.launch_server [flags]`: serve a model over HTTP."""

import sys


def main(argv: list[str]) -> int:
    from sglang.srt.server_args import prepare_server_args

    args = prepare_server_args(argv)  # first: --help and mistakes must not wait for slow imports
    if args.node_rank > 0:
        from sglang.srt.entrypoints.worker_node import serve
    else:
        from sglang.srt.entrypoints.http_server import serve

    return serve(args)


if __name__ == "__main__":
    from sglang.srt.utils.child import run_and_leave

    run_and_leave(lambda: main(sys.argv[1:]))
