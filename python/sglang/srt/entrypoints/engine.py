"""Engine: the server without HTTP, for use from Python. Its requests are those of /generate, answered as dicts.

The same processes run as under the server. Their front lives on an event loop in a thread of its own, so an Engine
works in plain scripts, in threads, and inside a running event loop.
"""

import asyncio
import atexit
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, Self

import msgspec

from sglang.srt.entrypoints.backend import Backend
from sglang.srt.entrypoints.generate_api import GenerateApi, GenerateRequest
from sglang.srt.managers.generation import RequestError
from sglang.srt.managers.io_struct import ProfileSettings
from sglang.srt.managers.process_supervisor import SCHEDULER_MODULE
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.model_loader.hub import with_folders
from sglang.srt.server_args import ServerArgs

# Upstream's order of generate()'s arguments.
GENERATE_ORDER = (
    "prompt", "sampling_params", "input_ids", "image_data", "audio_data", "video_data", "mm_hashes", "return_logprob",
    "logprob_start_len", "top_logprobs_num", "token_ids_logprob", "lora_path", "custom_logit_processor",
    "require_reasoning", "return_hidden_states", "return_routed_experts", "routed_experts_start_len", "stream",
    "bootstrap_host", "bootstrap_port", "bootstrap_room", "routed_dp_rank", "disagg_prefill_dp_rank",
    "data_parallel_rank", "external_trace_header", "rid", "session_params", "priority", "session_id",
)  # fmt: skip


class Engine:
    """`Engine(model_path=..., ...)` takes the server's arguments by their Python names and returns when it is ready.

    Raises TypeError or ValueError for wrong arguments, ChildDied (a RuntimeError) when a process fails to start. Wrong
    requests raise ValueError; a request the engine could not finish raises RuntimeError.
    """

    def __init__(self, *, scheduler_module: str = SCHEDULER_MODULE, **server_args: Any):
        self.server_args = with_folders(ServerArgs.from_kwargs(**{"log_level": "error", **server_args}))
        if self.server_args.node_rank > 0:
            raise ValueError("node_rank: an Engine is node 0; start the others with python -m sglang.launch_server")
        if self.server_args.enable_metrics:
            raise ValueError("enable_metrics: an Engine has no endpoint to read metrics from; leave it out")
        self._failure: str | None = None
        self._closed = False
        self._backend = Backend(self.server_args, self._on_failure, scheduler_module)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sglang-engine", daemon=True)
        self._thread.start()
        atexit.register(self.shutdown)
        try:
            self._backend.start_processes()
            self._run(self._backend.connect())
            self._backend.watch()
        except BaseException:
            self.shutdown()
            raise
        self._api = GenerateApi(self._backend.manager)

    def _on_failure(self, reason: str) -> None:
        self._failure = reason
        # The other process holds the model; it must not outlive the engine's use.
        threading.Thread(target=self._backend.end_processes, name="sglang-engine-end", daemon=True).start()

    def _run(self, work: Coroutine) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # ---- requests ----------------------------------------------------------------------------------------------

    def generate(self, *args: Any, **fields: Any) -> dict | list[dict] | Iterator[dict]:
        """The answer of a prompt, a list for a batch, an iterator of answers so far with `stream=True`.

        generate(prompt, sampling_params, input_ids, ...): by position in upstream's order (GENERATE_ORDER), or by name:
        the fields of /generate (return_logprob, top_logprobs_num, rid, ...), with `prompt` for its text.
        """
        body = self._body(args, fields)
        return self._iterate(body) if body.stream else self._run(self._answer(body))

    async def async_generate(self, *args: Any, **fields: Any) -> dict | list[dict] | AsyncIterator[dict]:
        """generate() for a running event loop. Cancelling it aborts the request."""
        body = self._body(args, fields)
        if body.stream:
            return self._aiterate(body)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._answer(body), self._loop))

    def _body(self, args: tuple, fields: dict) -> GenerateRequest:
        self._check_alive()
        if len(args) > len(GENERATE_ORDER):
            raise TypeError(f"generate() takes {len(GENERATE_ORDER)} positional arguments, got {len(args)}")
        values = dict(zip(GENERATE_ORDER, args, strict=False))
        if twice := values.keys() & fields.keys():
            raise TypeError(f"generate() got {min(twice)} twice, by position and by name")
        values |= fields
        values["text"] = values.pop("prompt", None)
        return _checked(values, GenerateRequest)

    def _check_alive(self) -> None:
        if self._closed:
            raise RuntimeError("the engine has been shut down")
        if self._failure is not None:
            raise RuntimeError(self._failure)

    async def _answer(self, body: GenerateRequest) -> dict | list[dict]:
        return await _converted(self._api.answer(body))

    async def _chunks(self, body: GenerateRequest) -> AsyncIterator[dict]:
        try:
            async for chunk in self._api.chunks(body):
                yield chunk
        except RequestError as e:
            raise _as_python_error(e) from e

    def _iterate(self, body: GenerateRequest) -> Iterator[dict]:
        chunks = self._chunks(body)
        try:
            while (chunk := self._run(_next_or_none(chunks))) is not None:
                yield chunk
        finally:  # also when the caller stops early: what still runs is aborted
            self._run(chunks.aclose())

    async def _aiterate(self, body: GenerateRequest) -> AsyncIterator[dict]:
        chunks = self._chunks(body)

        def there(work: Coroutine) -> asyncio.Future:
            return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

        try:
            while (chunk := await there(_next_or_none(chunks))) is not None:
                yield chunk
        finally:
            await there(chunks.aclose())

    @property
    def tokenizer_manager(self) -> TokenizerManager:
        """What requests and control messages go through; its coroutines run on the engine's own event loop."""
        return self._backend.manager

    def get_all_child_pids(self) -> list[int]:
        """Process ids of the engine's children that live; empty after shutdown()."""
        return self._backend.live_pids()

    # ---- control -----------------------------------------------------------------------------------------------

    def flush_cache(self) -> bool:
        """Empty the prefix cache; False when requests are running."""
        self._check_alive()
        return self._run(self._backend.manager.flush_cache()).success

    def start_profile(self, **settings: Any) -> dict:
        """Record steps with torch's profiler; `settings` and the answer are those of /start_profile."""
        self._check_alive()
        work = self._backend.manager.start_profile(_checked(settings, ProfileSettings))
        return self._run(_converted(work))

    def stop_profile(self) -> dict:
        """End the running profile; its trace files are under `files`."""
        self._check_alive()
        return self._run(_converted(self._backend.manager.stop_profile()))

    def abort_request(self, rid: str = "", abort_all: bool = False) -> None:
        self._check_alive()
        manager = self._backend.manager
        message = "aborted by abort_request"
        self._loop.call_soon_threadsafe(*((manager.abort_all, message) if abort_all else (manager.abort, rid)))

    def get_server_info(self) -> dict:
        self._check_alive()
        return self._run(self._backend.server_info())

    def get_model_info(self) -> dict:
        self._check_alive()
        return self._backend.model_info()

    def shutdown(self) -> None:
        """End all processes; requests under way raise RuntimeError. May be called twice."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.shutdown)
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        if self._backend.manager is not None:
            self._backend.manager.fail_all("the engine has been shut down")
        await asyncio.sleep(0)  # those who waited take their error
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=1.0)
        self._backend.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


def _checked(values: dict, struct: type) -> Any:
    """The values as a struct. Raises ValueError for an unknown name or a wrong value."""
    try:
        return msgspec.convert(values, struct)
    except msgspec.ValidationError as e:
        raise ValueError(str(e)) from e


async def _next_or_none(chunks: AsyncIterator[dict]) -> dict | None:
    return await anext(chunks, None)


async def _converted(work: Coroutine) -> Any:
    try:
        return await work
    except RequestError as e:
        raise _as_python_error(e) from e


def _as_python_error(error: RequestError) -> Exception:
    return ValueError(error.message) if error.status == 400 else RuntimeError(error.message)
