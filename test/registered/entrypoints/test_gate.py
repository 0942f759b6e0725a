"""The Gate by itself and before real endpoints: bodies bounded in size, time and sum, and replies that arrive."""

import asyncio
import os
import re
import socket
import sys
import time

import pytest

from sglang.srt.entrypoints import gate
from sglang.srt.entrypoints.gate import READY, Gate
from sglang.srt.entrypoints.replies import error_reply
from sglang.srt.managers.generation import RequestError
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import wait_for

register_cpu_ci(est_time=20, suite="base-a-test-cpu")


async def reads_all(scope, receive, send):
    """An endpoint that answers with the length of its body."""
    size, more = 0, True
    while more:
        try:
            message = await receive()
        except RequestError as e:
            return await error_reply(e)(scope, receive, send)
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


class Client:
    """The server below the Gate: gives the pieces of a body, None being silence, and keeps the reply."""

    def __init__(self, *pieces: bytes | None, **headers: str):
        self.pieces = list(pieces)
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": "/x",
            "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
        }
        self.status, self.headers, self.body, self.ended = 0, {}, b"", False

    async def receive(self) -> dict:
        await asyncio.sleep(0)
        piece = self.pieces.pop(0) if self.pieces else None
        if piece is None:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": piece, "more_body": bool(self.pieces)}

    async def send(self, message: dict) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.body += message.get("body", b"")
            self.ended = not message.get("more_body", False)

    async def ask(self, gate: Gate) -> "Client":
        await gate(self.scope, self.receive, self.send)
        assert self.ended
        return self


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(gate, "MAX_BODY_BYTES", 100)
    monkeypatch.setattr(gate, "MAX_HELD_BYTES", 250)
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(gate, "LINGER_SECONDS", 0.3)


def passed(app=reads_all) -> Gate:
    return Gate(app, None, lambda: READY)


def ask(*pieces, gate: Gate | None = None, **headers) -> Client:
    return asyncio.run(Client(*pieces, **headers).ask(gate or passed()))


def test_body_of_the_largest_size(short):
    assert ask(b"a" * 60, b"b" * 40).body == b"100"


def test_too_large_body_is_read_to_its_end_and_the_connection_closed(short):
    client = Client(b"a" * 60, b"b" * 41, b"c" * 1000, b"d")
    asyncio.run(client.ask(passed()))
    assert (client.status, client.headers[b"connection"], client.pieces) == (413, b"close", [])


def test_announced_too_large_body(short):
    client = ask(b"a" * 101, content_length="101")
    assert (client.status, client.headers[b"connection"]) == (413, b"close")


@pytest.mark.parametrize("pieces", [[None], [b"a", None], [b"a", b"b", b"c", None]])
def test_body_has_a_deadline(short, pieces):
    started = time.monotonic()
    client = ask(*pieces)
    assert (client.status, client.headers[b"connection"]) == (408, b"close")
    assert 0.2 < time.monotonic() - started < 10


def test_deadline_ends_with_the_body(short):
    async def slow(scope, receive, send):
        await receive()
        waiting = asyncio.ensure_future(receive())  # for the client to leave
        await asyncio.sleep(0.6)
        waiting.cancel()
        await reads_all(scope, Client(b"ok").receive, send)

    assert ask(b"a", gate=passed(slow)).status == 200


def test_bodies_are_bounded_in_sum_and_given_back(short):
    async def run() -> None:
        held = asyncio.Event()

        async def holds(scope, receive, send):
            await receive()
            await held.wait()
            await reads_all(scope, Client(b"ok").receive, send)

        gate = passed(holds)
        two = [asyncio.ensure_future(Client(b"a" * 100).ask(gate)) for _ in range(2)]
        await asyncio.sleep(0.05)
        gate._app = reads_all
        third = await Client(b"a" * 100).ask(gate)
        assert third.status == 503
        assert b"250 bytes" in third.body
        assert third.headers[b"retry-after"]
        assert (await Client(b"a" * 50).ask(gate)).status == 200
        held.set()
        assert [(await client).status for client in two] == [200, 200]
        assert gate._held == 0
        assert gate.is_empty

    asyncio.run(run())


@pytest.mark.parametrize(
    ("headers", "status", "says_what"),
    [
        ({"content_length": "1", "transfer_encoding": "chunked"}, 400, b"both Content-Length and Transfer-Encoding"),
        ({"content_encoding": "gzip"}, 415, b"'gzip' is not supported"),
        ({"content_encoding": "br" * 100}, 415, b"is not supported"),
        ({"content_encoding": "identity"}, 200, b"1"),
    ],
)
def test_headers(headers, status, says_what):
    client = ask(b"a", **headers)
    assert client.status == status
    assert says_what in client.body
    assert client.body.count(b"br") <= 2 * 40, "cut, however often the message is in it"
    assert (b"connection" in client.headers) == (status == 400)


def test_answer_the_rest(short):
    async def run() -> None:
        async def never(scope, receive, send):
            await asyncio.sleep(60)

        async def streams(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.sleep(0.3)
            await send({"type": "http.response.body", "body": b"end"})

        gate = passed(streams)
        streaming = asyncio.ensure_future(Client(b"a").ask(gate))
        await asyncio.sleep(0.05)
        gate._app = never
        stuck = [asyncio.ensure_future(Client(b"a").ask(gate)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert gate.answer_the_rest() == 3
        assert [(await client).status for client in stuck] == [503] * 3
        assert (await streaming).body == b"end"
        cancelled = asyncio.ensure_future(Client(b"a").ask(gate))
        await asyncio.sleep(0.05)
        cancelled.cancel()  # by anybody else
        with pytest.raises(asyncio.CancelledError):
            await cancelled

    asyncio.run(run())


# ---- over real connections ------------------------------------------------------------------------------------------


def exchange(server, data: bytes) -> bytes:
    """Send all, with the last request's end, and read until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(data)
        answer = b""
        while more := client.recv(65536):
            answer += more
        return answer


def test_http_at_its_edges(start):
    server = start("--log-level", "info")
    both = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    answer = exchange(server, both + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1, "nothing after it is read"
    large = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n" + b"x" * 20_000_000
    answer = exchange(server, large)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()
    for path in ("/health", "/health_generate", "/v1/models", "/model_info"):
        head, get = server.client.head(path), server.client.get(path)
        assert (head.status_code, head.content, head.headers.get("content-length")) == (
            200,
            b"",
            get.headers.get("content-length"),
        )
    assert server.client.head("/generate").status_code == 405
    reply = server.client.post("/generate", content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert (reply.status_code, "gzip" in reply.json()["message"]) == (415, True)
    # A client that leaves while it sends.
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.3)
    # Whoever names another address in the headers.
    server.client.get("/v1/models", headers={"X-Forwarded-For": "6.6.6.6"})
    wait_for(lambda: "GET /v1/models" in server.output())
    assert "6.6.6.6" not in server.output()
    assert server.stop() == 0
    assert "Traceback" not in server.output()


@pytest.mark.parametrize(("trusted", "shown"), [("127.0.0.0/8", True), ("10.0.0.1", False), ("*", True)])
def test_forwarded_address_is_believed_from_those_named_only(start, trusted, shown):
    server = start("--forwarded-allow-ips", trusted)
    server.client.get("/v1/models", headers={"X-Forwarded-For": "6.6.6.6"})
    wait_for(lambda: "GET /v1/models" in server.output())
    assert bool(re.search(r"6\.6\.6\.6.*GET /v1/models", server.output())) == shown


def test_key_from_the_environment(start, monkeypatch):
    monkeypatch.setenv("SGLANG_API_KEY", "k1")
    server = start()
    assert server.client.get("/v1/models").status_code == 401
    assert server.client.get("/v1/models", headers={"Authorization": "Bearer k1"}).status_code == 200
    for pid in server.children().values():
        with open(f"/proc/{pid}/environ", "rb") as f:
            assert b"SGLANG_API_KEY" not in f.read()
    flag_wins = start("--api-key", "k2")
    assert flag_wins.client.get("/v1/models", headers={"Authorization": "Bearer k1"}).status_code == 401
    assert flag_wins.client.get("/v1/models", headers={"Authorization": "Bearer k2"}).status_code == 200


def test_output_that_goes_nowhere(start):
    with open("/dev/full", "w") as full:
        server = start(stdout=full.fileno())
        assert server.client.get("/v1/models").status_code == 200
        assert server.stop() == 0
    read, write = os.pipe()
    server = start(stdout=write, ready=False)  # its ready line, too, comes after the pipe's reader has gone
    os.close(read)
    os.close(write)
    server.wait_ready()
    assert server.client.get("/v1/models").status_code == 200
    assert server.stop() == 0


def test_closed_standard_files(start):
    server = start(prepare=lambda: os.closerange(0, 3))
    assert server.client.get("/v1/models").status_code == 200
    with open(f"/proc/{server.process.pid}/cmdline") as f:
        assert "fake_server" in f.read()
    for fd in range(3):
        assert os.readlink(f"/proc/{server.process.pid}/fd/{fd}") == "/dev/null"
    assert server.stop() == 0


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
