"""`python -m sglang.profiler`: profile a live server and print which kernels its stages spend their time in.

    python -m sglang.profiler --base-url http://127.0.0.1:30000 --num-steps 5 --profile-by-stage
    python -m sglang.profiler --trace FILE...      # tables of traces that are there already

The server must be at work meanwhile: steps are what is recorded. Traces lie on the server's machine, so the tables need
this program to run there. Exit code 1 when there is no table to show, and no profile is left running.
"""

import argparse
import contextlib
import os
import sys
import time

import httpx

from sglang.srt.utils.flag_types import at_least, positive
from sglang.srt.utils.server_address import add_server_flags, server_url
from sglang.srt.utils.trace_table import stage_table

POLL_SECONDS = 0.1
REPLY_SECONDS = 620.0  # /stop_profile answers when the traces are written


class ProfilerError(Exception):
    """One line for the user."""


class Server:
    """The endpoints a profile needs. Raises ProfilerError for any answer but 200."""

    def __init__(self, url: str, api_key: str | None):
        self._url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(headers=headers, timeout=REPLY_SECONDS, trust_env=False)

    def call(self, method: str, path: str, body: dict | None = None) -> dict:
        try:
            reply = self._client.request(method, f"{self._url}{path}", json=body)
        except (httpx.TransportError, httpx.InvalidURL) as e:
            raise ProfilerError(f"no server answers at {self._url}: {e}") from e
        try:
            value = reply.json()
        except ValueError:
            value = None
        if reply.status_code != 200:
            message = value.get("message") if isinstance(value, dict) else None
            raise ProfilerError(f"{path}: HTTP {reply.status_code}: {message or reply.text[:200]}")
        if not isinstance(value, dict):
            raise ProfilerError(f"{path} was answered with {reply.text[:200]!r}: another kind of server?")
        return value

    def profile(self) -> dict:
        """The state of the last profile. Raises ProfilerError when the server does not tell."""
        try:
            return self.call("GET", "/server_info")["internal_states"][0]["profile"]
        except (KeyError, IndexError, TypeError) as e:
            raise ProfilerError(f"the server at {self._url} does not report its profile in /server_info") from e


def run_profile(server: Server, settings: dict, timeout: float) -> list[str]:
    """Start a profile and wait for its end; the trace files. Ends it whatever happens. Raises ProfilerError."""
    started = server.call("POST", "/start_profile", settings)
    if "profile_id" not in started:
        raise ProfilerError(f"/start_profile was answered with {started}: another kind of server?")
    print(f"profile {started['profile_id']} into {started['output_dir']}", flush=True)
    deadline = time.monotonic() + timeout
    running = True
    try:
        while time.monotonic() < deadline:
            profile = server.profile()
            if not profile["running"] or profile["profile_id"] != started["profile_id"]:
                running = False
                if profile["error"]:
                    raise ProfilerError(profile["error"])
                return profile["files"]
            time.sleep(POLL_SECONDS)
        stopped = server.call("POST", "/stop_profile")
        running = False
    finally:
        if running:
            with contextlib.suppress(ProfilerError):  # what came first is what the user must know
                server.call("POST", "/stop_profile")
    steps = ", ".join(f"{count} {stage}" for stage, count in stopped["steps"].items() if count) or "none"
    traces = f"; traces so far: {' '.join(stopped['files'])}" if stopped["files"] else ""
    raise ProfilerError(
        f"not enough steps within {timeout:g} s (recorded: {steps}): is the server at work? "
        f"The profile was ended{traces}"
    )


def print_tables(files: list[str], rows: int) -> None:
    """Raises ProfilerError when one of them can't be read."""
    for path in files:
        try:
            table = stage_table(path)
        except (OSError, ValueError) as e:
            raise ProfilerError(f"{e}" if isinstance(e, ValueError) else f"{path}: {e.strerror}") from e
        print(f"\n{path}\n{table.text(rows)}", flush=True)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m sglang.profiler", description="Profile a live server, by stage.")
    add_server_flags(parser)
    parser.add_argument("--api-key", default=os.environ.get("SGLANG_API_KEY"), help="or $SGLANG_API_KEY")
    parser.add_argument("--num-steps", type=at_least(1), default=5, help="steps to record (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="record CPU ops (without --cpu and --gpu: all there is)")
    parser.add_argument("--gpu", action="store_true", help="record GPU kernels")
    parser.add_argument("--profile-by-stage", action="store_true", help="one trace of prefill steps, one of decode")
    parser.add_argument("--output-dir", help="at or below the server's SGLANG_TORCH_PROFILER_DIR (its default)")
    parser.add_argument("--profile-prefix", help="in front of the traces' file names")
    parser.add_argument("--timeout", type=positive, default=120.0, help="seconds to wait (default: %(default)g)")
    parser.add_argument("--rows", type=at_least(1), default=30, help="of each table (default: %(default)s)")
    parser.add_argument("--trace", nargs="+", metavar="FILE", help="print tables of these files; no server is asked")
    return parser


def main(argv: list[str]) -> int:
    args = make_parser().parse_args(argv)
    settings = {
        "num_steps": args.num_steps,
        "profile_by_stage": args.profile_by_stage,
        "activities": [name for name, on in (("CPU", args.cpu), ("GPU", args.gpu)) if on] or None,
        "output_dir": args.output_dir,
        "profile_prefix": args.profile_prefix,
    }
    try:
        files = args.trace or run_profile(Server(server_url(args), args.api_key), settings, args.timeout)
        print_tables(files, args.rows)
    except ProfilerError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; the profile was ended", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
