"""Connections: data that was sent leaves at once."""

import asyncio
import json
import socket
import sys
import time

import pytest

from sglang.srt.entrypoints.connections import bind
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=10, suite="base-a-test-cpu")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "0.0.0.0", "::"])
def test_accepted_sockets_have_nagle_off(host):
    async def accept_one() -> int:
        accepted = asyncio.get_running_loop().create_future()
        listener = bind(host, 0)
        async with await asyncio.start_server(lambda _, writer: accepted.set_result(writer), sock=listener):
            address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
            with socket.create_connection((address, listener.getsockname()[1])):
                writer = await accepted
                value = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                writer.close()
                return value

    assert asyncio.run(accept_one()) != 0


def ask(client: socket.socket, **params) -> list[tuple[float, int]]:
    """Stream one request; when data came, and how many events were complete by then."""
    body = json.dumps({"input_ids": [5, 6, 7], "stream": True, "sampling_params": params}).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    client.sendall(head + body)
    data, arrivals = b"", []
    while b"data: [DONE]" not in data or not data.endswith(b"0\r\n\r\n"):
        more = client.recv(65536)
        assert more, data
        data += more
        arrivals.append((time.monotonic(), data.count(b"\n\n") - data.count(b"data: [DONE]\n\n")))
    return arrivals


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_first_token_of_a_kept_connection_comes_alone(start, host):
    """The client's kernel delays the acknowledgement of the headers by 40 ms; the first token must not wait for it and
    so arrive with the second. Tokens are 20 ms apart, and one request in ten undisturbed by load is enough."""
    server = start("--host", host, address=host)
    with socket.create_connection((host, server.port)) as client:
        ask(client, max_new_tokens=2)
        gaps = []
        for _ in range(10):
            arrivals = ask(client, max_new_tokens=3, custom_params={"delay": 0.02})
            first, second = (next(when for when, count in arrivals if count >= n) for n in (1, 2))
            gaps.append(second - first)
        assert max(gaps) > 0.01, gaps


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
