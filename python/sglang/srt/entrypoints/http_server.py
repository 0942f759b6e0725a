"""HttpServer: the server's life from port to exit: start, signals, the end of its requests and processes.

What requests meet first is in gate.py, endpoints in routes.py; processes and requests in backend.py.
"""

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn

from sglang.srt.entrypoints.backend import Backend
from sglang.srt.entrypoints.connections import bind
from sglang.srt.entrypoints.gate import FAILED, OPEN_PATHS, READY, STARTING, STOPPING, Gate
from sglang.srt.entrypoints.routes import make_app
from sglang.srt.managers.generation import RequestError
from sglang.srt.managers.process_supervisor import SCHEDULER_MODULE, ChildDied
from sglang.srt.server_args import ServerArgs, model_folder
from sglang.srt.utils.child import STARTUP_FAILED, freeze_startup_objects, setup_logging

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 4.0  # after SIGTERM running requests may finish by themselves
ABORT_SECONDS = 2.0  # then they are aborted, and their answers go out
POLLED_PATHS = (*OPEN_PATHS, "/metrics")  # asked for every few seconds: not in the access log


class HttpServer:
    """One server from the bound port to the exit code."""

    def __init__(self, args: ServerArgs, scheduler_module: str = SCHEDULER_MODULE):
        self.args = args
        self.state = STARTING
        self.backend = Backend(args, self._failed, scheduler_module)
        self._stop = asyncio.Event()
        self._signals = 0
        app = make_app(self.backend)
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                Gate(app, args.api_key, lambda: self.state),
                lifespan="off",
                log_config=None,
                access_log=args.log_level in ("debug", "info"),
                timeout_graceful_shutdown=1,
                timeout_keep_alive=30,
            )
        )

    async def run(self, listener: socket.socket) -> int:
        """Serve until told to stop; the exit code. 0: stopped by a signal, 1: a process died, 2: could not start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        front = asyncio.ensure_future(self._uvicorn.serve(sockets=[listener]))
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
            stopping.cancel()
            self._uvicorn.should_exit = True
            await front
            await asyncio.to_thread(self.backend.end_processes)
            self.backend.shutdown()  # here: the loop may not read a socket while another thread closes it
        return 1 if self.state == FAILED else 0

    async def _start(self) -> int:
        """Bring the backend up. 0 when it is ready to serve."""
        try:
            await asyncio.to_thread(self.backend.launch)
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
        key = " -H 'Authorization: Bearer <your key>'" if self.args.api_key is not None else ""
        data = json.dumps(body).replace("'", "'\\''")
        logger.info("The server is fired up and ready to roll!")
        print(
            f"Serving {name} on {url} after {self.backend.startup_seconds:.1f} s. Try:\n"
            f"  curl -s {url}{path} -H 'Content-Type: application/json'{key} -d '{data}'",
            flush=True,
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
        if not await _until(lambda: not manager.generations, DRAIN_SECONDS) and self.state != FAILED:
            logger.info("aborting %d requests", manager.abort_all("the server is shutting down"))
            await _until(lambda: not manager.generations or self.state == FAILED, ABORT_SECONDS)


async def _until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll until the condition holds; False when time is up."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(0.02)
    return True


class _Uvicorn(uvicorn.Server):
    """Signals are HttpServer's."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield


def _print_error(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)


def serve(args: ServerArgs, scheduler_module: str = SCHEDULER_MODULE) -> int:
    """Run a server in this process, which must be in its main thread; the exit code."""
    setup_logging(args.log_level, "http")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # start and stop are told in our own words
    logging.getLogger("uvicorn.access").addFilter(lambda record: record.args[2] not in POLLED_PATHS)
    try:
        listener = bind(args.host, args.port)
    except OSError as e:
        _print_error(str(e))
        return STARTUP_FAILED
    if args.model_path is None:
        print(f"No --model-path: serving the model inside the package, {model_folder(args)}", flush=True)

    async def main() -> int:
        return await HttpServer(args, scheduler_module).run(listener)

    with listener:
        return asyncio.run(main())
