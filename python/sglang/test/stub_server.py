"""StubServer: a server on the loopback that answers as told, for tests of the tools that ask one."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Reply = Callable[[str], "str | list[str] | tuple[int, bytes] | None"]


class StubServer(ThreadingHTTPServer):
    """`reply(prompt)` gives the text, the texts so far of a stream's events, a (status, body) instead, or None to hang
    up. `asked` has path and body of every request."""

    def __init__(self, reply: Reply):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply
        self.asked: list[tuple[str, dict]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def stub_server(reply: Reply) -> Iterator[StubServer]:
    server = StubServer(reply)
    threading.Thread(target=server.serve_forever, args=(0.02,)).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: StubServer

    def do_GET(self) -> None:
        self.answer(200, b'{"data": [{"id": "stub"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        if self.path == "/start_profile":
            return self.answer(200, b'{"output_dir": "/traces"}')
        chat = "messages" in body
        prompt = body["messages"][0]["content"] if chat else body.get("prompt") or body.get("text") or body["input_ids"]
        if isinstance(prompt, list) and not isinstance(prompt[0], int):  # a batch
            return self.answer(200, json.dumps([generated(self.server.reply(each)) for each in prompt]).encode())
        reply = self.server.reply(prompt)
        if isinstance(reply, tuple):
            self.answer(*reply)
        elif isinstance(reply, list):
            events = [json.dumps(generated(text)) for text in reply] + ["[DONE]"]
            self.answer(200, "".join(f"data: {event}\n\n" for event in events).encode())
        elif reply is not None and self.path == "/generate":
            self.answer(200, json.dumps(generated(reply)).encode())
        elif reply is not None:
            choice = {"finish_reason": finish(reply)} | ({"message": {"content": reply}} if chat else {"text": reply})
            self.answer(200, json.dumps({"choices": [choice], "usage": {"completion_tokens": 3}}).encode())

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def finish(reply: str) -> str:
    return "abort" if reply.startswith("ABORT") else "stop"


def generated(reply: str) -> dict:
    """An answer of /generate."""
    return {"text": reply, "meta_info": {"completion_tokens": 3, "finish_reason": {"type": finish(reply)}}}
