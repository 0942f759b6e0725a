"""DetokenizerManager: the process that turns tokens into text and finds stop strings. No HTTP and no models here.

Scheduler -> here -> HTTP process. A request's life here: a first output, which says how its text is made, more of
them, one with `finish`. A request stopped here is finished for the client at once; its remaining outputs are dropped
until the scheduler's own final one.
"""

import os
from collections.abc import Callable

from sglang.srt.managers.incremental_text import IncrementalText
from sglang.srt.managers.io_struct import (
    BatchTextOutput,
    BatchTokenOutput,
    FinishReason,
    Logprobs,
    Message,
    StopReq,
    TextOutput,
    TextSettings,
    ToDetokenizer,
    TokenOutput,
)
from sglang.srt.managers.stop_matcher import StopMatch, StopMatcher
from sglang.srt.utils.shown import shown
from sglang.srt.utils.tokenizer import Tokenizer

MAX_OUTPUTS = 1000  # of a message: the HTTP process serves others between two


class RequestText:
    """The text side of one request. `stopped` once a stop string ended it here."""

    def __init__(self, settings: TextSettings, tokenizer: Tokenizer | None):
        self.params = params = settings.params
        self.stopped = False
        self.num_tokens = 0
        marks = frozenset(settings.mark_ids)
        self._decoder = tokenizer and IncrementalText(
            tokenizer, settings.prompt_tail, params.skip_special_tokens, marks
        )
        self._shown = 0  # characters handed out so far
        specials = tokenizer.special_ids_of(params.stop) if tokenizer else []
        # Stop strings that are special tokens, which the scheduler stops at.
        self._special_stops = {token_id: tokenizer.token_text(token_id) for token_id in specials}
        self._matcher = StopMatcher(params.stop, params.stop_regex) if params.stop or params.stop_regex else None

    def add(self, out: TokenOutput) -> TextOutput:
        """The text of new tokens. Sets `stopped`, and cuts the output, when they complete a stop string."""
        if self._decoder is None:
            return _text_output(out, "")
        ids = out.new_ids
        if out.finish and isinstance(out.finish.matched, int):
            if not self.params.no_stop_trim:
                ids = ids[:-1]  # the stop token has no text
            out.finish.matched = self._special_stops.get(out.finish.matched, out.finish.matched)
        final = out.finish is not None
        if self._matcher is None:
            self.num_tokens += len(out.new_ids)
            text = self._decoder.push(ids)
            return self._output(out, text + self._decoder.flush() if final else text)
        found = self._push_matching(ids, final)
        if found is None:
            self.num_tokens += len(out.new_ids) - len(ids)
            return self._output(out, self._matcher.take(final))
        match, used = found
        self.stopped = True
        text = self._matcher.take_until(match.end if self.params.no_stop_trim else match.start)
        return _cut(self._output(out, text), used, match)

    def _output(self, out: TokenOutput, text: str) -> TextOutput:
        """With the marks that stand in this text; what is held back keeps its own."""
        result = _text_output(out, text)
        start, self._shown = self._shown, self._shown + len(text)
        result.marks = [(at - start, token_id) for at, token_id in self._decoder.take_marks(self._shown)]
        return result

    def _push_matching(self, ids: list[int], final: bool) -> tuple[StopMatch, int] | None:
        """Add the tokens' text; the first match and how many of the tokens it took, None without one."""
        if len(ids) > 1 and self.num_tokens >= self.params.min_new_tokens:
            # Usually nothing matches, which one look over all tokens shows; else go token by token from the same state.
            decoder, matcher = self._decoder.copy(), self._matcher.copy()
            text = decoder.push(ids) + (decoder.flush() if final else "")
            if matcher.add(text) is None:
                self._decoder, self._matcher = decoder, matcher
                self.num_tokens += len(ids)
                return None
        for used, token_id in enumerate(ids, start=1):
            self.num_tokens += 1
            text = self._decoder.push([token_id])
            if match := self._matcher.add(text, self.num_tokens >= self.params.min_new_tokens):
                return match, used
        if final and (text := self._decoder.flush()) and (match := self._matcher.add(text)):
            return match, len(ids)
        return None


def _text_output(out: TokenOutput, text: str) -> TextOutput:
    return TextOutput(
        out.serial,
        text,
        out.new_ids,
        finish=out.finish,
        report=out.report,
        output_logprobs=out.output_logprobs,
        input_logprobs=out.input_logprobs,
    )


def _cut(result: TextOutput, used: int, match: StopMatch) -> TextOutput:
    """The final output of a request whose first `used` new tokens completed a stop string."""
    result.new_ids = result.new_ids[:used]
    result.finish = FinishReason("stop", matched=match.matched)
    if lp := result.output_logprobs:
        result.output_logprobs = Logprobs(
            lp.values[:used], lp.ids[:used], lp.top and lp.top[:used], lp.selected and lp.selected[:used]
        )
    return result


class DetokenizerManager:
    """`to_http` and `to_scheduler` send one message each. `tokenizer` None: ids are passed on without text."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        to_http: Callable[[Message], None],
        to_scheduler: Callable[[Message], None],
    ):
        self.tokenizer = tokenizer
        self.to_http = to_http
        self.to_scheduler = to_scheduler
        self.requests: dict[int, RequestText] = {}  # by serial

    def handle_all(self, messages: list[Message]) -> None:
        """Handle what has come together; its text leaves in few messages."""
        outputs: list[TextOutput] = []
        for message in messages:
            if isinstance(message, BatchTokenOutput):
                for out in message.outputs:
                    self._on_tokens(out, outputs)
            else:
                self.to_http(message)
        for start in range(0, len(outputs), MAX_OUTPUTS):
            self.to_http(BatchTextOutput(outputs[start : start + MAX_OUTPUTS]))

    def _on_tokens(self, out: TokenOutput, outputs: list[TextOutput]) -> None:
        if out.text is not None:
            self.requests[out.serial] = RequestText(out.text, self.tokenizer)
        request = self.requests.get(out.serial)
        if request is None:  # refused before it had a text
            outputs.append(_text_output(out, ""))
            return
        if not request.stopped:
            try:
                result = request.add(out)
            except (TimeoutError, MemoryError):
                result = self._give_up(request, out)
            outputs.append(result)
            if request.stopped and out.finish is None:
                self.to_scheduler(StopReq(out.serial))
        if out.finish is not None:
            del self.requests[out.serial]

    def _give_up(self, request: RequestText, out: TokenOutput) -> TextOutput:
        """A stop regex takes too much time or memory: the request ends, the other requests must not wait for it."""
        request.stopped = True
        result = _text_output(out, "")
        message = f"stop_regex {shown(request.params.stop_regex)} takes too long to match; use a simpler pattern"
        result.finish = FinishReason("abort", message=message, status_code=400)
        return result


def main() -> None:
    from sglang.srt.utils import child

    config = child.read_process_config()
    child.exit_when_parent_dies(config.ipc_dir)

    from sglang.srt.server_args import ServerArgs, model_folder
    from sglang.srt.utils.heartbeat import IDLE_SECONDS, Heartbeat
    from sglang.srt.utils.ipc import Receiver, Sender

    with child.startup_errors():
        args = ServerArgs.from_dict(config.server_args)
        child.setup_logging(args.log_level, "detokenizer")
        tokenizer = None if args.skip_tokenizer_init else Tokenizer(args.tokenizer_path or model_folder(args))
        receiver = Receiver(os.path.join(config.ipc_dir, "detokenizer"), ToDetokenizer)
    to_http = Sender(os.path.join(config.ipc_dir, "http"))
    to_scheduler = Sender(os.path.join(config.ipc_dir, "scheduler"))
    manager = DetokenizerManager(tokenizer, to_http.send, to_scheduler.send)
    heart = Heartbeat(config.ipc_dir, config.name)
    child.freeze_startup_objects()
    while True:
        heart.beat()
        manager.handle_all(receiver.receive_all(IDLE_SECONDS))


if __name__ == "__main__":
    main()
