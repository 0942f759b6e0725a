"""How many streamed tokens a second bench_serving's own client keeps up with.

    python benchmark/serving/bench_client.py [--backend sglang] [--connections 64] [--tokens 256] [--requests 1024]

A process of its own plays a server that answers at once: one token a chunk, one chunk a write, its connections in turn,
each chunk made beforehand. What is printed is thus the speed of client and this server together, and the share of one
core that the client took. `--step-ms` has the server write in steps, as a model does: then no two chunks of a
connection come together, and the client shows what each costs.
"""

import argparse
import asyncio
import functools
import json
import math
import re
import socket
import subprocess
import sys
import time

import aiohttp

from sglang.benchmark.backends import BACKENDS, RequestOptions, send
from sglang.benchmark.datasets import DatasetRow
from sglang.benchmark.load import Stop, run_load
from sglang.benchmark.metrics import metrics
from sglang.test.server_process import free_port, wait_for

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
WANTED = re.compile(rb'"(?:max_new_tokens|max_tokens|max_completion_tokens)":(\d+)')


def framed(event: bytes) -> bytes:
    data = b"data: " + event + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


@functools.cache
def writes(path: str, tokens: int) -> list[bytes]:
    """All that a connection sends for an answer, one entry a write, in the form that our server gives it."""
    chunks = []
    for i in range(1, tokens + 1):
        usage = {"prompt_tokens": 3, "completion_tokens": i, "total_tokens": i + 3, "reasoning_tokens": 0}
        if path == "/generate":
            meta = {"id": "f" * 32, "finish_reason": None, "cached_tokens": 0, "weight_version": "default", **usage}
            chunk = {"text": " word" * i, "output_ids": [1000] * i, "meta_info": meta}
        else:
            said = {"text": " word"} if path == "/v1/completions" else {"delta": {"content": " word"}}
            choice = {"index": 0, "logprobs": None, "finish_reason": None, "matched_stop": None, **said}
            chunk = {"id": f"cmpl-{'f' * 32}", "object": "chunk", "created": 1, "model": "m", "choices": [choice]}
            chunk["usage"] = usage
        chunks.append(framed(json.dumps(chunk, separators=(",", ":")).encode()))
    return [HEAD, *chunks, framed(b"[DONE]") + LAST]


class InstantAnswer(asyncio.Protocol):
    """One connection, which carries one request."""

    def __init__(self, step_seconds: float):
        self._step = step_seconds
        self._received = b""
        self._paused = False

    def connection_made(self, transport) -> None:
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if match := WANTED.search(self._received):
            path = self._received.split(b" ", 2)[1].decode()
            self._writes = iter(writes(path, int(match[1])))
            self._write()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._write()

    def _write(self) -> None:
        if self._paused or self._transport.is_closing():
            return
        data = next(self._writes, None)
        if data is None:
            self._transport.close()
            return
        self._transport.write(data)
        if not self._paused:
            loop = asyncio.get_running_loop()
            # All connections write at the same ticks, as they would after one step of a model.
            now = loop.time()
            loop.call_at(self._step * (math.floor(now / self._step) + 1) if self._step else now, self._write)


async def serve(port: int, step_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: InstantAnswer(step_seconds), "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


def accepts(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


async def measure(url: str, args: argparse.Namespace, requests: int) -> dict:
    backend, options = BACKENDS[args.backend], RequestOptions("m")
    rows = [DatasetRow([1, 2, 3] if not backend.is_chat else "a", 3, args.tokens)] * requests
    connector = aiohttp.TCPConnector(limit=0, force_close=True)  # as bench_serving's
    async with aiohttp.ClientSession(connector=connector) as session:

        async def one(row, result):
            await send(session, url, backend, row, options, result)

        outcome = await run_load(rows, [0.0] * requests, one, Stop(), args.connections)
    return metrics(outcome.results, outcome.duration)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=tuple(BACKENDS), default="sglang")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256, help="of each answer")
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--step-ms", type=float, default=0.0, help="time between a connection's tokens; 0: none")
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.connections, args.tokens, args.requests) < 1 or args.step_ms < 0:
        parser.error("numbers must be at least 1, and --step-ms at least 0")
    if args.serve:
        asyncio.run(serve(args.serve, args.step_ms / 1e3))
    port = free_port()
    server = subprocess.Popen([sys.executable, __file__, "--serve", str(port), "--step-ms", str(args.step_ms)])
    try:
        wait_for(lambda: accepts(port), 10)
        asyncio.run(measure(f"http://127.0.0.1:{port}", args, args.connections))  # warm up
        cpu = time.process_time()
        numbers = asyncio.run(measure(f"http://127.0.0.1:{port}", args, args.requests))
        cpu = time.process_time() - cpu
    finally:
        server.kill()
        server.wait()
    print(
        f"{args.backend}, {args.connections} connections: {numbers['output_throughput']:.0f} tokens/s, "
        f"{numbers['total_output_tokens']} of {args.requests * args.tokens} in {numbers['duration']:.2f} s; the client "
        f"took {cpu / numbers['duration']:.0%} of a core; median gap of a connection's tokens "
        f"{numbers['median_itl_ms']:.2f} ms, P99 {numbers['p99_itl_ms']:.2f} ms"
    )
    return 0 if numbers["completed"] == args.requests else 1


if __name__ == "__main__":
    sys.exit(main())
