"""Tiny random checkpoints in Hugging Face format, one for each variant of a family, for tests of models and engine.

Weights come from transformers' own classes, so a folder also serves as the oracle's. Norms, scales and layer scalars
are moved away from 1 (a forward that forgets one must differ), gently enough that float32 noise stays small.
"""

from pathlib import Path

import torch
from torch import nn

from sglang.test.tiny_tokenizer import make_model_folder

S, F = "sliding_attention", "full_attention"
VOCAB = 512  # above the tiny tokenizer's size
_BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "layer_types": [S, S, S, F],
    "sliding_window": 16,
    "max_position_embeddings": 512,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": VOCAB,
    "final_logit_softcapping": 30.0,
    "eos_token_id": 1,
}
_K_EQ_V = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
_MOE = {**_K_EQ_V, "enable_moe_block": True, "moe_intermediate_size": 32}
GEMMA4_VARIANTS: dict[str, dict] = {
    "moe_top2": {**_MOE, "num_experts": 8, "top_k_experts": 2},
    "moe_top4": {**_MOE, "num_experts": 16, "top_k_experts": 4},
    "dense_k_eq_v": {**_K_EQ_V, "num_attention_heads": 8, "num_key_value_heads": 4, "num_global_key_value_heads": 2},
    # donors: layers 3 (sliding) and 4 (full), the last of their kind below the shared ones
    "ple_shared_double_wide": {
        "num_hidden_layers": 8,
        "layer_types": [S, F, S, S, F, S, S, F],
        "num_kv_shared_layers": 3,
        "num_key_value_heads": 1,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 12,
    },
    "odd_layers": {
        **_MOE,
        "num_experts": 8,
        "top_k_experts": 2,
        "num_hidden_layers": 5,
        "layer_types": [S, F, S, S, F],
    },
    "small_window": {**_MOE, "num_experts": 8, "top_k_experts": 2, "sliding_window": 5},
}
UNIFIED_SIZES = "dense_k_eq_v"  # the 12B is of this kind
LLAMA_VARIANTS = ("llama", "llama3_rope", "qwen2", "qwen3")


def make_tiny_gemma4(
    path: str | Path,
    variant: str,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    tokenizer: bool = False,
    wrapped: bool = False,
    **changes,
) -> Path:
    """Save a random Gemma 4 text model of one of GEMMA4_VARIANTS to `path`; with `tokenizer`, one that fits it.

    `changes` are fields of its config; `wrapped`: as the text part of a multimodal model that has no other parts.
    """
    from transformers import Gemma4Config, Gemma4ForCausalLM, Gemma4ForConditionalGeneration, Gemma4TextConfig

    torch.manual_seed(seed)
    text = Gemma4TextConfig(**{**_BASE, **GEMMA4_VARIANTS[variant], **changes})
    model = Gemma4ForConditionalGeneration(Gemma4Config(text_config=text)) if wrapped else Gemma4ForCausalLM(text)
    return _save(model, Path(path), dtype, tokenizer)


def make_tiny_unified(
    path: str | Path, dtype: torch.dtype = torch.bfloat16, seed: int = 0, wrapped: bool = True, **changes
) -> Path:
    """Save a random model of the 12B's classes to `path`, with its vision and audio embedders if `wrapped`."""
    from transformers.models import gemma4_unified as unified

    torch.manual_seed(seed)
    text = unified.Gemma4UnifiedTextConfig(**{**_BASE, **GEMMA4_VARIANTS[UNIFIED_SIZES], **changes})
    if not wrapped:
        return _save(unified.Gemma4UnifiedForCausalLM(text), Path(path), dtype, tokenizer=False)
    vision = unified.Gemma4UnifiedVisionConfig(
        patch_size=2, mm_embed_dim=32, mm_posemb_size=8, output_proj_dims=text.hidden_size
    )
    config = unified.Gemma4UnifiedConfig(
        text_config=text, vision_config=vision, audio_config=unified.Gemma4UnifiedAudioConfig(audio_embed_dim=24)
    )
    return _save(unified.Gemma4UnifiedForConditionalGeneration(config), Path(path), dtype, tokenizer=False)


def make_tiny_assistant(
    path: str | Path, target: str, ordered: bool = False, dtype: torch.dtype = torch.bfloat16, seed: int = 1
) -> Path:
    """Save a random MTP drafter to `path`, for make_tiny_gemma4's model of variant `target`, or make_tiny_unified's
    ("unified"); `ordered`: with a centroid head (64 of the 512 tokens are candidates)."""
    from transformers.models import gemma4, gemma4_assistant, gemma4_unified, gemma4_unified_assistant

    if target == "unified":
        config_class = gemma4_unified_assistant.Gemma4UnifiedAssistantConfig
        model_class = gemma4_unified_assistant.Gemma4UnifiedAssistantForCausalLM
        text_class = gemma4_unified.Gemma4UnifiedTextConfig
    else:
        config_class = gemma4_assistant.Gemma4AssistantConfig
        model_class = gemma4_assistant.Gemma4AssistantForCausalLM
        text_class = gemma4.Gemma4TextConfig
    sizes = {**_BASE, **GEMMA4_VARIANTS[UNIFIED_SIZES if target == "unified" else target]}
    shared = ("num_key_value_heads", "num_global_key_value_heads", "attention_k_eq_v", "sliding_window")
    text = {
        **_BASE,
        **{name: sizes[name] for name in shared if name in sizes},
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": sizes["num_attention_heads"] // (1 if "attention_k_eq_v" in sizes else 2),
        "vocab_size_per_layer_input": 0,
        "final_logit_softcapping": None,
    }
    config = config_class(
        text_config=text_class(**text),
        backbone_hidden_size=sizes["hidden_size"],
        use_ordered_embeddings=ordered,
        num_centroids=32,
        centroid_intermediate_top_k=4,
    )
    torch.manual_seed(seed)
    model = model_class(config)
    return _save(model, Path(path), dtype, tokenizer=False, q_scale=0.4)  # chained steps multiply noise


def make_tiny_llama(
    path: str | Path,
    variant: str = "llama",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    tokenizer: bool = False,
    tied: bool = False,
) -> Path:
    """Save a random plain dense model of one of LLAMA_VARIANTS to `path`; with `tokenizer`, one that fits it."""
    from transformers import AutoModelForCausalLM
    from transformers.models.llama import LlamaConfig
    from transformers.models.qwen2 import Qwen2Config
    from transformers.models.qwen3 import Qwen3Config

    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "bos_token_id": 2,
        "eos_token_id": 1,
    }
    llama3 = {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    configs = {
        "llama": lambda: LlamaConfig(**sizes),
        "llama3_rope": lambda: LlamaConfig(**sizes, rope_parameters={**llama3, "original_max_position_embeddings": 64}),
        "qwen2": lambda: Qwen2Config(
            **sizes, use_sliding_window=True, sliding_window=16, max_window_layers=1, rope_theta=1e6
        ),
        "qwen3": lambda: Qwen3Config(**sizes, head_dim=32),
    }
    torch.manual_seed(seed)
    return _save(AutoModelForCausalLM.from_config(configs[variant]()), Path(path), dtype, tokenizer)


def load_oracle(path: str | Path, dtype: torch.dtype | str) -> nn.Module:
    """transformers' model of a folder; `dtype` "auto" is the folder's.

    Its routers pick experts by torch.topk, whose order among ties is undefined: here they go to the lowest id, as in
    ours, so that greedy tokens compare one for one.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRouter

    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Gemma4TextRouter):
            module.register_forward_hook(_ties_to_lowest_id)
    return model


def _ties_to_lowest_id(router: nn.Module, inputs: tuple, outputs: tuple) -> tuple:
    probs, _, _ = outputs
    weights, ids = torch.sort(probs, dim=-1, descending=True, stable=True)
    weights, ids = weights[:, : router.config.top_k_experts], ids[:, : router.config.top_k_experts]
    return probs, weights / weights.sum(-1, keepdim=True) * router.per_expert_scale[ids], ids


@torch.no_grad()
def _save(model: nn.Module, path: Path, dtype: torch.dtype, tokenizer: bool, q_scale: float = 1.0) -> Path:
    """`q_scale` multiplies the weights of q_norm: below 1 attention is less sharp."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if "inv_freq" in name or "embed_scale" in name:
            continue  # derived, not saved
        if "token_ordering" in name:
            tensor.copy_(torch.randperm(len(tensor)))
        elif "layer_scalar" in name:
            tensor.uniform_(0.7, 1.3)
        elif name.endswith(".bias"):
            tensor.normal_(0, 0.2)
        elif "q_norm" in name or "k_norm" in name:
            tensor.uniform_(0.4, 0.9)  # scores are not scaled down: at 1.4 a softmax this sharp amplifies the noise
            if "q_norm" in name:
                tensor.mul_(q_scale)
        elif name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
            tensor.uniform_(2, 4)  # layers outweigh the embedding, or a tied head only repeats the last token
        elif tensor.dim() == 1:  # norms and scales
            tensor.uniform_(0.6, 1.4)
        elif "embed_tokens" in name:
            tensor.normal_(0, 1.0 if "per_layer" in name else 0.05)
        elif "router.proj" in name:
            tensor.normal_(0, 2.0)
        else:
            tensor.normal_(0, tensor.shape[-1] ** -0.5)
    path.mkdir(parents=True, exist_ok=True)
    model.to(dtype).save_pretrained(path)
    if tokenizer:
        make_model_folder(path)
    return path
