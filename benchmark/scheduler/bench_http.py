"""Streamed tokens a second through HTTP, scheduler and detokenizer, with a model that costs nothing.

    python benchmark/scheduler/bench_http.py [--connections 64] [--tokens 500] [--requests 4]

Every connection streams `--requests` requests of `--tokens` tokens, one SSE chunk a token, one after another. The
client runs on the same machine and reads raw bytes, so that it stays cheap beside the server. Prints tokens a second
over all connections and the median time between two chunks of a connection.
"""

import argparse
import asyncio
import json
import statistics
import time

from sglang.test.server_process import ServerProcess


async def stream(port: int, tokens: int, gaps: list[float]) -> int:
    """One /generate request; the number of chunks it streamed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    params = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}
    body = json.dumps({"input_ids": [2, 300, 301], "sampling_params": params, "stream": True}).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
    chunks, last = 0, time.perf_counter()
    while data := await reader.read(1 << 16):
        count = data.count(b"data: {")
        if count:
            now = time.perf_counter()
            gaps.append((now - last) / count)
            chunks, last = chunks + count, now
    writer.close()
    return chunks


async def load(port: int, connections: int, requests: int, tokens: int) -> tuple[int, float, float]:
    gaps: list[float] = []

    async def one() -> int:
        return sum([await stream(port, tokens, gaps) for _ in range(requests)])

    start = time.perf_counter()
    chunks = sum(await asyncio.gather(*(one() for _ in range(connections))))
    return chunks, time.perf_counter() - start, statistics.median(gaps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=500)
    args = parser.parse_args()
    flags = [
        "--max-running-requests",
        str(args.connections),
        "--log-level",
        "warning",
        "--incremental-streaming-output",
    ]
    with ServerProcess("sglang.test.null_scheduler", *flags) as server:
        asyncio.run(load(server.port, args.connections, 1, 50))  # warm up
        chunks, seconds, gap = asyncio.run(load(server.port, args.connections, args.requests, args.tokens))
    wanted = args.connections * args.requests * args.tokens
    print(f"{chunks} of {wanted} tokens came one a chunk, in {seconds:.2f} s: {wanted / seconds:.0f} tokens/s")
    print(f"median time between two chunks of a connection: {gap * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
