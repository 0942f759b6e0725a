"""Gemma 4, every text variant: mixture of experts (26B-A4B), dense with K = V (31B), per-layer inputs with shared KV
and double-wide MLPs (E2B, E4B). It knows nothing of requests, slots or files; the layers do the arithmetic.

Module names are the checkpoint's, so the weight map is what they do not say (see `WEIGHTS`).
"""

import torch
from torch import Tensor, nn

from sglang.srt.configs.gemma4 import Gemma4LayerConfig, Gemma4TextConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed.tensor_parallel import TensorParallel
from sglang.srt.layers.attention.forward_batch import Attention, ForwardBatch
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import GateUpLinear, Linear, QKVLinear, RowLinear
from sglang.srt.layers.logits_processor import head_logits
from sglang.srt.layers.moe.experts import Experts
from sglang.srt.layers.moe.router import Router
from sglang.srt.layers.rotary_embedding import RotaryEmbedding
from sglang.srt.layers.side_by_side import side_by_side
from sglang.srt.layers.vocab_parallel_embedding import VocabEmbedding
from sglang.srt.model_loader.weight_map import WeightMap
from sglang.srt.ops.norms.activation import gelu_tanh_and_mul
from sglang.srt.ops.norms.elementwise import gelu_tanh
from sglang.srt.ops.norms.qkv_norm_rope import qkv_norm_rope
from sglang.srt.ops.norms.residual_norms import ExpertSum, LayerEnd, MoeReaders, add_norm, add_norm_moe

Rotation = tuple[Tensor, Tensor]  # cos, sin, each [T, head_dim]


class Gemma4MLP(nn.Module):
    """down(gelu_tanh(gate(x)) * up(x)): this rank's part of the sum."""

    def __init__(self, hidden_size: int, intermediate_size: int, tp: TensorParallel):
        super().__init__()
        self.gate_up_proj = GateUpLinear(hidden_size, intermediate_size, tp=tp)
        self.down_proj = RowLinear(tp.share(intermediate_size, "the intermediate size"), hidden_size, tp=tp)

    def forward(self, x: Tensor) -> Tensor:  # [T, H]
        return self.down_proj.partial(gelu_tanh_and_mul(self.gate_up_proj(x)))


class Gemma4Attention(nn.Module):
    """A layer with its own KV. The scale of q . k is exactly 1."""

    def __init__(self, config: Gemma4TextConfig, layer: Gemma4LayerConfig, tp: TensorParallel):
        super().__init__()
        self.num_heads = tp.share(config.num_heads, "the attention heads").size
        self.eps = config.rms_norm_eps
        hidden, bias = config.hidden_size, config.attention_bias
        self.qkv_proj = QKVLinear(
            hidden, config.num_heads, layer.num_kv_heads, layer.head_dim, bias, has_v=not layer.k_eq_v, tp=tp
        )
        self.q_norm = RMSNorm(layer.head_dim, self.eps)
        self.k_norm = RMSNorm(layer.head_dim, self.eps)
        self.attn = _attention(config, layer, tp)
        self.o_proj = RowLinear(tp.share_heads(config.num_heads, layer.head_dim), hidden, bias, tp)

    def forward(self, x: Tensor, rotation: Rotation, batch: ForwardBatch) -> Tensor:  # [T, H]
        qkv, kv = self.qkv_proj(x), batch.kv_slots(self.attn.kv_layer)
        q = qkv_norm_rope(qkv, self.q_norm.weight, self.k_norm.weight, self.num_heads, *rotation, self.eps, kv)
        return self.o_proj(self.attn(q, None, None, batch))


class Gemma4SharedAttention(nn.Module):
    """A layer that has queries only and reads its donor's KV."""

    def __init__(self, config: Gemma4TextConfig, layer: Gemma4LayerConfig, tp: TensorParallel):
        super().__init__()
        self.num_heads, self.eps = tp.share(config.num_heads, "the attention heads").size, config.rms_norm_eps
        heads = tp.share_heads(config.num_heads, layer.head_dim)
        self.q_proj = Linear(config.hidden_size, heads, config.attention_bias)
        self.q_norm = RMSNorm(layer.head_dim, self.eps)
        self.attn = _attention(config, layer, tp)
        self.o_proj = RowLinear(heads, config.hidden_size, config.attention_bias, tp)

    def forward(self, x: Tensor, rotation: Rotation, batch: ForwardBatch) -> Tensor:  # [T, H]
        q = qkv_norm_rope(self.q_proj(x), self.q_norm.weight, None, self.num_heads, *rotation, self.eps, None)
        return self.o_proj(self.attn(q, None, None, batch))


def _attention(config: Gemma4TextConfig, layer: Gemma4LayerConfig, tp: TensorParallel) -> Attention:
    return Attention(
        num_heads=tp.share(config.num_heads, "the attention heads").size,
        num_kv_heads=tp.num_kv_heads(layer.num_kv_heads),
        head_dim=layer.head_dim,
        scale=1.0,
        kv_layer=layer.kv_layer,
        sliding_window=config.sliding_window if layer.sliding else None,
    )


class Gemma4DecoderLayer(nn.Module):
    def __init__(self, config: Gemma4TextConfig, layer: Gemma4LayerConfig, tp: TensorParallel):
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.tp, self.eps = tp, eps
        self.kind = layer.kind
        self.is_moe = config.num_experts > 0
        self.has_ple = config.ple_size > 0
        self.input_layernorm = RMSNorm(hidden, eps)
        self.self_attn = (Gemma4Attention if layer.owns_kv else Gemma4SharedAttention)(config, layer, tp)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.pre_feedforward_layernorm = RMSNorm(hidden, eps)
        self.mlp = Gemma4MLP(hidden, layer.intermediate_size, tp)
        if self.is_moe:
            self.router = Router(hidden, config.num_experts, config.top_k_experts, eps, config.float32_router_logits)
            self.experts = Experts(config.num_experts, hidden, config.moe_intermediate_size, tp)
            self.pre_feedforward_layernorm_2 = RMSNorm(hidden, eps)
            self.post_feedforward_layernorm_1 = RMSNorm(hidden, eps)
            self.post_feedforward_layernorm_2 = RMSNorm(hidden, eps)
        self.post_feedforward_layernorm = RMSNorm(hidden, eps)
        if self.has_ple:
            self.per_layer_input_gate = Linear(hidden, config.ple_size)
            self.per_layer_projection = Linear(config.ple_size, hidden)
            self.post_per_layer_input_norm = RMSNorm(hidden, eps)
        self.register_buffer("layer_scalar", torch.empty(1))  # in the checkpoint, hence persistent

    def forward(
        self, h: Tensor, x: Tensor, rotation: Rotation, ple: Tensor | None, batch: ForwardBatch, next_norm: RMSNorm
    ) -> tuple[Tensor, Tensor]:
        """h [T, H] residual stream, x = input_layernorm(h), rotation of this kind of layer, ple [T, P] this layer's
        per-layer input or None -> h after this layer, and next_norm(h): a norm is made by the kernel that makes h."""
        a = self.self_attn(x, rotation, batch)
        if self.is_moe:  # MLP, experts and router all read h, each through a norm of its own
            h, inputs = add_norm_moe(h, a, self.post_attention_layernorm.weight, self._readers(), self.eps)
            weights, ids = self.router(h, inputs.router)  # before the MLP's products, which would hold it up
            parts = side_by_side(
                lambda: self.mlp(inputs.mlp), lambda: self.experts(inputs.experts, weights, ids), inputs.mlp
            )
            m, y = self.tp.all_reduce_pair(*parts)
            experts = ExpertSum(y, self.post_feedforward_layernorm_1.weight, self.post_feedforward_layernorm_2.weight)
        else:
            before_mlp = LayerEnd(next_norm=self.pre_feedforward_layernorm.weight)
            h, x = add_norm(h, a, self.post_attention_layernorm.weight, self.eps, end=before_mlp)
            m, experts = self.tp.all_reduce(self.mlp(x)), None
        end = LayerEnd(self.layer_scalar, next_norm.weight)  # the scalar is for the residual too
        if not self.has_ple:
            return add_norm(h, m, self.post_feedforward_layernorm.weight, self.eps, experts, end)
        h, _ = add_norm(h, m, self.post_feedforward_layernorm.weight, self.eps, experts)
        p = self.per_layer_projection(gelu_tanh(self.per_layer_input_gate(h)) * ple)  # the gate reads h without a norm
        return add_norm(h, p, self.post_per_layer_input_norm.weight, self.eps, end=end)

    def _readers(self) -> MoeReaders:
        norms = self.pre_feedforward_layernorm.weight, self.pre_feedforward_layernorm_2.weight
        return MoeReaders(*norms, self.router.scale, self.router.root)


def run_layers(
    layers: nn.ModuleList,
    norm: RMSNorm,
    h: Tensor,
    rotations: dict[str, Rotation],
    ple: tuple[Tensor, ...] | None,
    batch: ForwardBatch,
) -> Tensor:
    """h [T, H] through decoder layers and the norm after the last; ple [T, P] a layer, or None."""
    norms = [*(layer.input_layernorm for layer in layers), norm]
    x = norms[0](h)
    for i, layer in enumerate(layers):
        h, x = layer(h, x, rotations[layer.kind], None if ple is None else ple[i], batch, norms[i + 1])
    return x


class PerLayerInputs(nn.Module):
    """One vector [P] for each token and layer, of the token's id and of its embedding (E2B, E4B)."""

    def __init__(self, config: Gemma4TextConfig, tp: TensorParallel):
        super().__init__()
        self.shape = (len(config.layers), config.ple_size)
        width = self.shape[0] * self.shape[1]
        self.embed_tokens_per_layer = VocabEmbedding(config.ple_vocab_size, width, scale=config.ple_size**0.5, tp=tp)
        self.per_layer_model_projection = Linear(config.hidden_size, width)
        self.projection_scale = config.hidden_size**-0.5
        self.per_layer_projection_norm = RMSNorm(config.ple_size, config.rms_norm_eps)

    def forward(self, input_ids: Tensor, embeds: Tensor) -> Tensor:
        """input_ids [T], embeds [T, H] (scaled) -> [T, layers, P]."""
        identity = self.embed_tokens_per_layer(input_ids).unflatten(-1, self.shape)
        context = self.per_layer_model_projection(embeds) * self.projection_scale
        context = self.per_layer_projection_norm(context.unflatten(-1, self.shape))
        return (context + identity) * 2.0**-0.5


class Gemma4Model(nn.Module):
    def __init__(self, config: Gemma4TextConfig, context_len: int, tp: TensorParallel):
        super().__init__()
        self.embed_tokens = VocabEmbedding(config.vocab_size, config.hidden_size, scale=config.hidden_size**0.5, tp=tp)
        self.per_layer_inputs = PerLayerInputs(config, tp) if config.ple_size else None
        self.layers = nn.ModuleList(Gemma4DecoderLayer(config, layer, tp) for layer in config.layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        head_dims = {layer.kind: layer.head_dim for layer in config.layers}
        self.rotary = nn.ModuleDict(
            {kind: RotaryEmbedding(config.rope[kind], dim, context_len) for kind, dim in head_dims.items()}
        )

    def embed(self, input_ids: Tensor) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """input_ids [T] -> what the first layer reads [T, H], and [T, P] for each layer, or None."""
        h = self.embed_tokens(input_ids)
        return h, None if self.per_layer_inputs is None else self.per_layer_inputs(input_ids, h).unbind(1)

    def forward(self, input_ids: Tensor, positions: Tensor, batch: ForwardBatch) -> Tensor:
        h, ple = self.embed(input_ids)
        rotations = {kind: rotary(positions) for kind, rotary in self.rotary.items()}
        return run_layers(self.layers, self.norm, h, rotations, ple, batch)


class Gemma4ForCausalLM(nn.Module):
    """The text model with its head, tied to the embedding or its own."""

    WEIGHTS = WeightMap(
        # multimodal files have the first prefix, text-only ones the second
        prefixes={"model.language_model.": "model.", "model.": "model."},
        renamed={
            "model.embed_tokens_per_layer.": "model.per_layer_inputs.embed_tokens_per_layer.",
            "model.per_layer_model_projection.": "model.per_layer_inputs.per_layer_model_projection.",
            "model.per_layer_projection_norm.": "model.per_layer_inputs.per_layer_projection_norm.",
        },
        other_modalities=(
            "model.vision_tower.",
            "model.embed_vision.",
            "model.audio_tower.",
            "model.embed_audio.",
            "model.vision_embedder.",  # the 12B's, which has no towers
            "vision_embedder.",
        ),
    )

    def __init__(self, config: ModelConfig, tp: TensorParallel):
        super().__init__()
        self.config: Gemma4TextConfig = config.text
        self.tp = tp
        self.model = Gemma4Model(self.config, config.context_len, tp)
        if not self.config.tie_word_embeddings:
            self.lm_head = Linear(self.config.hidden_size, tp.share(self.config.vocab_size, "the vocabulary"))

    def unused_weights(self) -> set[str]:
        """Tensors a good checkpoint may hold that this model has no use for: a copy of the tied head, and K and V of
        layers that read another layer's."""
        head = {"lm_head.weight"} if self.config.tie_word_embeddings else set()
        kv = ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias", "k_norm.weight")
        shared = (layer.index for layer in self.config.layers if not layer.owns_kv)
        return head | {f"model.layers.{i}.self_attn.{name}" for i in shared for name in kv}

    def forward(self, input_ids: Tensor, positions: Tensor, batch: ForwardBatch) -> Tensor:
        """input_ids, positions [T] -> hidden states after the last norm [T, H]."""
        return self.model(input_ids, positions, batch)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, H] -> logits [N, V] in the model dtype, capped."""
        head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return head_logits(hidden, head.weight, self.config.final_logit_softcap, self.tp)
