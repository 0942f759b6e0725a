"""The drafter's forward over many rounds at once: the same numbers as transformers' `Gemma4AssistantForCausalLM`.

A round starts when the model's newest token (the bonus token, index n of its row) is known but not yet in the cache:
the drafter guesses tokens n + 1, n + 2, ... one step at a time. Its layers have queries only and read K and V of the
model's last sliding and last full layer, at the n tokens before. Every index of a row may start a round, and all rounds
of a row share its K and V, so a batch of rounds is a few plain products. `test_drafter_forward.py` holds it equal.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fast_forward import MASKED, FastForward, keys_values, norm, rope
from torch import Tensor

KINDS = ("sliding_attention", "full_attention")


@dataclass
class TargetStates:
    """What the drafter and its loss read of the model, over packed rows of tokens."""

    ids: Tensor  # [B, T]
    doc: Tensor  # [B, T], numbers of documents
    hidden: Tensor  # [B, T, H], after the last norm
    kv: dict[str, tuple[Tensor, Tensor]]  # kind of layer: K and V as cached, [B, T, D]


@torch.no_grad()
def target_states(target: FastForward, ids: Tensor, doc: Tensor) -> TargetStates:
    streams, _ = target.streams(ids, doc)
    kinds, kv = target.config["layer_types"], {}
    for kind in KINDS:
        last = len(kinds) - 1 - kinds[::-1].index(kind)
        p = {name: value.to(target.dtype) for name, value in target.parameters[last].items()}
        x = norm(streams[last], p["input_layernorm.weight"])
        kv[kind] = keys_values(x, p, *target.rope_table(kind, ids.shape[1]))
    return TargetStates(ids, doc, norm(streams[-1], target.inner.norm.weight), kv)


@torch.no_grad()
def target_logits(target: FastForward, hidden: Tensor) -> Tensor:
    """hidden after the last norm [..., H] -> fp32 [..., V]."""
    logits = F.linear(hidden, target.inner.embed_tokens.weight.to(hidden.dtype)).float()
    return 30.0 * torch.tanh(logits / 30.0)


@dataclass
class Rounds:
    """A rounds in each of B rows. What stays the same in all steps of a round, its position included."""

    kv: dict[str, tuple[Tensor, Tensor]]  # [B, T, D]
    seen: dict[str, Tensor]  # [B, A, T]: keys each round may read
    rope: dict[str, tuple[Tensor, Tensor]]  # cos and sin [B, A, 1, D]


def start_rounds(target: FastForward, states: TargetStates, at: Tensor, position_rule: str) -> tuple[Rounds, Tensor]:
    """at [B, A], each round's n (1 or more). -> the rounds, and the hidden states that seed them [B, A, H].

    position_rule "n" or "n-1": the position of a round's queries, in all its steps.
    """
    length = states.ids.shape[1]
    distance = at[:, :, None] - torch.arange(length, device=at.device)
    committed = (distance > 0) & (states.doc[:, None, :] == states.doc.gather(1, at)[:, :, None])
    newest = committed & (distance <= target.config["sliding_window"])
    position = at - 1 if position_rule == "n-1" else at
    tables = {kind: target.rope_table(kind, length) for kind in KINDS}
    rope_at = {kind: (cos[position], sin[position]) for kind, (cos, sin) in tables.items()}
    seed = take(states.hidden, at - 1)
    return Rounds(states.kv, {"sliding_attention": newest, "full_attention": committed}, rope_at), seed


def take(x: Tensor, at: Tensor) -> Tensor:
    """x [B, T, H], at [B, A] -> [B, A, H]."""
    return x.gather(1, at[:, :, None].expand(-1, -1, x.shape[-1]))


def attention(
    x: Tensor, p: dict[str, Tensor], keys: Tensor, values: Tensor, seen: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    """x [B, A, d]: one query token a round. A round without a key (no one counts it) reads evenly."""
    batch, rounds, _ = x.shape
    dim = p["self_attn.q_norm.weight"].numel()
    q = F.linear(x, p["self_attn.q_proj.weight"]).view(batch, rounds, -1, dim)
    q = rope(norm(q, p["self_attn.q_norm.weight"]), cos, sin)
    heads = q.shape[2]
    scores = torch.bmm(q.reshape(batch, rounds * heads, dim), keys.transpose(1, 2)).view(batch, rounds, heads, -1)
    probs = torch.softmax(torch.where(seen[:, :, None], scores.float(), MASKED), -1).to(x.dtype)
    out = torch.bmm(probs.view(batch, rounds * heads, -1), values)
    return F.linear(out.view(batch, rounds, heads * dim), p["self_attn.o_proj.weight"])


def layer(
    h: Tensor, p: dict[str, Tensor], keys: Tensor, values: Tensor, seen: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    p = {name: value.to(h.dtype) for name, value in p.items()}
    a = attention(norm(h, p["input_layernorm.weight"]), p, keys, values, seen, cos, sin)
    h = h + norm(a, p["post_attention_layernorm.weight"])
    x = norm(h, p["pre_feedforward_layernorm.weight"])
    m = F.gelu(F.linear(x, p["mlp.gate_proj.weight"]), approximate="tanh") * F.linear(x, p["mlp.up_proj.weight"])
    m = F.linear(m, p["mlp.down_proj.weight"])
    return (h + norm(m, p["post_feedforward_layernorm.weight"])) * p["layer_scalar"]


class DraftForward:
    """Runs `drafter` (transformers' Gemma4AssistantForCausalLM) beside `target`, in its dtype, compiled where asked."""

    def __init__(self, drafter, target: FastForward, compile: bool):
        self.drafter, self.target = drafter, target
        wrap = (lambda f: torch.compile(f, fullgraph=True, dynamic=False)) if compile else (lambda f: f)
        kinds = drafter.config.text_config.layer_types
        self.layer = {kind: wrap(lambda *args: layer(*args)) for kind in set(kinds)}
        self.layers = []
        for kind, block in zip(kinds, drafter.model.layers, strict=True):
            own = dict(block.named_parameters())
            own.setdefault("layer_scalar", block.layer_scalar)
            self.layers.append((kind, own))

    def step(self, rounds: Rounds, tokens: Tensor, prev: Tensor) -> tuple[Tensor, Tensor]:
        """One draft step: tokens [B, A] and the state before them [B, A, H] -> logits [B, A, V], the next state."""
        drafter, dtype = self.drafter, self.target.dtype
        x = torch.cat([self.target.embed(tokens), prev], -1)
        h = F.linear(x, drafter.pre_projection.weight.to(dtype))
        for kind, p in self.layers:
            h = self.layer[kind](h, p, *rounds.kv[kind], rounds.seen[kind], *rounds.rope[kind])
        h = norm(h, drafter.model.norm.weight)
        logits = F.linear(h, drafter.model.embed_tokens.weight.to(dtype))
        return logits, F.linear(h, drafter.post_projection.weight.to(dtype))

    @torch.no_grad()
    def draft(self, rounds: Rounds, tokens: Tensor, prev: Tensor, steps: int) -> Tensor:
        """Greedy drafts after `tokens` [B, A], as a server makes them: [B, A, steps]."""
        drafts = []
        for _ in range(steps):
            logits, prev = self.step(rounds, tokens, prev)
            tokens = logits.float().argmax(-1)
            drafts.append(tokens)
        return torch.stack(drafts, -1)
