"""What routers chose, recorded by forward hooks, and how two records of the same tokens differ, layer by layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sglang.debug.router_variants import Variant, routers
from sglang.srt.layers.moe.router import Router
from sglang.srt.ops.moe.router_norm import router_norm_reference

QUANTILES = (0.0, 0.01, 0.1, 0.5)  # of the margins


@dataclass
class LayerRecord:
    """One router's choices, a forward an entry. `other` is what another variant chooses on the same inputs."""

    num_experts: int
    chosen: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # weights [T, k], ids [T, k]
    other: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    margins: list[Tensor] = field(default_factory=list)  # [T], the k-th logit less the one after it


Record = dict[str, LayerRecord]  # by the router's name


@contextmanager
def recording(model: nn.Module, other: Variant | None = None) -> Iterator[Record]:
    """What the model's routers choose inside, on the CPU. With `other` also what that would choose on each input."""
    record: Record = {}
    hooks = []

    def hook_for(layer: LayerRecord):
        def hook(router: Router, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
            layer.chosen.append(_to_cpu(output))
            layer.margins.append(_margins(router, inputs[0]).cpu())
            if other:
                layer.other.append(_to_cpu(other.route(router, inputs[0])))

        return hook

    for name, router in routers(model).items():
        record[name] = LayerRecord(len(router.per_expert_scale))
        hooks.append(router.register_forward_hook(hook_for(record[name])))
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


def _to_cpu(chosen: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    weights, ids = chosen
    return weights.cpu(), ids.cpu()


def _margins(router: Router, h: Tensor) -> Tensor:
    """[T] float32; infinite where every expert is chosen."""
    logits = router.logits(router_norm_reference(h, router.scale, router.root, router.eps)).float()
    k, experts = router.top_k, logits.shape[1]
    if k == experts:
        return torch.full((len(h),), torch.inf)
    top = logits.topk(k + 1, dim=-1).values
    return top[:, k - 1] - top[:, k]


@dataclass(frozen=True)
class Change:
    """How the choices for some tokens differ. An expert that one of the two does not choose has weight 0 there."""

    set_changed: int  # tokens with other experts
    order_changed: int  # tokens with the same ones in another order
    weights_changed: int  # tokens with any other weight, those with other experts included
    largest_weight_difference: float


@dataclass(frozen=True)
class LayerDrift:
    layer: str
    tokens: int
    change: Change
    same_input: Change  # of this router alone: both variants on the first one's inputs
    margins: dict[float, float]  # of the first variant's logits at the k-th place, by quantile
    ties: int  # tokens whose margin is 0


def compare_choices(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], num_experts: int) -> Change:
    """a, b: weights [T, k] float32 and ids [T, k] of the same tokens."""
    sets_a, sets_b = (ids.sort(dim=-1).values for _, ids in (a, b))
    other_set = (sets_a != sets_b).any(dim=-1)
    other_order = (a[1] != b[1]).any(dim=-1) & ~other_set
    by_expert_a, by_expert_b = (torch.zeros(len(ids), num_experts).scatter(1, ids, weights) for weights, ids in (a, b))
    apart = (by_expert_a - by_expert_b).abs().amax(dim=-1)
    largest = apart.max().item() if len(apart) else 0.0
    return Change(int(other_set.sum()), int(other_order.sum()), int((apart != 0).sum()), largest)


def compare_records(a: Record, b: Record) -> list[LayerDrift]:
    """Of two runs over the same tokens in the same steps; `a` recorded with b's variant as `other`."""
    drifts = []
    for (name, first), second in zip(a.items(), b.values(), strict=True):
        chosen_a, chosen_b, other = (_joined(part) for part in (first.chosen, second.chosen, first.other))
        margins = torch.cat(first.margins)
        quantiles = margins.quantile(torch.tensor(QUANTILES)).tolist()
        drifts.append(
            LayerDrift(
                layer=name,
                tokens=len(margins),
                change=compare_choices(chosen_a, chosen_b, first.num_experts),
                same_input=compare_choices(chosen_a, other, first.num_experts),
                margins=dict(zip(QUANTILES, quantiles, strict=True)),
                ties=int((margins == 0).sum()),
            )
        )
    return drifts


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    weights, ids = zip(*parts, strict=True)
    return torch.cat(weights), torch.cat(ids)
