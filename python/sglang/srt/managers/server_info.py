"""ServerInfo: what the HTTP process must know of the resolved arguments, the model and its limits."""

import msgspec


class ServerInfo(msgspec.Struct, kw_only=True):
    """Read from SchedulerReady.info: ResolvedArgs.public_dict() with facts about model and memory beside it. Its other
    entries are for /server_info alone."""

    model_path: str
    served_model_name: str
    tokenizer_path: str | None  # None with --skip-tokenizer-init
    load_format: str
    preferred_sampling_params: dict | None
    context_length: int  # tokens of prompt and output together that the model takes
    max_running_requests: int
    max_queued_requests: int
    speculative_num_steps: int | None = None

    max_req_input_len: int  # longest prompt, in tokens, that context and KV memory leave room for
    max_total_num_tokens: int  # full-attention tokens that KV memory could hold
    vocab_size: int
    eos_token_ids: list[int]
    generation_config: dict
    architectures: list[str]
    model_type: str
