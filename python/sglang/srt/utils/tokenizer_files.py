"""What a tokenizer's folder says: its backend, special tokens and chat templates, put together from tokenizer.json,
tokenizer_config.json and the files of older folders as transformers does it. No torch, no transformers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers

STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# what transformers' classes of these names call the tokens that a config leaves out
CLASS_TOKENS = {
    "GemmaTokenizer": {f"{name}_token": f"<{name}>" for name in ("unk", "bos", "eos", "pad", "mask")},
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
}
FOR_TOOLS = "tool_use"  # name of the template that chats with tools get, where there is one


@dataclass(frozen=True)
class TokenizerFiles:
    backend: tokenizers.Tokenizer
    special_tokens: dict[str, str]  # bos_token and its like, as templates use them
    templates: dict[str, str]  # chat templates by name; one alone is called default


def read_tokenizer(root: Path) -> TokenizerFiles:
    """The folder's tokenizer. Raises ValueError, in one line, for what is missing, unreadable or not supported."""
    file = root / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"no tokenizer.json in {root}; give its folder with --tokenizer-path")
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as e:  # the library raises bare Exception for a malformed file
        raise ValueError(f"{file} is not a readable tokenizer: {e}") from e
    config = _read_json(root / "tokenizer_config.json")
    _check_cleanup(config, backend)
    name = str(config.get("tokenizer_class")).removesuffix("Fast")
    if name in CLASS_TOKENS:
        if "added_tokens_decoder" in config:  # then that class knows no added tokens but these
            raw = json.loads(file.read_text(encoding="utf-8")) | {"added_tokens": []}
            backend = tokenizers.Tokenizer.from_str(json.dumps(raw))
        _be(name, backend, config)
        config = CLASS_TOKENS[name] | config
    if backend.padding is not None:
        config.setdefault("pad_token", backend.padding["pad_token"])
    backend.no_padding()
    backend.no_truncation()
    try:
        special_tokens = _add_tokens(backend, root, config)
    except (TypeError, ValueError, AttributeError) as e:
        raise ValueError(f"{root}: its special tokens can't be read: {e}") from e
    backend.encode_special_tokens = config.get("split_special_tokens") is True
    return TokenizerFiles(backend, special_tokens, _templates(root, config))


def _check_cleanup(config: dict, backend: tokenizers.Tokenizer) -> None:
    """transformers strips spaces from decoded text where these ask for it; we decode token by token."""
    forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    is_bpe = isinstance(backend.model, tokenizers.models.BPE)
    if config.get("clean_up_tokenization_spaces") is True and (not is_bpe or config.get(forced) is True):
        raise ValueError(f"tokenizer_config.json: {'clean_up_tokenization_spaces' if not is_bpe else forced} is not "
                         "supported; set it to false")  # fmt: skip


def _be(name: str, backend: tokenizers.Tokenizer, config: dict) -> None:
    """Give the backend the parts that transformers' class of that name makes, whatever tokenizer.json says."""
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if name == "GemmaTokenizer":
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        prefix = config.get("add_prefix_space") in (None, True)
        scheme = "never" if not prefix else "always" if config.get("legacy") else "first"
        backend.normalizer = None
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=False)
        steps += [decoders.Strip(" ", left=1)] if prefix else []
    backend.decoder = decoders.Sequence(steps)


def _add_tokens(backend: tokenizers.Tokenizer, root: Path, config: dict) -> dict[str, str]:
    """Make the backend know every token the files name, in the order that gives new ones transformers' ids; the named
    ones. Where the files contradict each other, which one wins is transformers' choice too."""
    config = dict(config)
    if "additional_special_tokens" in config:  # the older name
        config.setdefault("extra_special_tokens", config.pop("additional_special_tokens"))
    own = {name: config.pop(name) for name in _own_names(config) if isinstance(config[name], str)}
    own |= _pop_named_extra(config)
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in config:
        added = {int(index): AddedToken(**token) for index, token in config["added_tokens_decoder"].items()}
    else:
        config |= _special_tokens_map(root, config)
        own |= _pop_named_extra(config)
        special = {str(config[name]) for name in STANDARD if config.get(name)}
        special |= {str(token) for token in config.get("extra_special_tokens") or []}
        for text, index in _read_json(root / "added_tokens.json").items():
            added[index] = AddedToken(text, normalized=text not in special, special=text in special)
        added |= backend.get_added_tokens_decoder()
        if config.get("additional_special_tokens") is not None:
            config.setdefault("extra_special_tokens", config["additional_special_tokens"])

    by_text = {str(token): token for token in added.values()}
    named = {name: _token(config[name]) for name in STANDARD if config.get(name) is not None}
    named = {name: by_text.get(str(token), token) for name, token in named.items()}
    named |= {
        name: _token(config[name]) for name in _own_names(config) if isinstance(config[name], str | dict | AddedToken)
    }
    named |= {name: _token(token) for name, token in own.items()}

    tokens: list[str | AddedToken] = [added[index] for index in sorted(added)]
    known = {*map(str, backend.get_added_tokens_decoder().values()), *map(str, tokens)}
    for token in (*named.values(), *map(_token, config.get("extra_special_tokens") or [])):
        if str(token) not in known and token not in tokens:
            tokens.append(token)
    names = {str(token) for token in named.values()}
    for i, token in enumerate(tokens):
        if isinstance(token, str):
            tokens[i] = AddedToken(token, special=True)
        elif str(token) in names:
            token.special = True
    backend.add_tokens(tokens)
    return {name: str(token) for name, token in named.items()}


def _own_names(config: dict) -> list[str]:
    """Names of tokens that only this model has."""
    return [name for name in config if name.endswith("_token") and name not in STANDARD]


def _pop_named_extra(config: dict) -> dict:
    """Extra tokens that have names; a list of them has none and stays."""
    return config.pop("extra_special_tokens") if isinstance(config.get("extra_special_tokens"), dict) else {}


def _special_tokens_map(root: Path, config: dict) -> dict:
    """special_tokens_map.json, read only where tokenizer_config.json has no added_tokens_decoder."""
    found = _read_json(root / "special_tokens_map.json")
    for name, value in found.items():
        if isinstance(value, dict) and name != "extra_special_tokens":
            found[name] = AddedToken(**value | {"special": True})
        elif isinstance(value, list) and name == "extra_special_tokens":
            before = list(config.get("extra_special_tokens") or [])
            new = [AddedToken(**token | {"special": True}) if isinstance(token, dict) else token for token in value]
            found[name] = before + [token for token in new if token not in before]
    return found


def _token(value: Any) -> str | AddedToken:
    if isinstance(value, dict) and value.get("__type") == "AddedToken":
        return AddedToken(**{name: field for name, field in value.items() if name != "__type"})
    if isinstance(value, str | AddedToken):
        return value
    raise ValueError(f"a token is text or an object of type AddedToken, not {value!r}")


def _templates(root: Path, config: dict) -> dict[str, str]:
    """Files go before tokenizer_config.json, and that before the processor's older file."""
    files = {"default": root / "chat_template.jinja"} if (root / "chat_template.jinja").is_file() else {}
    files |= {file.name.removesuffix(".jinja"): file for file in (root / "additional_chat_templates").glob("*.jinja")}
    if files:
        return {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    given = config.get("chat_template")
    if given is None:
        given = _read_json(root / "chat_template.json").get("chat_template")
    if isinstance(given, list):
        given = {str(entry.get("name")): entry.get("template") for entry in given if isinstance(entry, dict)}
    templates = given if isinstance(given, dict) else {} if given is None else {"default": given}
    if not all(isinstance(template, str) for template in templates.values()):
        raise ValueError(f"chat_template in {root} must be text, or texts by name")
    return templates


def _read_json(file: Path) -> dict:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{file} is not valid JSON: {e}") from e
    if isinstance(value, dict):
        return value
    raise ValueError(f"{file} holds no JSON object")
