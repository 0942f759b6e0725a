"""Prompts of large chats are written by processes of their own.

A template is a program that may take seconds for a long chat (the published one of Gemma 4 looks from each message to
the end of the list), and it holds the GIL all the while: in a thread it would slow down every stream. `ChatWriter` is
the HTTP process's side; this file as a program is the other one.
"""

import asyncio
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from sglang.srt.entrypoints.chat_prompt import Turn, chat_prompt
from sglang.srt.managers.generation import RequestError
from sglang.srt.utils.chat_template import ChatTemplate
from sglang.srt.utils.frames import read_frame, write_frame
from sglang.srt.utils.special_text import SpecialText

INLINE_BYTES = 16384  # of a chat as JSON: smaller ones take some milliseconds and are written on the event loop
INLINE_MESSAGES = 32
RENDER_SECONDS = 10.0  # of processor time, for one chat
PROCESSES = 2  # started when they are needed; they stay
KEPT_BYTES = 1_000_000  # after a larger chat the process ends, and its memory with it


class WriterSettings(msgspec.Struct):
    source: str  # the template's
    tool_source: str | None
    special_tokens: dict[str, str]
    variables: dict[str, Any]
    seconds: float
    special_texts: list[str] | None  # to hide, and the secret word to hide them behind
    secret: str


class Written(msgspec.Struct):
    text: str = ""
    error: str | None = None
    param: str | None = None


class ChatWriter:
    """chat_prompt() that never holds up the event loop. `variables` are the template's, under those of a request."""

    def __init__(
        self,
        template: ChatTemplate,
        variables: dict[str, Any],
        special: SpecialText | None = None,
        seconds: float = RENDER_SECONDS,
    ):
        self._template = template
        self._variables = variables
        self._special = special
        texts, secret = (None, "") if special is None else (special.texts, special.secret)
        self._settings = WriterSettings(
            template.source, template.tool_source, template.special_tokens, variables, seconds, texts, secret
        )
        self._turns = asyncio.Semaphore(PROCESSES)
        self._threads = ThreadPoolExecutor(PROCESSES, "chat-writer")
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []

    async def prompt(self, turn: Turn) -> str:
        """The chat's prompt. Raises RequestError. A caller that is cancelled ends the work."""
        try:
            data = msgspec.json.encode(turn)
        except RecursionError as e:
            raise RequestError("the messages or tools are nested too deeply", param="messages") from e
        # References in schemas multiply what is written.
        if len(data) <= INLINE_BYTES and len(turn.messages) <= INLINE_MESSAGES and b'"$ref"' not in data:
            return chat_prompt(turn, self._template, self._variables, self._special)
        async with self._turns:
            worker = self._idle.pop() if self._idle else self._start()
            kept = False
            try:
                reply = await asyncio.get_running_loop().run_in_executor(self._threads, worker.ask, data)
                kept = len(data) <= KEPT_BYTES
            except EOFError as e:
                raise RequestError("the process that writes the chat's prompt has ended", status=500) from e
            finally:
                if kept:
                    self._idle.append(worker)
                else:
                    worker.end()
                    self._workers.discard(worker)
        written = msgspec.msgpack.decode(reply, type=Written)
        if written.error is not None:
            raise RequestError(written.error, param=written.param)
        return written.text

    def _start(self) -> "_Worker":
        worker = _Worker(msgspec.msgpack.encode(self._settings))
        self._workers.add(worker)
        return worker

    def close(self) -> None:
        """End the processes; chats under way fail."""
        for worker in self._workers:
            worker.end()
        self._threads.shutdown(wait=False)


class _Worker:
    def __init__(self, settings: bytes):
        self._settings: bytes | None = settings
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, data: bytes) -> bytes:
        """For a thread. Raises EOFError when the process ends before it has answered."""
        try:
            if self._settings is not None:
                write_frame(self._process.stdin, self._settings)
                self._settings = None
            write_frame(self._process.stdin, data)
            reply = read_frame(self._process.stdout)
        except (OSError, ValueError) as e:  # ValueError: closed by end()
            raise EOFError from e
        if reply is None:
            raise EOFError
        return reply

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


# ---- the process ----------------------------------------------------------------------------------------------------


def _out_of_time(*_: object) -> None:
    raise TimeoutError("it takes too long over them: send fewer messages, or shorter ones")


def _answer(data: bytes, template: ChatTemplate, special: SpecialText | None, settings: WriterSettings) -> Written:
    signal.setitimer(signal.ITIMER_PROF, settings.seconds)
    try:
        turn = msgspec.json.decode(data, type=Turn)
        return Written(chat_prompt(turn, template, settings.variables, special))
    except RequestError as e:
        return Written(error=e.message, param=e.param)
    except (TimeoutError, RecursionError) as e:  # outside of the template
        return Written(error=f"these messages can't be written: {e}", param="messages")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the server's to handle
    signal.signal(signal.SIGPROF, _out_of_time)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what libraries print must not get between the answers
    data = read_frame(source)
    if data is None:
        return
    settings = msgspec.msgpack.decode(data, type=WriterSettings)
    template = ChatTemplate(settings.source, settings.special_tokens, settings.tool_source)
    special = None if settings.special_texts is None else SpecialText(settings.special_texts, settings.secret)
    while (data := read_frame(source)) is not None:  # the end: the server has gone
        write_frame(sink, msgspec.msgpack.encode(_answer(data, template, special, settings)))


if __name__ == "__main__":
    main()
