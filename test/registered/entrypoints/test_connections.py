"""Connections: data leaves at once, how many there may be, how long requests may take to come."""

import asyncio
import errno
import json
import resource
import socket
import subprocess
import sys
import threading
import time

import httpx
import psutil
import pytest
import uvicorn

from sglang.srt.entrypoints import connections
from sglang.srt.entrypoints.connections import OWN_DESCRIPTORS, bind
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import wait_for

register_cpu_ci(est_time=60, suite="base-a-test-cpu", mostly_waits=True)


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
            first, second = (next((when for when, count in arrivals if count >= n), None) for n in (1, 2))
            if second is not None:  # on a busy machine one event may hold all tokens
                gaps.append(second - first)
        assert max(gaps) > 0.01, gaps


# ---- how many there may be ------------------------------------------------------------------------------------------

HALF_HEADERS = b"POST /generate HTTP/1.1\r\nHost: x\r\n"
HALF_BODY = HALF_HEADERS + b"Content-Length: 100\r\n\r\n{"


def connect(server, data: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    client.sendall(data)
    return client


def is_open(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


@pytest.mark.parametrize("data", [b"", HALF_HEADERS, HALF_BODY])
def test_half_sent_requests_leave_room_for_others(start, data):
    """More than there are descriptors for: those of no use give way, and the log is not filled."""
    server = start("--log-level", "warning", prepare=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160)))
    clients = [connect(server, data) for _ in range(200)]
    for _ in range(10):
        with httpx.Client() as fresh:
            assert fresh.get(f"{server.url}/health", timeout=20).status_code == 200
    assert sum(map(is_open, clients)) <= 64
    assert psutil.Process(server.process.pid).num_fds() < 160
    assert len(server.output().splitlines()) < 10, server.output()
    for client in clients:
        client.close()


def test_connections_at_work_keep_their_place(start):
    server = start("--max-connections", "2")
    server.client.close()
    slow = json.dumps({"text": "a", "sampling_params": {"max_new_tokens": 40, "custom_params": {"delay": 0.05}}})
    request = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(slow)}\r\n\r\n{slow}".encode()
    working = [connect(server, request) for _ in range(2)]
    time.sleep(0.5)
    with connect(server, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") as third:  # in the system's queue
        for client in working:
            assert client.recv(12) == b"HTTP/1.1 200"
        assert third.recv(12) == b"HTTP/1.1 200", "one of the two has become idle by now"
    for client in working:
        client.close()


def test_full_descriptor_table_is_one_line_and_passes(front, monkeypatch, caplog):
    accept, refused = asyncio.selector_events.BaseSelectorEventLoop.sock_accept, []

    async def sock_accept(loop, listener):
        if len(refused) < 20:
            refused.append(1)
            raise OSError(errno.EMFILE, "Too many open files")
        return await accept(loop, listener)

    monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_accept", sock_accept)
    with socket.create_connection(front(hello), timeout=20) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"
    assert len(refused) == 20
    assert [r.getMessage() for r in caplog.records if "accept" in r.getMessage()] == [
        "cannot accept a connection: Too many open files"
    ]


def test_front_that_cannot_accept_ends(front, monkeypatch, caplog):
    async def sock_accept(loop, listener):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_accept", sock_accept)
    front(hello)
    wait_for(lambda: not any(thread.name == "front" for thread in threading.enumerate()), 20)
    assert "cannot be accepted any more" in caplog.text
    assert "out of luck" in caplog.text


def test_burst_of_connections(front):
    address = front(hello)
    clients = [socket.create_connection(address, timeout=20) for _ in range(90)]
    for client in clients:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    for client in clients:
        assert client.recv(12) == b"HTTP/1.1 200"
        client.close()


def test_descriptor_limit_is_raised_and_bounds_connections():
    def limits(soft: int, hard: int, asked: int | None) -> str:
        program = (
            "import resource; from sglang.srt.entrypoints.connections import choose_max_connections\n"
            f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
            f"print(choose_max_connections({asked}), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
        )
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        return (result.stdout or result.stderr.splitlines()[-1]).strip()

    assert limits(150, 300, None) == f"{300 - OWN_DESCRIPTORS} 300"
    assert limits(150, 300, 100) == "100 300"
    assert "--max-connections 250" in limits(150, 300, 250)


# ---- how long they may take -----------------------------------------------------------------------------------------


@pytest.fixture
def front(monkeypatch):
    """front(app): the address of a Front in a thread, with short deadlines."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.4)
    monkeypatch.setattr(connections, "LEFTOVER_SECONDS", 0.4)
    fronts = []

    def front(app) -> tuple[str, int]:
        listener = bind("127.0.0.1", 0)
        config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=0)
        server = connections.Front(config, 100)
        thread = threading.Thread(target=server.run, args=([listener],), name="front")
        thread.start()
        fronts.append((server, thread))
        return listener.getsockname()

    yield front
    for server, thread in fronts:
        server.should_exit = True
        thread.join()


async def hello(scope, receive, send):
    """Answers without a look at the body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


def lasts(client: socket.socket, trickle: bytes = b"") -> float:
    """Seconds until the server closes it, while a byte is sent now and then."""
    started = time.monotonic()
    client.settimeout(0.05)
    while time.monotonic() - started < 20:
        try:
            if not client.recv(4096):
                return time.monotonic() - started
            if trickle:
                client.sendall(trickle)
        except TimeoutError:
            pass
        except ConnectionError:
            return time.monotonic() - started
    raise AssertionError("it is still open")


@pytest.mark.parametrize("first", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_headers_have_a_deadline(front, first):
    with socket.create_connection(front(hello)) as client:
        client.sendall(first)
        assert 0.3 < lasts(client, first and b"x") < 5


def test_headers_of_a_later_request_have_a_deadline(front):
    with socket.create_connection(front(hello)) as client:
        for _ in range(3):
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"hi"):
                answer += client.recv(4096)
            time.sleep(0.25)
        client.sendall(b"GET / HTTP/1.1\r\n")
        assert 0.3 < lasts(client) < 5


def test_body_nobody_reads_has_a_deadline(front):
    with socket.create_connection(front(hello)) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        assert 0.3 < lasts(client, b"x" * 100) < 5


def test_long_answers_have_none(front):
    async def slow(scope, receive, send):
        await asyncio.sleep(1.5)
        await hello(scope, receive, send)

    with socket.create_connection(front(slow), timeout=20) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
