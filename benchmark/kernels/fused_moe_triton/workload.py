"""What the experts' benchmarks share: a model's sizes, the least time its products can take, and data.

Routing is k distinct experts a token, uniformly drawn. Several routings take turns, so that the chosen weights come
from memory and not from the L2 cache, which holds the experts of a few tokens.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch
from torch import Tensor

from sglang.srt.ops.moe.align import Alignment, align
from sglang.srt.ops.moe.config import TUNED_TOKENS

ROUTINGS = 16  # for one token; fewer for more tokens, which hit more experts each time
DEVICE = "cuda"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of one layer's experts on one rank."""

    num_experts: int
    intermediate: int
    hidden: int
    topk: int
    dtype: torch.dtype

    def experts_hit(self, tokens: int) -> float:
        """Expected number of experts that at least one token chooses."""
        return self.num_experts * (1 - (1 - self.topk / self.num_experts) ** tokens)

    def floor_us(self, tokens: int, bytes_per_s: float, flops_per_s: float) -> float:
        """Least microseconds of both products: chosen weights, inputs and outputs moved once, or the arithmetic."""
        total = 0.0
        for rows_in, n, k in self.products(tokens):
            moved = self.experts_hit(tokens) * n * k + rows_in * k + tokens * self.topk * n
            flops = 2 * tokens * self.topk * n * k
            total += max(moved * self.dtype.itemsize / bytes_per_s, flops / flops_per_s)
        return total * 1e6

    def products(self, tokens: int) -> list[tuple[int, int, int]]:
        """(rows read, N, K) of the up and the down product."""
        return [
            (tokens, 2 * self.intermediate, self.hidden),
            (tokens * self.topk, self.hidden, self.intermediate),
        ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="folder with a config.json to take the sizes from")
    for name in ("--num-experts", "--intermediate-size", "--hidden-size", "--topk"):
        parser.add_argument(name, type=int, help="instead of --model")
    parser.add_argument("--tp-size", type=int, default=1, help="ranks that share the intermediate size (default 1)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=TUNED_TOKENS, metavar="TOKENS")
    parser.add_argument("--bandwidth", type=float, default=4.3, help="TB/s of the floor (default 4.3, H200; H100: 3.0)")
    parser.add_argument("--tflops", type=float, default=790, help="TFLOP/s of the floor (default 790, H100 and H200)")


def shape_from(args: argparse.Namespace, parser: argparse.ArgumentParser) -> Shape:
    """Ends the program with a message if the arguments give no shape."""
    names = ("num_experts", "intermediate_size", "hidden_size", "topk")
    sizes = {name: getattr(args, name) for name in names}
    if args.model:
        path = args.model / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            parser.error(f"--model: {path}: {e}")
        config = config.get("text_config", config)
        keys = ("num_experts", "moe_intermediate_size", "hidden_size", "top_k_experts")
        if missing := [key for key in keys if not config.get(key)]:
            parser.error(f"--model: {path} has no {', '.join(missing)}: it has no experts")
        sizes = dict(zip(names, (config[key] for key in keys), strict=True))
    if None in sizes.values():
        parser.error("give --model, or all of --num-experts --intermediate-size --hidden-size --topk")
    if min(*sizes.values(), *args.batch_sizes, args.tp_size) < 1 or sizes["topk"] > sizes["num_experts"]:
        parser.error(f"sizes must be positive and topk no more than the experts: {sizes}, tp {args.tp_size}")
    if sizes["intermediate_size"] % (8 * args.tp_size):
        parser.error(f"{sizes['intermediate_size']} is not {args.tp_size} ranks times a multiple of 8")
    args.batch_sizes = sorted(set(args.batch_sizes))
    intermediate = sizes["intermediate_size"] // args.tp_size
    return Shape(sizes["num_experts"], intermediate, sizes["hidden_size"], sizes["topk"], DTYPES[args.dtype])


class Experts:
    """One layer's weights, random, on the GPU: gate_up [E, 2I, H], down [E, H, I]."""

    def __init__(self, shape: Shape):
        torch.manual_seed(0)
        self.shape = shape
        self.gate_up = randn(shape, shape.num_experts, 2 * shape.intermediate, shape.hidden) / shape.hidden**0.5
        self.down = randn(shape, shape.num_experts, shape.hidden, shape.intermediate) / shape.intermediate**0.5


class Batch:
    """Inputs of one token count: x [T, H], the down product's input h [T * k, I], and several routings [T, k]."""

    def __init__(self, shape: Shape, tokens: int):
        torch.manual_seed(tokens)
        self.shape = shape
        self.tokens = tokens
        self.x = randn(shape, tokens, shape.hidden)
        self.h = randn(shape, tokens * shape.topk, shape.intermediate)
        self.weights = torch.rand(tokens, shape.topk, device=DEVICE)
        count = min(ROUTINGS, max(2, 256 // tokens))
        scores = (torch.rand(tokens, shape.num_experts, device=DEVICE) for _ in range(count))
        self.ids = [s.topk(shape.topk).indices for s in scores]
        self._plans: dict[int, list[Alignment]] = {}

    def plans(self, block_m: int) -> list[Alignment]:
        """One a routing."""
        if block_m not in self._plans:
            self._plans[block_m] = [align(ids, self.shape.num_experts, block_m) for ids in self.ids]
        return self._plans[block_m]


def randn(shape: Shape, *size: int) -> Tensor:
    return torch.randn(*size, dtype=shape.dtype, device=DEVICE)
