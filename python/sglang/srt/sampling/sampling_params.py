"""Sampling parameters of one request: names, defaults and bounds as users of upstream know them."""

import msgspec


class SamplingParams(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What a request asks of the sampler and of its stopping rules. `None` from outside means the default."""

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    stop: list[str] = []
    stop_token_ids: list[int] = []
    stop_regex: list[str] = []
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1  # -1 = all
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[str, float] | None = None  # token id (as text, the JSON way) -> added to its logit
    n: int = 1
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    no_stop_trim: bool = False
    stream_interval: int | None = None
    sampling_seed: int | None = None
    custom_params: dict | None = None
