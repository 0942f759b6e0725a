"""Fields of bodies that this server does not know: ignored with one line in the log, or refused by name where ignoring
them would give another answer than the one asked for. No endpoint is known here.
"""

import difflib
import logging
from typing import Any

import msgspec

from sglang.srt.managers.generation import RequestError
from sglang.srt.utils.shown import shown

logger = logging.getLogger(__name__)

MAX_NAMES = 1000  # told of in the log; clients make them up
CONSTRAINED = "constrained output is asked for with response_format, json_schema, regex or ebnf"
THINKING = 'send chat_template_kwargs: {"enable_thinking": true}'
PENALTY = "send repetition_penalty"

# Names of other servers that change an answer -> the way out. Their nothings pass: null, false, 0, "", [] and {}.
REFUSED = {
    "guided_json": CONSTRAINED,
    "guided_regex": CONSTRAINED,
    "guided_choice": CONSTRAINED,
    "guided_grammar": CONSTRAINED,
    "structured_outputs": CONSTRAINED,
    "grammar": CONSTRAINED,
    "format": CONSTRAINED,
    "prompt_logprobs": "/generate has them, with return_logprob and logprob_start_len: 0",
    "use_beam_search": "leave it out; n gives several samples",
    "truncate_prompt_tokens": "cut the prompt before it is sent",
    "include_stop_str_in_output": "send no_stop_trim",
    "bad_words": "send logit_bias with -100 for their tokens",
    "allowed_token_ids": "send logit_bias",
    "logits_processors": "send logit_bias",
    "return_tokens_as_token_ids": "/generate returns token ids",
    "documents": "write them into a message",
    "chat_template": "start the server with --chat-template",
    "enable_thinking": THINKING,
    "think": THINKING,
    "thinking": THINKING,
    "repeat_penalty": PENALTY,
    "typical_p": "leave it out; top_p, top_k and min_p are served",
    "thinking_token_budget": "send thinking_budget",
    "max_thinking_tokens": "send thinking_budget",
    "num_predict": "send max_tokens",
    "max_new_tokens": "send max_tokens, or to /generate in sampling_params",
}

_told: set[str] = set()


def known_part(body: bytes, body_type: type[msgspec.Struct]) -> bytes:
    """The body, a JSON object, without the fields that `body_type` does not have. Raises RequestError for those that
    may not be ignored, and msgspec's errors."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    known = {field.encode_name for field in msgspec.structs.fields(body_type)}
    for name in fields.keys() - known:
        if name in REFUSED and not _is_nothing(msgspec.json.decode(fields[name])):
            raise RequestError(f"{name} is not supported: {REFUSED[name]}", param=name)
        _tell(name, known)
    return msgspec.json.encode({name: value for name, value in fields.items() if name in known})


def _is_nothing(value: Any) -> bool:
    return value is None or value in (False, 0, "") or value == [] or value == {}


def _tell(name: str, known: set[str]) -> None:
    if name in _told or len(_told) >= MAX_NAMES:
        return
    _told.add(name)
    close = difflib.get_close_matches(name[:80], known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    logger.warning("requests hold the field %s, which is not known here and is ignored%s", shown(name), hint)
