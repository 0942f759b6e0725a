"""HttpServer: the server's life from port to exit: start, signals, the end of its requests and processes.

What requests meet first is in gate.py, endpoints in routes.py; processes and requests in backend.py.
"""

import asyncio
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.middleware.cors import CORSMiddleware

from sglang.srt.entrypoints.backend import Backend
from sglang.srt.entrypoints.connections import Front, bind, choose_max_connections
from sglang.srt.entrypoints.gate import FAILED, OPEN_PATHS, READY, STARTING, STOPPING, Gate
from sglang.srt.entrypoints.routes import make_app
from sglang.srt.managers.generation import RequestError
from sglang.srt.managers.process_supervisor import SCHEDULER_MODULE, ChildDied
from sglang.srt.server_args import ServerArgs, model_folder
from sglang.srt.utils.child import (
    STARTUP_FAILED,
    end_signals,
    freeze_startup_objects,
    open_standard_files,
    say,
    setup_logging,
)

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 4.0  # after SIGTERM running requests may finish by themselves
ABORT_SECONDS = 2.0  # then they are aborted, and their answers go out
END_MESSAGE = "the server is shutting down"
LAST_SECONDS = 0.5  # then those who still have none get an error
KEY_VARIABLE = "SGLANG_API_KEY"
POLLED_PATHS = (*OPEN_PATHS, "/metrics", "/get_load")  # asked for every few seconds: not in the access log


class HttpServer:
    """One server from the bound port to the exit code."""

    def __init__(
        self,
        args: ServerArgs,
        scheduler_module: str = SCHEDULER_MODULE,
        max_connections: int = 1024,
        api_key: str | None = None,
    ):
        self.args = args
        self.state = STARTING
        self.backend = Backend(args, self._failed, scheduler_module)
        self._stop = asyncio.Event()
        self._signals = 0
        self._gate = Gate(make_app(self.backend), api_key, lambda: self.state)
        self._front = Front(
            uvicorn.Config(
                open_to_origins(self._gate, args.allowed_origins),
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=args.log_level in ("debug", "info"),
                timeout_graceful_shutdown=1,
                timeout_keep_alive=30,
                proxy_headers=args.forwarded_allow_ips is not None,
                forwarded_allow_ips=args.forwarded_allow_ips,
            ),
            max_connections,
        )

    async def run(self, listener: socket.socket) -> int:
        """Serve until told to stop; the exit code. 0: stopped by a signal, 1: a process died, 2: could not start."""
        loop = asyncio.get_running_loop()
        for number in end_signals():
            loop.add_signal_handler(number, self._on_signal)
        front = asyncio.ensure_future(self._front.serve(sockets=[listener]))
        front.add_done_callback(lambda _: self._stop.is_set() or self._failed("the HTTP front has ended"))
        starting = asyncio.ensure_future(self._start())
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():  # a signal
                starting.cancel()
            elif exit_code := starting.result():
                return exit_code
            await stopping
            await self._drain()
        finally:
            self._stop.set()
            self._front.should_exit = True
            await asyncio.gather(front, _in_own_thread(self.backend.end_processes))
            self.backend.shutdown()  # here: the loop may not read a socket while another thread closes it
        if self.state != FAILED and self.backend.hung:
            logger.error("hung, and killed in the end: %s", ", ".join(self.backend.hung))
            self.state = FAILED
        return 1 if self.state == FAILED else 0

    async def _start(self) -> int:
        """Bring the backend up. 0 when it is ready to serve."""
        try:
            await _in_own_thread(self.backend.start_processes)
            await self.backend.connect()
            if not self.args.skip_server_warmup:
                await self.backend.warm_up()
        except ChildDied as death:
            if not death.explained:
                _print_error(f"{death} while the server was starting")
            return STARTUP_FAILED
        except (ValueError, OSError) as e:
            _print_error(str(e))
            return STARTUP_FAILED
        except RequestError as e:
            _print_error(f"the warm-up request failed: {e.message}")
            return STARTUP_FAILED
        freeze_startup_objects()
        self.backend.watch()
        self.state = READY
        self._announce()
        return 0

    def _announce(self) -> None:
        tokenizer = self.backend.tokenizer
        name = self.backend.manager.info.served_model_name
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.args.host, self.args.host)
        url = f"http://{f'[{host}]' if ':' in host else host}:{self.args.port}"
        if tokenizer is not None and tokenizer.chat_template is not None:
            question = "Tom has 3 boxes with 4 apples each. He eats 2 apples. How many apples are left?"
            path, body = "/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": question}]}
        elif tokenizer is not None:
            path, body = "/v1/completions", {"model": name, "prompt": "The capital of France is", "max_tokens": 16}
        else:
            path, body = "/generate", {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 16}}
        key = " -H 'Authorization: Bearer <your key>'" if self._gate.wants_key else ""
        data = json.dumps(body).replace("'", "'\\''")
        logger.info("The server is fired up and ready to roll!")
        say(
            f"Serving {name} on {url} after {self.backend.startup_seconds:.1f} s. Try:\n"
            f"  curl -s {url}{path} -H 'Content-Type: application/json'{key} -d '{data}'"
        )

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals > 1:
            logger.warning("second signal: ending at once")
            self.backend.shutdown()
            sys.exit(1)
        if self.state != FAILED:
            logger.info("shutting down: running requests may finish")
            self.state = STOPPING
        self._stop.set()

    def _failed(self, reason: str) -> None:
        logger.error("%s: the server ends", reason)
        self.state = FAILED
        self._stop.set()

    async def _drain(self) -> None:
        """Let running requests end, by force in the end, so that each client gets its answer."""
        manager = self.backend.manager
        if manager is None or self.state == FAILED:
            return
        if trouble := self.backend.ill():
            self._failed(trouble)
            manager.fail_all(trouble)
            await _until(lambda: self._gate.is_empty, LAST_SECONDS)
            return
        if await _until(lambda: self._gate.is_empty, DRAIN_SECONDS) or self.state == FAILED:
            return
        logger.info("aborting %d requests", manager.abort_all(END_MESSAGE))
        if await _until(lambda: self._gate.is_empty or self.state == FAILED, ABORT_SECONDS):
            return
        manager.fail_all(END_MESSAGE)  # the scheduler does not answer
        self._gate.answer_the_rest()  # a thread works for them that cannot be stopped
        await _until(lambda: self._gate.is_empty, LAST_SECONDS)


async def _in_own_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns. Not asyncio.to_thread: its threads may all be busy, and cannot be left behind."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as e:  # it is raised where the result is waited for
            error = e
        loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True).start()
    return await future


def open_to_origins(app: Callable, origins: str) -> Callable:
    """Let a browser's pages of `origins` ask (--allowed-origins). It stands before the key: a preflight has none."""
    if origins == "none":
        return app
    allowed = [origin.strip() for origin in origins.split(",")]
    return CORSMiddleware(app, allow_origins=allowed, allow_methods=["*"], allow_headers=["*"])


async def _until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll until the condition holds; False when time is up."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(0.02)
    return True


def _print_error(message: str) -> None:
    say(f"error: {message}", sys.stderr)


def serve(args: ServerArgs, scheduler_module: str = SCHEDULER_MODULE) -> int:
    """Run a server in this process, which must be in its main thread; the exit code. Threads may still run then: the
    process is to be left by run_and_leave."""
    open_standard_files()
    setup_logging(args.log_level, "http")
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # not each client's mistake; start and end in our words
    logging.getLogger("uvicorn.access").addFilter(lambda record: record.args[2] not in POLLED_PATHS)
    api_key = os.environ.pop(KEY_VARIABLE, None) or None  # taken away from the children
    try:
        max_connections = choose_max_connections(args.max_connections)
        listener = bind(args.host, args.port)
    except (OSError, ValueError) as e:
        _print_error(str(e))
        return STARTUP_FAILED
    if args.model_path is None:
        say(f"No --model-path: serving the model inside the package, {model_folder(args)}")
    server = HttpServer(args, scheduler_module, max_connections, args.api_key or api_key)
    # Not asyncio.run, which waits for threads that may work for minutes yet.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    with listener:
        return loop.run_until_complete(server.run(listener))
