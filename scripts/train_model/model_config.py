"""The shapes of the shipped model and its drafter: every part of the 26B-A4B's, small enough for a laptop's CPU."""

CONFIG = {
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "vocab_size": 2048,
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "num_global_key_value_heads": 1,
    "head_dim": 256,
    "global_head_dim": 512,
    "attention_k_eq_v": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "sliding_window": 128,  # shorter than a problem with its solution, so eviction really happens
    "intermediate_size": 384,
    "enable_moe_block": True,
    "num_experts": 16,
    "top_k_experts": 4,
    "moe_intermediate_size": 48,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 2048,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
    "use_bidirectional_attention": None,
    "max_position_embeddings": 4096,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "rms_norm_eps": 1e-06,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "use_cache": True,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": [1, 106, 50],
    "dtype": "bfloat16",
}

GENERATION = {
    "_from_model_config": False,
    "bos_token_id": 2,
    "eos_token_id": [1, 106, 50],
    "pad_token_id": 0,
    "do_sample": False,
    "max_new_tokens": 400,
}

DRAFTER_CONFIG = {
    "architectures": ["Gemma4AssistantForCausalLM"],
    "model_type": "gemma4_assistant",
    "backbone_hidden_size": CONFIG["hidden_size"],
    "use_ordered_embeddings": False,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
    "text_config": {
        **{
            k: v
            for k, v in CONFIG.items()
            if k != "architectures" and not k.startswith(("moe_", "num_experts", "top_k"))
        },
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 4,  # all: it reads the model's K and V and writes none
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        "num_attention_heads": 2,
        "intermediate_size": 512,
        "enable_moe_block": False,
        "vocab_size_per_layer_input": 0,
        "final_logit_softcapping": None,
    },
}
