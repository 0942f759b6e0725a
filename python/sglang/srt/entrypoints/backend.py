"""Backend: the server without its front: child processes, sockets, TokenizerManager. HTTP and Engine both use it."""

import asyncio
import logging
import os
import time
from collections.abc import Callable

import msgspec

import sglang
from sglang.srt.configs.config_file import FOLDER_FORM
from sglang.srt.entrypoints.chat_worker import ChatWriter
from sglang.srt.entrypoints.conversation import Conversation
from sglang.srt.managers.generation import Prompt, RequestError
from sglang.srt.managers.io_struct import Message, SchedulerReady, ToHttp
from sglang.srt.managers.process_supervisor import (
    DETOKENIZER_MODULE,
    SCHEDULER_MODULE,
    ChildDied,
    ProcessSupervisor,
)
from sglang.srt.managers.server_info import ServerInfo
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.metrics.server_metrics import ServerMetrics
from sglang.srt.parser.gemma4 import Gemma4Format
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs, model_folder
from sglang.srt.utils.environment import warn_of_unread
from sglang.srt.utils.ipc import Receiver, Sender
from sglang.srt.utils.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

PROBE_SECONDS = 20.0  # how long one token may take before the server counts as ill
FRESH_SECONDS = 1.0  # for so long a token says that the next will come
WARMUP_SECONDS = 600.0


class Backend:
    """Life: start_processes() begins the slow part, `await connect()` ends with it, then `manager`; shutdown() at last.

    `on_failure(message)` is called once, on the event loop, when a ready backend breaks.
    """

    def __init__(
        self,
        args: ServerArgs,
        on_failure: Callable[[str], None],
        scheduler_module: str = SCHEDULER_MODULE,
    ):
        self.args = args
        self.tokenizer: Tokenizer | None = None  # set by start_processes()
        self.manager: TokenizerManager | None = None  # set by connect()
        self.chat_writer: ChatWriter | None = None  # set by connect(), where the tokenizer has a chat template
        self.conversation: Conversation | None = None  # set by connect()
        self.metrics: ServerMetrics | None = None  # set by connect(), with --enable-metrics
        self.scheduler_info: dict = {}  # all that the scheduler said of itself
        self.startup_seconds = 0.0
        self.ready_at = 0.0  # time.time()
        self._on_failure = on_failure
        self._scheduler_module = scheduler_module
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Future[ServerInfo] | None = None
        self._death: ChildDied | None = None
        self._sockets: list[Receiver | Sender] = []
        self._probe: asyncio.Task[str] | None = None  # the last one
        self._supervisor: ProcessSupervisor | None = None
        self._begun = time.monotonic()
        self._format: Gemma4Format | None = None

    def start_processes(self) -> None:
        """Start the processes. Raises ValueError for a model folder or tokenizer that cannot be used."""
        folder = model_folder(self.args)
        if not os.path.isdir(folder):
            raise ValueError(f"--model-path {folder}: no such folder; {FOLDER_FORM}")
        warn_of_unread()
        self._supervisor = supervisor = ProcessSupervisor(self._child_died)
        args = self.args
        supervisor.start_ranks(self._scheduler_module, args)  # first: it takes longest
        if not args.skip_tokenizer_init:
            self.tokenizer = self._load_tokenizer(folder)
            self._format = self._find_format()
        supervisor.start("detokenizer", DETOKENIZER_MODULE, args.to_dict())

        def path(name: str) -> str:
            return os.path.join(supervisor.ipc_dir, name)

        self._receiver = Receiver(path("http"), ToHttp)
        self._to_scheduler = Sender(path("scheduler"))
        self._sockets = [self._receiver, self._to_scheduler]

    def _load_tokenizer(self, folder: str) -> Tokenizer:
        try:
            return Tokenizer(self.args.tokenizer_path or folder, self.args.chat_template)
        except ValueError:
            if not self.args.tokenizer_path and not os.path.isfile(os.path.join(folder, "tokenizer.json")):
                # A folder that is no model's lacks more than a tokenizer: say that.
                from sglang.srt.configs.model_config import ModelConfig  # with torch, which this process does without

                ModelConfig.load(folder, self.args.json_model_override_args)
            raise

    def _find_format(self) -> Gemma4Format | None:
        """How calls and thoughts are marked in the output. Raises ValueError where a parser is asked for that has no
        marks to go by."""
        found = Gemma4Format.of(self.tokenizer)
        if found is None:
            for name in ("tool_call_parser", "reasoning_parser"):
                if getattr(self.args, name) == Gemma4Format.NAME:
                    flag = f"--{name.replace('_', '-')} {Gemma4Format.NAME}"
                    raise ValueError(f"{flag}: this tokenizer lacks the special tokens that it reads; leave it out")
        return found

    async def connect(self) -> None:
        """Wait until the scheduler is ready. Raises ChildDied when a process ends instead."""
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        if self._death is not None:
            raise self._death
        self._receiver.attach(self._starting, self._broken)
        info = await self._ready
        self.startup_seconds = time.monotonic() - self._begun
        self.ready_at = time.time()
        if self.args.enable_metrics:
            self.metrics = ServerMetrics(info, self.startup_seconds)
        if self.tokenizer is not None and self.tokenizer.chat_template is not None:
            special = None if self.args.parse_special_tokens_in_content else self.tokenizer.special_text
            variables = self.args.default_chat_template_kwargs or {}
            self.chat_writer = ChatWriter(self.tokenizer.chat_template, variables, special)
        marks = self._format and self._format.thought_marks()
        self.manager = TokenizerManager(self.args, info, self.tokenizer, self._to_scheduler.send, self.metrics, marks)
        self.conversation = Conversation(self.manager, self.chat_writer, self._format)

    def _starting(self, messages: list[Message]) -> None:
        if self.manager is not None:
            self.manager.handle_all(messages)
            return
        for message in messages:
            if not isinstance(message, SchedulerReady):
                self._broken(ValueError(f"{type(message).__name__} came before the scheduler was ready"))
                return
            self.scheduler_info = message.info
            try:
                self._ready.set_result(msgspec.convert(message.info, ServerInfo))
            except msgspec.ValidationError as e:
                self._broken(ValueError(f"the scheduler's description of itself is wrong: {e}"))

    def _broken(self, error: Exception) -> None:
        if not self._ready.done():
            self._ready.set_exception(error)
            return
        if self.manager is not None:
            self.manager.fail_all(str(error))
        self._on_failure(str(error))

    def _child_died(self, death: ChildDied) -> None:  # from a thread
        self._death = death
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._broken, death)

    async def generates(self) -> str:
        """What keeps tokens from being made, empty if nothing does. One that came a moment ago answers that; else a
        probe is made, one for all who ask meanwhile."""
        if trouble := self.ill():
            return trouble
        if time.monotonic() - self.manager.last_token < FRESH_SECONDS:
            return ""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.ensure_future(self.probe(PROBE_SECONDS))
        return await asyncio.shield(self._probe)  # of several callers one may leave

    async def probe(self, timeout: float) -> str:
        """Ask for one greedy token; why it did not come, empty if it did. Any request's token will do: under load its
        own may take long, or be refused."""
        started = time.monotonic()
        answer = asyncio.ensure_future(self._one_token())
        try:
            while time.monotonic() - started < timeout:
                done, _ = await asyncio.wait([answer], timeout=0.5)
                if self.manager.last_token > started:
                    return ""
                if trouble := self.ill():
                    return trouble
                if done:
                    try:
                        answer.result()
                    except RequestError as e:
                        if e.status != 503:
                            return e.message
                    await asyncio.sleep(0.5)  # the queue is full
                    answer = asyncio.ensure_future(self._one_token())
            return f"no token within {timeout:.0f} s"
        finally:
            answer.cancel()

    async def _one_token(self) -> None:
        """Raises RequestError when it is refused."""
        params = SamplingParams(max_new_tokens=1, temperature=1.0, top_k=1, ignore_eos=True)
        async with self.manager.generate([Prompt(params, input_ids=[0], log_metrics=False)]) as group:
            finish = (await group.all())[0].finish
            if finish.type == "abort":
                raise RequestError(finish.message, finish.status_code or 500)

    async def warm_up(self) -> None:
        """A first request, so that no client waits for what is made on first use. Raises RequestError if it fails."""
        if trouble := await self.probe(WARMUP_SECONDS):
            raise RequestError(trouble, status=500)

    def watch(self) -> None:
        """From now on processes that hang end the server; before, a first compile may take any time."""
        self._supervisor.give_up_after(self.args.watchdog_timeout)

    def ill(self) -> str:
        """What is wrong with the processes, perhaps for a while only; empty if nothing is."""
        return self._supervisor.ill()

    @property
    def hung(self) -> list[str]:
        """After end_processes(): those that did not obey."""
        return [] if self._supervisor is None else self._supervisor.hung

    def model_info(self) -> dict:
        info = self.manager.info
        return {
            "model_path": info.model_path,
            "served_model_name": info.served_model_name,
            "tokenizer_path": info.tokenizer_path,
            "is_generation": True,
            "preferred_sampling_params": info.preferred_sampling_params,
            "weight_version": "default",
            "load_format": info.load_format,
            "reasoning_parser": self._format.NAME if self.conversation.reads_thoughts else None,
            "tool_call_parser": self._format.NAME if self.conversation.reads_calls else None,
            "disaggregation_mode": "null",
            "has_image_understanding": False,
            "has_audio_understanding": False,
            "model_type": info.model_type,
            "architectures": info.architectures,
        }

    async def server_info(self) -> dict:
        """Every resolved argument, what the scheduler said when it became ready, and its state now."""
        return {
            **self.scheduler_info,
            "startup_time": round(self.startup_seconds, 3),
            "version": sglang.__version__,
            "internal_states": [await self.manager.internal_state()],
        }

    async def load(self) -> list[dict]:
        """How busy the server is, in the form that the balancing policies of sglang-router read: one entry, since there
        are no data-parallel ranks. `num_tokens` are those that requests hold, and those that wait to be computed."""
        state = await self.manager.internal_state()
        running, waiting = state["num_running_reqs"], state["num_queue_reqs"]
        tokens = state["full_used"] + state["num_queue_tokens"]
        load = {"dp_rank": 0, "num_reqs": running + waiting, "num_waiting_reqs": waiting, "num_tokens": tokens}
        return [load]

    def live_pids(self) -> list[int]:
        return [] if self._supervisor is None else self._supervisor.live_pids()

    def end_processes(self) -> None:
        """May be called in any state, from any thread, and twice."""
        if self.chat_writer is not None:
            self.chat_writer.close()
        if self._supervisor is not None:
            self._supervisor.shutdown()

    def shutdown(self) -> None:
        """End the processes and close the sockets, for good. From the event loop's thread, or when the loop is over."""
        self.end_processes()
        for socket in self._sockets:
            socket.close()
