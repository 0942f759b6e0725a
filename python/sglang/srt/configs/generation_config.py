"""generation_config.json: what of it the server takes over, what it refuses, and what it names at start because it has
no effect here. No torch: the HTTP process reads it too."""

from typing import Any

from sglang.srt.sampling.sampling_params import SamplingParams

# as a request would say them
SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
# fields that change what transformers generates and that nothing here reads, with the values under which they do not
NOT_READ: dict[str, tuple] = {
    "max_length": (None, 20),
    "max_new_tokens": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "max_time": (None,),
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "num_return_sequences": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "dola_layers": (None,),
    "top_h": (None,),
    "typical_p": (None, 1, 1.0),
    "epsilon_cutoff": (None, 0, 0.0),
    "eta_cutoff": (None, 0, 0.0),
    "encoder_repetition_penalty": (None, 1, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "begin_suppress_tokens": (None, []),
    "sequence_bias": (None, {}, []),
    "guidance_scale": (None, 1, 1.0),
    "watermarking_config": (None,),
    "constraints": (None,),
    "force_words_ids": (None,),
    "token_healing": (None, False),
    "remove_invalid_values": (None, False),
    "prompt_lookup_num_tokens": (None,),
    "use_mtp": (None, False),
}


def sampling_defaults(config: dict) -> dict[str, Any]:
    """What a request leaves out, by names of SamplingParams."""
    given = {name: config[name] for name in SAMPLING_FIELDS if config.get(name) is not None}
    if config.get("do_sample") is False:  # greedy, whatever else it says
        given = {name: value for name, value in given.items() if name == "repetition_penalty"} | {"temperature": 0.0}
    if given.get("top_k") == 0:  # transformers' "all"
        given["top_k"] = -1
    if isinstance(given.get("top_p"), int | float) and given["top_p"] > 1:  # without effect in transformers
        given["top_p"] = 1.0
    if config.get("stop_strings") is not None:
        given["stop"] = config["stop_strings"]
    return given


def check_defaults(config: dict) -> None:
    """ValueError for a default that no request may ask for: every request would be refused for what it did not say."""
    try:
        SamplingParams.from_request(sampling_defaults(config))
    except ValueError as e:
        raise ValueError(f"generation_config.json: {e} (or start with --sampling-defaults openai)") from None


def eos_token_ids(*sources: dict) -> list[int]:
    """Every end-of-sequence id any of the files names, ascending (copies of Gemma 4's disagree: take the union)."""
    ids: set[int] = set()
    for source in sources:
        value = source.get("eos_token_id")
        value = [] if value is None else value if isinstance(value, list) else [value]
        if not _are_ids(value):
            raise ValueError(f"eos_token_id must be a token id or a list of them, got {value!r}")
        ids.update(value)
    return sorted(ids)


def never_sampled(config: dict, eos_ids: list[int], vocab_size: int) -> list[int]:
    """suppress_tokens, and bad words of one token that end nothing. ValueError for what is no token's id."""
    ids = config.get("suppress_tokens")
    words = config.get("bad_words_ids")
    ids, words = [] if ids is None else ids, [] if words is None else words
    for name, lists in (("suppress_tokens", [ids]), ("bad_words_ids", words)):
        is_list = isinstance(lists, list) and all(isinstance(word, list) and _are_ids(word) for word in lists)
        if not is_list or any(token >= vocab_size for word in lists for token in word):
            raise ValueError(
                f"generation_config.json: {name} must list ids of tokens below {vocab_size}, got {config[name]!r}"
            )
    return sorted({*ids, *(word[0] for word in words if len(word) == 1 and word[0] not in eos_ids)})


def without_effect(config: dict) -> dict[str, Any]:
    """The fields that make transformers generate otherwise than this server does."""
    found = {name: config[name] for name, same in NOT_READ.items() if name in config and config[name] not in same}
    words = config.get("bad_words_ids") or []
    return found | ({"bad_words_ids": words} if any(len(word) > 1 for word in words) else {})


def _are_ids(values: list) -> bool:
    return all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in values)
