"""`python -m sglang.test.fake_server [flags]`: the server of launch_server.py with fake_scheduler.py behind it."""

import sys

from sglang.srt.entrypoints.http_server import serve
from sglang.srt.server_args import prepare_server_args
from sglang.srt.utils.child import run_and_leave

FAKE_SCHEDULER = "sglang.test.fake_scheduler"

if __name__ == "__main__":
    run_and_leave(lambda: serve(prepare_server_args(sys.argv[1:]), FAKE_SCHEDULER))
