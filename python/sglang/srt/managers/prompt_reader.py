"""PromptReader: what can be said of prompts before they are sent: parameters in bounds, texts as tokens that fit.

It knows no other requests. Long texts are tokenized in threads by the library's batch calls, which leave the GIL to
others; its calls for one text hold it, and with it the event loop.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from sglang.srt.managers.generation import Prompt, RequestError
from sglang.srt.managers.server_info import ServerInfo
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.sampling.stop_regex import check_stop_regex
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.tokenizer import Tokenizer, give_memory_back

MAX_TOP_LOGPROBS = 128
MAX_TOKEN_IDS_LOGPROB = 1024
MAX_RID_CHARS = 256
MAX_LOGPROBS = 1_000_000  # returned by one call: a prompt of 47,000 tokens with the best 20 of each
MAX_PARAMS_BYTES = 16_000_000  # sampling parameters of one call as they are sent, once for each generation
INLINE_CHARS = 4096  # about a millisecond of tokenizing; a thread would take longer than less than that
INLINE_TEXTS = 32
GROUP_CHARS = 500_000  # tokenized at once: a call of many texts does not keep the threads from others
GROUP_IDS = 100_000
THREADS = 2  # the library uses all processors for each


class PromptReader:
    """`tokenizer` None: prompts must be ids. `thinks`: it is known what the model's thoughts look like."""

    def __init__(self, args: ServerArgs, info: ServerInfo, tokenizer: Tokenizer | None, thinks: bool = False):
        self.args = args
        self.info = info
        self.tokenizer = tokenizer
        self.thinks = thinks
        self._threads = ThreadPoolExecutor(THREADS, "tokenizer")
        # Longer texts have too many tokens, whatever they are.
        self.max_chars = info.max_req_input_len * tokenizer.longest_token if tokenizer else 0

    def require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError("this server runs with --skip-tokenizer-init: send input_ids to /generate")
        return self.tokenizer

    # ---- parameters --------------------------------------------------------------------------------------------

    def check(self, prompts: list[Prompt]) -> None:
        """Everything but the prompts' texts and ids. Raises RequestError."""
        for prompt in prompts:
            self._check_options(prompt)
        # Those of a batch are mostly the same objects.
        selections = {id(p.token_ids_logprob): p.token_ids_logprob for p in prompts if p.token_ids_logprob}
        for ids in selections.values():
            self._check_selected(ids)
        counts: dict[int, int] = {}
        for prompt in prompts:
            counts[id(prompt.params)] = counts.get(id(prompt.params), 0) + prompt.params.n
        size = 0
        for params in {id(p.params): p.params for p in prompts}.values():
            self._check_sampling(params)
            size += len(msgspec.msgpack.encode(params)) * counts[id(params)]
        if size > MAX_PARAMS_BYTES:
            raise RequestError(
                f"the sampling parameters take {size} bytes over all prompts and n, at most {MAX_PARAMS_BYTES} are "
                "possible: make several requests of it",
                param="sampling_params",
            )

    def _check_options(self, prompt: Prompt) -> None:
        if prompt.rid is not None and not 1 <= len(prompt.rid) <= MAX_RID_CHARS:
            raise RequestError(f"rid has {len(prompt.rid)} characters; 1 to {MAX_RID_CHARS} are possible", param="rid")
        if not 0 <= prompt.top_logprobs_num <= min(MAX_TOP_LOGPROBS, self.info.vocab_size):
            raise RequestError(
                f"{prompt.top_logprobs_num} top log-probabilities; 0 to {min(MAX_TOP_LOGPROBS, self.info.vocab_size)} "
                "are possible",
                param="top_logprobs_num",
            )
        if prompt.logprob_start_len < -1:
            raise RequestError(
                f"logprob_start_len is {prompt.logprob_start_len}; -1 or more", param="logprob_start_len"
            )

    def _check_selected(self, ids: list[int]) -> None:
        if len(ids) > MAX_TOKEN_IDS_LOGPROB:
            raise RequestError(
                f"token_ids_logprob has {len(ids)} ids; at most {MAX_TOKEN_IDS_LOGPROB}", param="token_ids_logprob"
            )
        self.check_ids(ids, "token_ids_logprob")

    def _check_sampling(self, params: SamplingParams) -> None:
        try:
            params.verify(self.info.vocab_size)
        except ValueError as e:
            raise RequestError(str(e), param="sampling_params") from e
        if self.tokenizer is None and (params.stop or params.stop_regex):
            raise RequestError("stop strings need a tokenizer, which --skip-tokenizer-init leaves out", param="stop")
        if params.grammar is not None:
            self._check_grammar(params.grammar[0])
        if params.thinking_budget is not None:
            self._check_budget()
        try:
            for pattern in params.stop_regex:
                check_stop_regex(pattern)
        except ValueError as e:
            raise RequestError(str(e), param="stop_regex") from e

    def _check_grammar(self, kind: str) -> None:
        """What only the scheduler can say of a grammar comes from there."""
        if self.args.grammar_backend == "none":
            raise RequestError(f"{kind}: this server was started with --grammar-backend none", param=kind)
        if self.tokenizer is None:
            raise RequestError(f"{kind} needs a tokenizer, which --skip-tokenizer-init leaves out", param=kind)

    def _check_budget(self) -> None:
        if not self.thinks:
            raise RequestError(
                "thinking_budget: this model's tokenizer has no marks of thoughts", param="thinking_budget"
            )

    def check_ids(self, ids: list[int], param: str) -> None:
        low, high = min(ids), max(ids)
        if low < 0 or high >= self.info.vocab_size:
            bad = low if low < 0 else high
            raise RequestError(f"{param} has token id {bad}; ids go from 0 to {self.info.vocab_size - 1}", param=param)

    # ---- prompts -----------------------------------------------------------------------------------------------

    async def input_ids(self, prompts: list[Prompt]) -> list[list[int]]:
        """The prompts' token ids, cut with --allow-auto-truncate. Raises RequestError for one that does not fit, and
        for a text that can't, before any is tokenized."""
        texts = [self._fitting_text(p.text) for p in prompts if p.text is not None]
        special = next((p.add_special_tokens for p in prompts if p.text is not None), True)
        encoded = iter(await self.encode(texts, special))
        ids = [self._fitting(p, next(encoded) if p.text is not None else p.input_ids) for p in prompts]
        rows = sum(map(prompt_logprobs, prompts, ids))
        if rows > MAX_LOGPROBS:
            raise too_many_logprobs(rows)
        return ids

    def _fitting_text(self, text: str) -> str:
        if len(text) <= self.max_chars or self.tokenizer is None:
            return text
        if self.args.allow_auto_truncate:
            return text[: self.max_chars + 1]
        least = -(-len(text) // self.tokenizer.longest_token)
        raise self._too_long(f"at least {least} tokens: {len(text)} characters", "text")

    def _fitting(self, prompt: Prompt, ids: list[int]) -> list[int]:
        param = "input_ids" if prompt.text is None else "text"
        if not ids:
            raise RequestError("the prompt has no tokens", param=param)
        limit = self.info.max_req_input_len
        if len(ids) > limit:
            if not self.args.allow_auto_truncate:
                raise self._too_long(f"{len(ids)} tokens", param)
            # Half the context at least stays for the prompt, whatever max_new_tokens asks for.
            ids = ids[: max(limit + 1 - max(1, prompt.params.max_new_tokens), (limit + 1) // 2, 1)]
        if prompt.text is None:
            self.check_ids(ids, param)
        if prompt.logprob_start_len > len(ids):
            raise RequestError(
                f"logprob_start_len is {prompt.logprob_start_len}, behind the prompt's end at {len(ids)} tokens",
                param="logprob_start_len",
            )
        return ids

    def _too_long(self, size: str, param: str) -> RequestError:
        limit = self.info.max_req_input_len
        return RequestError(
            # Agents look for upstream's sentence, to shorten the conversation and go on.
            f"The input ({size}) is longer than the model's context length ({limit + 1} tokens). Of a prompt at most "
            f"{limit} are possible (context length {self.info.context_length}, KV cache of "
            f"{self.info.max_total_num_tokens} tokens)",
            param=param,
        )

    # ---- the tokenizer -----------------------------------------------------------------------------------------

    async def encode(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Texts to ids. Raises RequestError without a tokenizer, and for what is no Unicode."""
        if not texts:
            return []
        tokenizer = self.require_tokenizer()
        for text in texts:
            _check_unicode(text)
        if len(texts) <= INLINE_TEXTS and sum(map(len, texts)) <= INLINE_CHARS:
            return [tokenizer.encode(text, add_special_tokens) for text in texts]
        ids = []
        for group in _groups(texts, GROUP_CHARS):
            ids += await self._in_thread(tokenizer.encode_all, group, add_special_tokens)
        return ids

    async def decode(self, lists: list[list[int]], skip_special_tokens: bool = True) -> list[str]:
        """Ids, which must be in bounds, to texts. Raises RequestError without a tokenizer."""
        tokenizer = self.require_tokenizer()
        texts = []
        for group in _groups(lists, GROUP_IDS):
            texts += await self._in_thread(tokenizer.decode_all, group, skip_special_tokens)
        return texts

    async def _in_thread(self, work: Callable, items: list, flag: bool) -> list:
        def run() -> list:
            result = work(items, flag)
            if sum(map(len, items)) >= GROUP_IDS:
                give_memory_back()
            return result

        return await asyncio.get_running_loop().run_in_executor(self._threads, run)


def prompt_logprobs(prompt: Prompt, ids: list[int]) -> int:
    """How many log-probabilities are returned for the tokens of a prompt."""
    start = prompt.logprob_start_len
    return 0 if start < 0 else (len(ids) - start) * prompt.logprob_columns * prompt.params.n


def too_many_logprobs(count: int) -> RequestError:
    return RequestError(
        f"this call asks for {count} log-probabilities (tokens times 1 + top_logprobs_num + token_ids_logprob), at "
        f"most {MAX_LOGPROBS} are returned: ask for fewer of each token, for fewer tokens, from a later "
        "logprob_start_len, or for fewer prompts"
    )


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as e:  # JSON can hold half of a surrogate pair
        raise RequestError("the text is not valid Unicode: it holds half of a surrogate pair", param="text") from e


def _groups(items: Sequence[Any], size: int) -> Iterator[list]:
    """Runs of items whose lengths add up to `size` at most, or of one that is longer."""
    group: list = []
    total = 0
    for item in items:
        if group and total + len(item) > size:
            yield group
            group, total = [], 0
        group.append(item)
        total += len(item)
    if group:
        yield group
