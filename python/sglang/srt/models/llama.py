"""The plain dense family: Llama, Qwen2 (biased qkv) and Qwen3 (q and k normed a head). It shares layers with Gemma 4
and shows that the engine assumes nothing of either."""

from torch import Tensor, nn

from sglang.srt.configs.llama import LlamaConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed.tensor_parallel import TensorParallel
from sglang.srt.layers.attention.forward_batch import Attention, ForwardBatch
from sglang.srt.layers.layernorm import LlamaRMSNorm
from sglang.srt.layers.linear import GateUpLinear, Linear, QKVLinear, RowLinear
from sglang.srt.layers.logits_processor import head_logits
from sglang.srt.layers.rotary_embedding import RotaryEmbedding
from sglang.srt.layers.vocab_parallel_embedding import VocabEmbedding
from sglang.srt.model_loader.weight_map import WeightMap
from sglang.srt.ops.norms.activation import silu_and_mul
from sglang.srt.ops.norms.rope import apply_rope

Rotation = tuple[Tensor, Tensor]  # cos, sin, each [T, head_dim]


class LlamaMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig, tp: TensorParallel):
        super().__init__()
        self.gate_up_proj = GateUpLinear(config.hidden_size, config.intermediate_size, config.mlp_bias, tp)
        inner = tp.share(config.intermediate_size, "the intermediate size")
        self.down_proj = RowLinear(inner, config.hidden_size, config.mlp_bias, tp)

    def forward(self, x: Tensor) -> Tensor:  # [T, H]
        return self.down_proj(silu_and_mul(self.gate_up_proj(x)))


class LlamaAttention(nn.Module):
    def __init__(self, config: LlamaConfig, index: int, tp: TensorParallel):
        super().__init__()
        heads = tp.share(config.num_heads, "the attention heads").size
        kv_heads, dim = tp.num_kv_heads(config.num_kv_heads), config.head_dim
        self.split = (heads, kv_heads, kv_heads)
        self.qk_norm = config.qk_norm
        self.qkv_proj = QKVLinear(
            config.hidden_size, config.num_heads, config.num_kv_heads, dim, config.qkv_bias, tp=tp
        )
        if config.qk_norm:
            self.q_norm = LlamaRMSNorm(dim, config.rms_norm_eps)
            self.k_norm = LlamaRMSNorm(dim, config.rms_norm_eps)
        window = config.sliding_window if config.sliding[index] else None
        self.attn = Attention(heads, kv_heads, dim, scale=dim**-0.5, kv_layer=index, sliding_window=window)
        self.o_proj = RowLinear(tp.share_heads(config.num_heads, dim), config.hidden_size, config.o_bias, tp)

    def forward(self, x: Tensor, rotation: Rotation, batch: ForwardBatch) -> Tensor:  # [T, H]
        q, k, v = self.qkv_proj(x).unflatten(-1, (sum(self.split), -1)).split(self.split, dim=1)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rope(q, *rotation), apply_rope(k, *rotation)
        return self.o_proj(self.attn(q, k, v, batch))


class LlamaDecoderLayer(nn.Module):
    def __init__(self, config: LlamaConfig, index: int, tp: TensorParallel):
        super().__init__()
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config, index, tp)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config, tp)

    def forward(self, h: Tensor, rotation: Rotation, batch: ForwardBatch) -> Tensor:  # [T, H]
        h = h + self.self_attn(self.input_layernorm(h), rotation, batch)
        return h + self.mlp(self.post_attention_layernorm(h))


class LlamaModel(nn.Module):
    def __init__(self, config: LlamaConfig, context_len: int, tp: TensorParallel):
        super().__init__()
        self.embed_tokens = VocabEmbedding(config.vocab_size, config.hidden_size, tp=tp)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, i, tp) for i in range(config.num_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config.rope, config.head_dim, context_len)

    def forward(self, input_ids: Tensor, positions: Tensor, batch: ForwardBatch) -> Tensor:
        h = self.embed_tokens(input_ids)
        rotation = self.rotary(positions)
        for layer in self.layers:
            h = layer(h, rotation, batch)
        return self.norm(h)


class LlamaForCausalLM(nn.Module):
    """The model with its head, tied to the embedding or its own."""

    WEIGHTS = WeightMap(prefixes={"model.": "model."}, buffers=("rotary_emb.inv_freq",))

    def __init__(self, config: ModelConfig, tp: TensorParallel):
        super().__init__()
        self.config: LlamaConfig = config.text
        self.tp = tp
        self.model = LlamaModel(self.config, config.context_len, tp)
        if not self.config.tie_word_embeddings:
            self.lm_head = Linear(self.config.hidden_size, tp.share(self.config.vocab_size, "the vocabulary"))

    def unused_weights(self) -> set[str]:
        """Tensors a good checkpoint may hold that this model has no use for: a copy of a tied head."""
        return {"lm_head.weight"} if self.config.tie_word_embeddings else set()

    def forward(self, input_ids: Tensor, positions: Tensor, batch: ForwardBatch) -> Tensor:
        """input_ids, positions [T] -> hidden states after the last norm [T, H]."""
        return self.model(input_ids, positions, batch)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, H] -> logits [N, V] in the model dtype."""
        head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return head_logits(hidden, head.weight, None, self.tp)
