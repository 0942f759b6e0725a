"""How often do other ways of routing choose otherwise, on random tokens? Counts for docs/numerics.md.

    python benchmark/gemma4/router_counts.py [--device cpu] [--tokens 100000]

A router of 26B-A4B's sizes with random weights in bfloat16, against our reference: transformers' own class, its formula
as the drift meter has it, naive fusions, float32 logits. `at a tie`: of the tokens with other experts or another order,
those where two of transformers' k + 1 largest probabilities are equal. For the shipped model's hidden states see
`python -m sglang.debug.routing_drift`.
"""

import argparse

import torch
from torch import Tensor
from transformers import Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRouter

from sglang.debug.router_variants import Variant, parse_variant
from sglang.debug.routing_record import Change, compare_choices
from sglang.srt.layers.moe.router import Router
from sglang.srt.utils.flag_types import at_least
from sglang.test import naive_router

HIDDEN, EXPERTS, K = 2816, 128, 8
CHUNK = 5000  # tokens at a time


def make_routers(device: str) -> tuple[Router, Gemma4TextRouter]:
    """Ours and transformers', with the same weights."""
    torch.manual_seed(0)
    config = Gemma4TextConfig(
        hidden_size=HIDDEN, enable_moe_block=True, num_experts=EXPERTS, top_k_experts=K, moe_intermediate_size=8
    )
    theirs = Gemma4TextRouter(config).to(torch.bfloat16).requires_grad_(False)
    theirs.scale.uniform_(0.5, 1.5)
    theirs.per_expert_scale.uniform_(0.5, 1.5)
    theirs.proj.weight.normal_()
    ours = Router(HIDDEN, EXPERTS, K, config.rms_norm_eps).to(torch.bfloat16)
    ours.load_state_dict(theirs.state_dict())
    return ours.to(device), theirs.to(device)


def ways(ours: Router, theirs: Gemma4TextRouter):
    """Name -> function of h [T, H] that gives weights and ids [T, K]."""
    naive = {
        "naive: folded norm": Variant("", naive_router.folded_norm, parse_variant("eager").choose),
        "naive: top-k before softmax": Variant("", parse_variant("eager").norm, naive_router.topk_before_softmax),
        "naive: both": Variant("", naive_router.folded_norm, naive_router.topk_before_softmax),
    }
    ours_too = {name: parse_variant(name) for name in ("transformers", "float32-logits")} | naive
    return {"transformers' class": lambda h: theirs(h)[1:]} | {
        name: lambda h, variant=variant: variant.route(ours, h) for name, variant in ours_too.items()
    }


def ties(probs: Tensor) -> Tensor:
    """[T], whether two of the K + 1 largest are equal."""
    top = probs.topk(K + 1, dim=-1).values
    return (top[:, 1:] == top[:, :-1]).any(dim=-1)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tokens", type=at_least(CHUNK), default=100_000)
    args = parser.parse_args()
    ours, theirs = make_routers(args.device)
    reference = parse_variant("eager")
    compared = ways(ours, theirs)
    changes: dict[str, list[Change]] = {name: [] for name in compared}
    at_ties = dict.fromkeys(compared, 0)
    inputs = elements = 0
    for _ in range(args.tokens // CHUNK):
        h = (torch.randn(CHUNK, HIDDEN, device=args.device) * 3).bfloat16()
        want = tuple(part.cpu() for part in reference.route(ours, h))
        tied = ties(theirs(h)[0]).cpu()
        r = reference.norm(h, ours.scale, ours.root, ours.eps)
        differs = r != theirs.norm(h) * theirs.scale * theirs.scalar_root_size
        inputs, elements = inputs + int(differs.any(dim=-1).sum()), elements + int(differs.sum())
        for name, way in compared.items():
            got = tuple(part.cpu() for part in way(h))
            changes[name].append(compare_choices(want, got, EXPERTS))
            at_ties[name] += int(((got[1] != want[1]).any(dim=-1) & tied).sum())
    tokens = args.tokens // CHUNK * CHUNK
    print(f"{tokens} tokens on {args.device}; inputs of {inputs} differ from transformers' ({elements} elements)\n")
    print("| against our reference | other experts | other order | at a tie | other weights | largest difference |")
    print("|---|---|---|---|---|---|")
    for name, parts in changes.items():
        counts = [sum(getattr(part, field) for part in parts) for field in ("set_changed", "order_changed")]
        weights, largest = sum(p.weights_changed for p in parts), max(p.largest_weight_difference for p in parts)
        print(f"| {name} | {counts[0]} | {counts[1]} | {at_ties[name]} | {weights} | {largest:.3g} |")


if __name__ == "__main__":
    main()
