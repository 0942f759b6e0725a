"""The training step's forward: the same numbers as transformers' `Gemma4ForCausalLM`, over the same parameters, faster.

What differs is only how it is computed. All experts run as one dense product and the router's weights, zero for the
experts not chosen, scale what each adds: at 16 experts of width 48 that beats sorting tokens. Attention is a plain
product and softmax that the compiler fuses with the mask. `test_fast_forward.py` holds it equal to transformers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6
MASKED = -30000.0


def norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS)
    return (y if weight is None else y * weight.float()).to(x.dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # x [B, T, heads, D], cos and sin [T, 1, D]
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def keys_values(x: Tensor, p: dict[str, Tensor], cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, T, H] -> K and V as a server caches them, [B, T, D]. One KV head; without v_proj, V is K's projection."""
    k_raw = F.linear(x, p["self_attn.k_proj.weight"])[:, :, None]
    v_raw = F.linear(x, p["self_attn.v_proj.weight"])[:, :, None] if "self_attn.v_proj.weight" in p else k_raw
    return rope(norm(k_raw, p["self_attn.k_norm.weight"]), cos, sin).squeeze(2), norm(v_raw).squeeze(2)


def attention(x: Tensor, p: dict[str, Tensor], doc: Tensor, cos: Tensor, sin: Tensor, window: int) -> Tensor:
    """x [B, T, H]; doc [B, T] numbers the documents of a row. window 0: full attention."""
    batch, length, _ = x.shape
    dim = p["self_attn.q_norm.weight"].numel()
    q = F.linear(x, p["self_attn.q_proj.weight"]).view(batch, length, -1, dim)
    q = rope(norm(q, p["self_attn.q_norm.weight"]), cos, sin)
    k, v = keys_values(x, p, cos, sin)
    heads = q.shape[2]
    # All heads share the one KV head, so (position, head) is one long row axis of a single product.
    scores = torch.bmm(q.reshape(batch, length * heads, dim), k.transpose(1, 2)).view(batch, length, heads, length)
    at = torch.arange(length, device=x.device)
    distance = at[:, None] - at[None, :]
    seen = (distance >= 0) & (distance < (window or length))
    seen = seen[None] & (doc[:, :, None] == doc[:, None, :])
    probs = torch.softmax(torch.where(seen[:, :, None, :], scores.float(), MASKED), -1).to(x.dtype)
    out = torch.bmm(probs.view(batch, length * heads, length), v)
    return F.linear(out.view(batch, length, heads * dim), p["self_attn.o_proj.weight"])


def route(h: Tensor, p: dict[str, Tensor], top_k: int) -> tuple[Tensor, Tensor]:
    """The weight of each expert, [B, T, E] fp32, zero if not chosen; and the load-balance loss (1 when even)."""
    r = norm(h) * p["router.scale"] * h.shape[-1] ** -0.5
    probs = torch.softmax(F.linear(r, p["router.proj.weight"]), -1, dtype=torch.float32)
    least = probs.topk(top_k, -1).values[..., -1:]
    chosen = probs >= least
    weights = torch.where(chosen, probs, 0.0)
    weights = weights / weights.sum(-1, keepdim=True) * p["router.per_expert_scale"].float()
    balance = (chosen.float().mean((0, 1)) * probs.mean((0, 1))).sum() * probs.shape[-1] / top_k
    return weights, balance


def experts(x: Tensor, weights: Tensor, p: dict[str, Tensor]) -> Tensor:
    gate_up, down = p["experts.gate_up_proj"], p["experts.down_proj"]  # [E, 2I, H], [E, H, I]
    count, width = down.shape[0], down.shape[2]
    gate, up = F.linear(x, gate_up.reshape(-1, x.shape[-1])).view(*x.shape[:2], count, 2 * width).chunk(2, -1)
    inner = F.gelu(gate, approximate="tanh") * up * weights[..., None].to(x.dtype)
    return F.linear(
        inner.reshape(*x.shape[:2], count * width), down.permute(1, 0, 2).reshape(x.shape[-1], count * width)
    )


def layer(
    h: Tensor, p: dict[str, Tensor], doc: Tensor, cos: Tensor, sin: Tensor, window: int, top_k: int
) -> tuple[Tensor, Tensor]:
    p = {name: value.to(h.dtype) for name, value in p.items()}
    a = attention(norm(h, p["input_layernorm.weight"]), p, doc, cos, sin, window)
    h = h + norm(a, p["post_attention_layernorm.weight"])
    x = norm(h, p["pre_feedforward_layernorm.weight"])
    m = F.gelu(F.linear(x, p["mlp.gate_proj.weight"]), approximate="tanh") * F.linear(x, p["mlp.up_proj.weight"])
    m = F.linear(m, p["mlp.down_proj.weight"])
    weights, balance = route(h, p, top_k)
    y = experts(norm(h, p["pre_feedforward_layernorm_2.weight"]), weights, p)
    m = norm(m, p["post_feedforward_layernorm_1.weight"]) + norm(y, p["post_feedforward_layernorm_2.weight"])
    return (h + norm(m, p["post_feedforward_layernorm.weight"])) * p["layer_scalar"], balance


def head_loss(
    h: Tensor, norm_weight: Tensor, embedding: Tensor, targets: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted mean loss, and the plain mean over the tokens of full weight (those the model must write)."""
    logits = F.linear(norm(h, norm_weight), embedding.to(h.dtype)).float()
    logits = 30.0 * torch.tanh(logits / 30.0)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(weights)
    answer = (weights == 1.0).float()
    return (losses * weights).sum() / weights.sum(), (losses * answer).sum() / answer.sum().clamp(min=1)


class FastForward:
    """Runs `model` (transformers' Gemma4ForCausalLM, one KV head everywhere) in `dtype`, compiled where asked."""

    def __init__(self, model, config: dict, dtype: torch.dtype, compile: bool):
        self.model, self.inner, self.config, self.dtype = model, model.model, config, dtype
        wrap = (lambda f: torch.compile(f, fullgraph=True, dynamic=False)) if compile else (lambda f: f)
        self.layer = {kind: wrap(lambda *args: layer(*args)) for kind in set(config["layer_types"])}
        self.head_loss = wrap(head_loss)
        self.parameters = []
        for block in self.inner.layers:
            own = dict(block.named_parameters())
            own.setdefault("layer_scalar", block.layer_scalar)
            self.parameters.append(own)
        self.tables: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def rope_table(self, kind: str, length: int) -> tuple[Tensor, Tensor]:
        if (kind, length) not in self.tables:
            weight = self.inner.embed_tokens.weight
            at = torch.arange(length, device=weight.device)[None]
            cos, sin = self.inner.rotary_emb(weight[:1].to(self.dtype)[None], at, kind)
            self.tables[kind, length] = cos[0][:, None].detach(), sin[0][:, None].detach()
        return self.tables[kind, length]

    def embed(self, ids: Tensor) -> Tensor:
        scale = torch.tensor(self.config["hidden_size"] ** 0.5, dtype=self.dtype, device=ids.device)
        return F.embedding(ids, self.inner.embed_tokens.weight).to(self.dtype) * scale

    def streams(self, ids: Tensor, doc: Tensor) -> tuple[list[Tensor], Tensor]:
        """ids, doc [B, T] -> the stream before each layer and after the last, [B, T, H]; mean load-balance loss."""
        h, balances = [self.embed(ids)], []
        for kind, p in zip(self.config["layer_types"], self.parameters, strict=True):
            window = self.config["sliding_window"] if kind == "sliding_attention" else 0
            out, balance = self.layer[kind](
                h[-1], p, doc, *self.rope_table(kind, ids.shape[1]), window, self.config["top_k_experts"]
            )
            h.append(out)
            balances.append(balance)
        return h, torch.stack(balances).mean()

    def loss(self, ids: Tensor, doc: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, balance = self.streams(ids, doc)
        return *self.head_loss(h[-1], self.inner.norm.weight, self.inner.embed_tokens.weight, targets, weights), balance
