"""What the endpoints share, whatever API they speak: fields known and not served, sampling parameters, cache keys.

No endpoint is known here.
"""

import hashlib
import re
from typing import Any

import msgspec

from sglang.srt.configs.generation_config import sampling_defaults
from sglang.srt.managers.generation import RequestError
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.utils.shown import shown

WAYS_OUT = {
    "custom_logit_processor": ": code from a client is never run; for a budget of thoughts send thinking_budget"
}
MAX_MODEL_CHARS = 256  # any name is served and comes back, in a stream with every chunk


def unserved_fields(*names: str, base: type[msgspec.Struct] = msgspec.Struct) -> type[msgspec.Struct]:
    """A base for request bodies: `base` with upstream's fields that are known and not served. Their nothings pass, for
    typed clients and routers send every field; what asks for something is refused by refuse_unserved()."""
    fields = [(name, Any, None) for name in names]
    known = {"NOT_SERVED": getattr(base, "NOT_SERVED", ()) + names}
    return msgspec.defstruct("WithUnserved", fields, bases=(base,), namespace=known, kw_only=True)


def refuse_unserved(body: msgspec.Struct) -> None:
    """A field that would change the answer is refused, never ignored."""
    for name in body.NOT_SERVED:
        value = getattr(body, name)
        # A batch may carry a list of nothings.
        if any(value) if isinstance(value, list) else value not in (None, False, "") and value != {}:
            raise RequestError(f"{name} is not supported{WAYS_OUT.get(name, '')}", param=name)


def check_model(model: str | None) -> None:
    if model is not None and len(model) > MAX_MODEL_CHARS:
        raise RequestError(f"model has {len(model)} characters, at most {MAX_MODEL_CHARS} are possible", param="model")


def sampling_params(values: dict[str, Any], defaults: dict[str, Any] | None = None) -> SamplingParams:
    """Checked parameters. Raises RequestError that names the field, its value and the limit."""
    try:
        return SamplingParams.from_request(values, defaults)
    except (TypeError, ValueError) as e:
        raise RequestError(str(e), param="sampling_params") from e


def request_params(values: dict[str, Any], manager: TokenizerManager, renamed: dict[str, str]) -> SamplingParams:
    """Those of a request to one of the APIs of other makers, null being not given; `renamed` is our name -> the API's.
    What is left out comes from the checkpoint's generation_config.json, unless --sampling-defaults openai."""
    defaults = sampling_defaults(manager.info.generation_config) if manager.args.sampling_defaults == "model" else {}
    try:
        return sampling_params({k: v for k, v in values.items() if v is not None}, defaults)
    except RequestError as e:  # in the words of this API
        for name, field in renamed.items():
            e.message = re.sub(rf"\b{name}\b", field, e.message)
        raise


def form_schema(form: Any, place: str, kinds: tuple[str, ...] = ("text", "json_object", "json_schema")) -> dict | None:
    """The schema of an answer from the form that an API's field `place` asks for, None for text. The schema stands in
    the form, or in a `json_schema` there, as in OpenAI's chats. Raises RequestError."""
    kind = form.get("type") if isinstance(form, dict) else None
    if kind not in kinds:
        raise RequestError(f"{place} has the type {shown(kind)}; served are {', '.join(kinds)}", param=place)
    if kind != "json_schema":
        return {"type": "object"} if kind == "json_object" else None
    inner = form.get("json_schema") or form
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        raise RequestError(f"{place} of type json_schema has no schema, which is an object", param=place)
    return schema


def cache_key(salt: str | None, extra: str | None) -> str | None:
    """One key of two: prefixes are shared only where both are equal. As a pair, since "t1" and "2" are not "t12"."""
    if not salt and not extra:
        return None
    return hashlib.sha256(msgspec.json.encode((salt or "", extra or ""))).hexdigest()
