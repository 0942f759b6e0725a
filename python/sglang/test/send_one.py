"""One prompt to a running server, and how fast the answer came: `python -m sglang.test.send_one`.

Flags and the printed line are upstream's. The prompt goes to /generate as it is; with --batch-size several times at
once. Exit codes: 1 when the server does not answer or refuses, 2 for wrong flags.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import httpx

from sglang.srt.utils.flag_types import at_least
from sglang.srt.utils.server_address import add_server_flags, server_url

PROMPT = "Human: Give me a fully functional FastAPI server. Show the python code.\n\nAssistant:"
TIMEOUT = httpx.Timeout(600, connect=10)  # seconds
TEXT_ONLY = "only text is served"


class SendError(Exception):
    """One line for the user."""


@dataclass(frozen=True)
class Measured:
    """An answer, or several together: seconds from asking to the end, tokens of all, tokens a second of one of them."""

    latency: float
    tokens: int
    accept_length: float  # tokens a step; 1 without drafts
    speed: float

    def __str__(self) -> str:
        values = f"{self.latency:.3f}", f"{self.tokens}", f"{self.accept_length:.3f}", f"{self.speed:.2f}"
        heads = "Latency (s)", "Tokens", "Acc Length", "Speed (token/s)"
        widths = [max(map(len, pair)) for pair in zip(heads, values, strict=True)]
        lines = (" | ".join(f"{text:>{w}}" for text, w in zip(row, widths, strict=True)) for row in (heads, values))
        return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sglang.test.send_one", description="Send one prompt to a running server and time its answer."
    )
    add_server_flags(parser)
    parser.add_argument("--batch-size", type=at_least(1), default=1, metavar="N", help="prompts at once (%(default)s)")
    parser.add_argument("--different-prompts", action="store_true", help="each begins with its number in the batch")
    parser.add_argument("--prompt", default=PROMPT, help="(%(default)r)")
    parser.add_argument("--random-input-len", type=at_least(1), metavar="N", help="random token ids in its place")
    parser.add_argument("--random-input-vocab-size", type=at_least(1), default=32768, metavar="N", help="(%(default)s)")
    parser.add_argument("--seed", type=int, help="of the random ids")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="(%(default)s)")
    parser.add_argument("--max-new-tokens", type=at_least(1), default=512, metavar="N", help="(%(default)s)")
    parser.add_argument("--frequency-penalty", type=float, default=0.0, metavar="X", help="(%(default)s)")
    parser.add_argument("--presence-penalty", type=float, default=0.0, metavar="X", help="(%(default)s)")
    parser.add_argument("--stop", nargs="*", metavar="TEXT", help="where the answer ends")
    parser.add_argument("--json", action="store_true", help="have it answer with a JSON object")
    parser.add_argument("--return-logprob", action="store_true", help="ask for log-probabilities too")
    parser.add_argument("--stream", action="store_true", help="print the answer while it comes")
    parser.add_argument("--profile", action="store_true", help="have the server write a torch profile meanwhile")
    parser.add_argument("--profile-steps", type=at_least(1), default=5, metavar="N", help="(%(default)s)")
    parser.add_argument("--profile-by-stage", action="store_true", help="prefill and decode apart")
    parser.add_argument("--profile-prefix", metavar="TEXT", help="in front of the traces' file names")
    for flag in ("--image", "--many-images"):
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    return parser


def body_of(args: SimpleNamespace) -> dict[str, Any]:
    """The request. Raises ValueError for what can't be asked."""
    for name in ("image", "many_images"):
        if getattr(args, name):
            raise ValueError(f"--{name.replace('_', '-')}: {TEXT_ONLY}; leave it out")
    if args.stream and args.batch_size > 1:
        raise ValueError("--stream is for one prompt; leave --batch-size out")
    params = {
        "temperature": args.temperature,
        "max_new_tokens": args.max_new_tokens,
        "frequency_penalty": args.frequency_penalty,
        "presence_penalty": args.presence_penalty,
    }
    if args.stop is not None:
        params["stop"] = args.stop
    if args.json:
        params["json_schema"] = json.dumps({"type": "object"})
    draw = random.Random(args.seed)
    ids = [draw.randrange(args.random_input_vocab_size) for _ in range(args.random_input_len or 0)]

    def prompt(i: int) -> str | list[int]:
        if ids:
            first = i % len(ids) if args.different_prompts else 0
            return ids[first:] + ids[:first]
        return f"Test case {i}: {args.prompt}" if args.different_prompts else args.prompt

    prompts = [prompt(i) for i in range(args.batch_size)]
    asked = {"input_ids" if ids else "text": prompts if args.batch_size > 1 else prompts[0]}
    return asked | {"sampling_params": params, "return_logprob": args.return_logprob, "stream": args.stream}


def answers(http: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The server's answers; a stream is printed while it comes. Raises SendError."""
    try:
        if not body["stream"]:
            reply = http.post("/generate", json=body)
            if reply.status_code != 200:
                raise SendError(refusal(reply))
            value = reply.json()
            return value if isinstance(value, list) else [value]
        with http.stream("POST", "/generate", json=body) as reply:
            if reply.status_code != 200:
                reply.read()
                raise SendError(refusal(reply))
            return [printed(reply.iter_lines())]
    except (httpx.TransportError, httpx.InvalidURL) as e:
        raise SendError(f"no answer from {http.base_url}: {type(e).__name__} {e}".rstrip()) from None
    except (ValueError, KeyError, TypeError) as e:
        raise SendError(f"{http.base_url} answers in another form than expected: {e}") from None


def printed(lines: Iterator[str]) -> dict[str, Any]:
    """The last event of a stream, each of which has the whole text so far."""
    last: dict[str, Any] = {"text": ""}
    for line in lines:
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event:
            raise SendError(f"the stream broke off: {event['error']['message']}")
        print(event["text"][len(last["text"]) :], end="", flush=True)
        last = event
    print()
    return last


def refusal(reply: httpx.Response) -> str:
    try:
        message = reply.json()["message"]
    except (ValueError, KeyError, TypeError):
        message = reply.text[:300]
    return f"{reply.request.url.path} answers {reply.status_code}: {message}"


def start_profile(http: httpx.Client, args: SimpleNamespace) -> None:
    wanted = {"num_steps": args.profile_steps, "profile_by_stage": args.profile_by_stage}
    if args.profile_prefix:
        wanted["profile_prefix"] = args.profile_prefix
    try:
        reply = http.post("/start_profile", json=wanted)
    except (httpx.TransportError, httpx.InvalidURL) as e:
        raise SendError(f"no answer from {http.base_url}: {type(e).__name__} {e}".rstrip()) from None
    if reply.status_code != 200:
        raise SendError(refusal(reply))
    print(f"profile into {reply.json().get('output_dir')}")


def send_one_prompt(args: SimpleNamespace | argparse.Namespace) -> Measured:
    """Ask and print. `args` has the flags as attributes; those it lacks take their defaults. Raises ValueError for what
    can't be asked, SendError when there is no answer."""
    args = SimpleNamespace(**(vars(make_parser().parse_args([])) | vars(args)))
    body = body_of(args)
    with httpx.Client(base_url=server_url(args), timeout=TIMEOUT, trust_env=False) as http:
        if args.profile:
            start_profile(http, args)
        start = time.perf_counter()
        got = answers(http, body)
        latency = time.perf_counter() - start
    try:
        metas = [each["meta_info"] for each in got]
        tokens = sum(meta["completion_tokens"] for meta in metas)
    except (KeyError, TypeError) as e:
        raise SendError(f"the answer has no {e}") from None
    if not args.stream:
        for each in got:
            print(each["text"])
    lengths = [meta.get("spec_accept_length", 1.0) for meta in metas]
    measured = Measured(latency, tokens, sum(lengths) / len(lengths), tokens / len(got) / latency)
    print(f"\n{measured}")
    return measured


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        send_one_prompt(args)
    except ValueError as e:
        parser.error(str(e))
    except SendError as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
