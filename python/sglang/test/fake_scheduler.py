"""A scheduler process without a model, for tests of everything around it: it answers each prompt with its own tokens.

It speaks the protocol of srt/managers/io_struct.py. Output token i is prompt token i (modulo its length). A request's
`custom_params` change that: {"output_ids": [...]} are the tokens instead, {"script": name, "turns": [[...], ...]} those
of the first request with that name, of the second and so on (for clients that ask again by themselves),
{"delay": s} waits before each token, {"die": code} ends the process on arrival, {"hang": s} stops it for so long,
{"refuse": message, "status": code} answers with an error, {"cached_tokens": n} and {"queue_time": s} are reported as
they are, {"label": name} is how /server_info calls it instead of its serial.
`--json-model-override-args {"fake": {...}}` changes the start: "startup_error", "startup_exit", "startup_delay",
"first_delay" (of the first request), "context_len", "generation_config".
"""

import collections
import math
import os
import sys
import time

from sglang.srt.utils.child import exit_when_parent_dies, read_process_config, setup_logging, startup_errors
from sglang.srt.utils.heartbeat import IDLE_SECONDS, Heartbeat

VOCAB_SIZE = 1024
EOS = 1
FULL_SIZE = 65536


class FakeReq:
    def __init__(self, msg, now: float, turns: collections.Counter):
        """`turns`: requests so far with a script, by its name."""
        self.msg = msg
        self.params = msg.sampling_params
        self.custom = self.params.custom_params or {}
        self.label = self.custom.get("label", msg.serial)
        self.announced = False
        self.tokens: list[int] = self.custom.get("output_ids") or msg.input_ids
        if (script := self.custom.get("script")) is not None:
            self.tokens = self.custom["turns"][turns[script]]
            turns[script] += 1
        self.made: list[int] = []
        self.sent = 0
        self.due = now + self.custom.get("delay", 0.0)
        self.every = (self.params.stream_interval or 1) if msg.stream else 1


class FakeScheduler:
    def __init__(self, receiver, sender, context_len: int, first_delay: float):
        self.receiver = receiver
        self.sender = sender
        self.context_len = context_len
        self.first_delay = first_delay  # of the first request, as by a compiler
        self.running: dict[int, FakeReq] = {}
        self.turns: collections.Counter[str] = collections.Counter()
        self.received: list[int | str] = []  # labels, as are the next
        self.aborted: list[int | str] = []
        self.stopped: list[int | str] = []
        self.last_request: dict = {}
        self.flushes: list[str] = []

    def step(self) -> None:
        from sglang.srt.managers.io_struct import BatchTokenOutput

        for message in self.receiver.receive_all(block=self._wait()):
            getattr(self, f"on_{type(message).__name__}")(message)
        now = time.monotonic()
        outputs = []
        for req in list(self.running.values()):
            if req.due <= now:
                req.due = now + req.custom.get("delay", 0.0)
                if (out := self._next(req)) is not None:
                    outputs.append(out)
        if outputs:
            self.sender.send(BatchTokenOutput(outputs))
        self.answer_flushes()

    def _wait(self) -> float:
        next_due = min((req.due for req in self.running.values()), default=math.inf)
        return min(IDLE_SECONDS, max(0.0, next_due - time.monotonic()))

    def _next(self, req: FakeReq):
        from sglang.srt.managers.io_struct import FinishReason

        limit = min(req.params.max_new_tokens, self.context_len - len(req.msg.input_ids))
        finish = None
        if limit > 0:
            token = req.tokens[len(req.made) % len(req.tokens)]
            req.made.append(token)
            stop_ids = {EOS, *req.params.stop_token_ids}
            if token in stop_ids and not (token == EOS and req.params.ignore_eos):
                finish = FinishReason("stop", matched=token)
        if finish is None and len(req.made) >= limit:
            finish = FinishReason("length", length=len(req.made))
        if finish is None and 1 < len(req.made) < req.sent + req.every:
            return None
        return self._output(req, finish)

    def _output(self, req: FakeReq, finish):
        from sglang.srt.managers.io_struct import RequestReport, TextSettings, TokenOutput

        first, ids = req.sent == 0, req.made[req.sent :]
        start, prompt = req.msg.logprob_start_len, req.msg.input_ids
        output_logprobs = self._logprobs(req.msg, ids, req.sent) if req.msg.return_logprob else None
        wants_prompt = req.msg.return_logprob and start >= 0 and first
        input_logprobs = self._logprobs(req.msg, prompt[start:], start, start == 0) if wants_prompt else None
        req.sent = len(req.made)
        if finish is not None:
            del self.running[req.msg.serial]
        text = None if req.announced else TextSettings(req.params, prompt[-8:], req.msg.mark_ids)
        req.announced = True
        report = RequestReport(req.custom.get("cached_tokens", 0), queue_time=req.custom.get("queue_time", 0.0))
        return TokenOutput(req.msg.serial, ids, finish, report, text, output_logprobs, input_logprobs)

    def _logprobs(self, msg, ids: list[int], start: int, no_first: bool = False):
        """Token i of its side has logprob -i - 1; the best k are ids 10, 11, ... at -0.25, -0.5, ..."""
        from sglang.srt.managers.io_struct import Logprobs

        values: list[float | None] = [float(-i - 1) for i in range(start, start + len(ids))]
        if no_first and values:
            values[0] = None
        k, selected = msg.top_logprobs_num, msg.token_ids_logprob
        return Logprobs(
            values,
            ids,
            [[(-(j + 1) / 4, 10 + j) for j in range(k)] for _ in ids] if k else None,
            [[-float(i) for i in selected] for _ in ids] if selected else None,
        )

    def _end(self, req: FakeReq, finish) -> None:
        from sglang.srt.managers.io_struct import BatchTokenOutput

        if req.msg.serial in self.running:
            self.sender.send(BatchTokenOutput([self._output(req, finish)]))

    # ---- messages ----------------------------------------------------------------------------------------------

    def on_TokenizedGenerateReq(self, msg) -> None:
        import msgspec

        from sglang.srt.managers.io_struct import FinishReason

        req = FakeReq(msg, time.monotonic(), self.turns)
        if "die" in req.custom:
            os._exit(req.custom["die"])
        time.sleep(req.custom.get("hang", 0.0 if self.received else self.first_delay))
        self.received.append(req.label)
        self.last_request = msgspec.to_builtins(msg.sampling_params) | {"input_ids": msg.input_ids}
        self.running[msg.serial] = req
        if "refuse" in req.custom:
            self._end(req, FinishReason("abort", message=req.custom["refuse"], status_code=req.custom["status"]))

    def on_AbortReq(self, msg) -> None:
        from sglang.srt.managers.io_struct import FinishReason

        reqs = [req for serial, req in self.running.items() if msg.abort_all or serial == msg.serial]
        for req in reqs:
            self.aborted.append(req.label)
            self._end(req, FinishReason("abort", message=msg.message))

    def on_StopReq(self, msg) -> None:
        from sglang.srt.managers.io_struct import FinishReason

        if req := self.running.get(msg.serial):
            self.stopped.append(req.label)
            self._end(req, FinishReason("stop"))

    def on_FlushCacheReq(self, msg) -> None:
        self.flushes.append(msg.call_id)
        if not msg.wait:
            self.answer_flushes()
            self.on_EndFlushReq(msg)

    def on_EndFlushReq(self, msg) -> None:
        from sglang.srt.managers.io_struct import FlushCacheReply

        if msg.call_id in self.flushes:
            self.flushes.remove(msg.call_id)
            self.sender.send(FlushCacheReply(msg.call_id, False, f"{len(self.running)} requests are running"))

    def answer_flushes(self) -> None:
        from sglang.srt.managers.io_struct import FlushCacheReply

        if not self.running:
            for call_id in self.flushes:
                self.sender.send(FlushCacheReply(call_id, True))
            self.flushes = []

    def on_InternalStateReq(self, msg) -> None:
        from sglang.srt.managers.io_struct import InternalStateReply

        state = {
            "flushes": len(self.flushes),
            "running": [req.label for req in self.running.values()],
            "received": self.received,
            "aborted": self.aborted,
            "stopped": self.stopped,
            "last_request": self.last_request,
            # What /metrics reads; of the pools only what running requests hold.
            "num_running_reqs": len(self.running),
            "num_queue_reqs": 0,
            "num_queue_tokens": 0,
            "num_retracted_reqs": 0,
            "full_capacity": FULL_SIZE,
            "full_used": sum(len(req.msg.input_ids) + len(req.made) for req in self.running.values()),
            "swa_capacity": 0,
            "swa_used": 0,
            "token_usage": sum(len(req.msg.input_ids) + len(req.made) for req in self.running.values()) / FULL_SIZE,
            "prompt_tokens_total": 0,
            "cached_tokens_total": 0,
            "last_gen_throughput": 0.0,
        }
        self.sender.send(InternalStateReply(msg.call_id, state))


def resolved(args) -> dict:
    """Automatic values, as resolve() would fill them for a real model."""
    from sglang.srt.server_args import model_folder

    values = args.public_dict()
    folder = model_folder(args)
    chosen = {
        "model_path": folder,
        "tokenizer_path": folder,
        "served_model_name": os.path.basename(folder),
        "max_running_requests": 256,
        "max_queued_requests": 16384,
    }
    return values | {k: v for k, v in chosen.items() if values[k] is None}


def main() -> None:
    config = read_process_config()
    exit_when_parent_dies(config.ipc_dir)

    from sglang.srt.managers.io_struct import SchedulerReady, ToScheduler
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils.ipc import Receiver, Sender

    with startup_errors():
        args = ServerArgs.from_dict(config.server_args)
        setup_logging(args.log_level, "scheduler")
        fake = args.json_model_override_args.get("fake", {})
        time.sleep(fake.get("startup_delay", 0.0))
        if "startup_exit" in fake:
            sys.exit(fake["startup_exit"])
        if "startup_error" in fake:
            raise ValueError(fake["startup_error"])
        context_len = args.context_length or fake.get("context_len", 4096)
        receiver = Receiver(os.path.join(config.ipc_dir, "scheduler"), ToScheduler)
    sender = Sender(os.path.join(config.ipc_dir, "detokenizer"))
    info = resolved(args) | {
        "context_length": context_len,
        "max_req_input_len": context_len - 1,
        "max_total_num_tokens": FULL_SIZE,
        "vocab_size": VOCAB_SIZE,
        "eos_token_ids": [EOS],
        "generation_config": fake.get("generation_config", {}),
        "architectures": ["FakeForCausalLM"],
        "model_type": "fake",
    }
    sender.send(SchedulerReady(info))
    scheduler = FakeScheduler(receiver, sender, context_len, fake.get("first_delay", 0.0))
    heart = Heartbeat(config.ipc_dir, config.name)
    while True:
        heart.beat()
        scheduler.step()


if __name__ == "__main__":
    main()
