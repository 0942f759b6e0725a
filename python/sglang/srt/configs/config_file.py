"""config.json as it lies in a folder, before a family reads it: overrides put in, the text model's part found, and what
is true of no family that we serve refused by its name."""

import difflib
import json
from pathlib import Path

from sglang.srt.configs import fields

MAX_JSON_BYTES = 16 << 20  # config.json is a few kB; this only keeps a wrong file from filling memory
# model_type of a file with a text_config -> that of the part, whatever the part itself says
WRAPPERS = {"gemma4": "gemma4_text", "gemma4_unified": "gemma4_unified_text"}
# what is read beside a text_config, and not inside it
TOP_FIELDS = (
    "architectures", "model_type", "text_config", "dtype", "torch_dtype", "eos_token_id", "tie_word_embeddings",
    "quantization_config",
)  # fmt: skip
FOLDER_FORM = "give a local folder in Hugging Face format"
PLAIN = "only plain bfloat16, float16 or float32 weights are served; take the model before it was quantized"


def read_config(path: str, what: str) -> dict:
    """The folder's config.json; `what` names the path in an error. ValueError for a folder that is no plain model's."""
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{what} {path!r} is not a folder; {FOLDER_FORM}")
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{what} {path!r} holds adapter_config.json: adapters are not served; merge it into its model")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{what} {path!r} has no config.json; {FOLDER_FORM}")
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict:
    """The JSON object in `path`; ValueError names the file and the place of the mistake."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} is {path.stat().st_size} bytes, which is no config file (limit {MAX_JSON_BYTES})")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def architectures(raw: dict) -> list[str]:
    names = raw.get("architectures")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"config.json: architectures must be a list of names, got {names!r}")
    return names


def check_plain(raw: dict, folder: Path) -> None:
    """ValueError for quantized weights, by their method's name, and for fields that send the reader elsewhere."""
    for part in (raw, fields.mapping(raw, "text_config")):
        for name in ("quantization_config", "compression_config"):
            if part.get(name) is not None:
                given = fields.mapping(part, name)
                method = given.get("quant_method") or given.get("quant_algo") or "an unnamed method"
                raise ValueError(f"config.json: {name} says the weights are quantized ({method}): {PLAIN}")
    if (folder / "hf_quant_config.json").is_file():
        method = fields.mapping(read_json(folder / "hf_quant_config.json"), "quantization").get("quant_algo")
        raise ValueError(f"hf_quant_config.json says the weights are quantized ({method}): {PLAIN}")
    for name in ("transformers_weights", "configuration_files"):
        fields.one_of(raw, name, None, (None,))


def text_part(raw: dict) -> dict:
    """What a text model's parser reads: the file, or its text_config with what transformers takes from beside it."""
    kind = raw.get("model_type")
    if raw.get("text_config") is None:
        if kind in WRAPPERS:
            raise ValueError("config.json: field 'text_config' is missing")
        return raw
    fields.one_of(raw, "is_causal", True, (True,))
    inside = {"tie_word_embeddings": raw.get("tie_word_embeddings", True)}
    if kind is not None:
        inside["model_type"] = WRAPPERS[fields.one_of(raw, "model_type", None, tuple(WRAPPERS))]
    return {**fields.mapping(raw, "text_config"), **inside}


def override(raw: dict, changes: dict, text_fields: tuple[str, ...]) -> dict:
    """`raw` with `changes`, objects merged key by key. Beside a text_config, a field of the text model means the one
    inside. ValueError for a name that neither the file has nor `text_fields`, which a parser reads."""
    wrapped = raw.get("text_config") is not None
    inside = fields.mapping(raw, "text_config") if wrapped else raw
    placed: dict = {}
    for name, value in changes.items():
        if name == "text_config":
            if not wrapped:
                raise ValueError("override text_config: config.json has none, its fields stand outside")
            for field in fields.mapping(changes, name):
                _check_known(field, {*inside, *text_fields})
            placed["text_config"] = {**placed.get("text_config", {}), **value}
        elif wrapped and name not in TOP_FIELDS and name not in raw:
            _check_known(name, {*TOP_FIELDS, *raw, *inside, *text_fields})
            placed.setdefault("text_config", {})[name] = value
        else:
            _check_known(name, {*TOP_FIELDS, *raw, *text_fields})
            placed[name] = value
    return merge(raw, placed)


def _check_known(name: str, known: set[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"override {name}: config.json has no such field, and none is read{hint}")


def merge(base: dict, changes: dict) -> dict:
    """`base` with the values of `changes`; where both hold an object, merged inside it."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged
