"""ServerInfo: what the scheduler process tells the others about the model and its limits once it is ready."""

import msgspec


class ServerInfo(msgspec.Struct, kw_only=True):
    """The contents of SchedulerReady.info. Fields beyond these are welcome there; /server_info shows them all."""

    server_args: dict  # ResolvedArgs.public_dict()
    context_len: int  # tokens of prompt and output together that the model takes
    max_req_input_len: int  # longest prompt, in tokens, that context and KV pools leave room for
    max_total_num_tokens: int  # size of the full-attention KV pool
    vocab_size: int
    eos_token_ids: list[int] = []
    generation_config: dict = {}
    architectures: list[str] = []
    model_type: str = ""
