"""Ways of routing that can stand in for each other in a loaded model: ours, transformers', and functions from a file.

Knows the router's ops, nothing of prompts or of what is measured. On a CPU the fused kernels need Triton's interpreter:
import sglang.test.triton_testing first.
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sglang.srt.layers.moe.router import Router
from sglang.srt.ops.moe import router_norm, topk
from sglang.srt.ops.norms.rms_norm import rms_norm_reference
from sglang.srt.ops.products.linear import float32_product
from sglang.srt.utils import triton_runtime

Norm = Callable[[Tensor, Tensor, float, float], Tensor]  # as router_norm_reference
Choice = Callable[[Tensor, int, Tensor], tuple[Tensor, Tensor]]  # as topk_softmax_reference


@dataclass(frozen=True)
class Variant:
    name: str
    norm: Norm
    choose: Choice
    float32_logits: bool = False

    def route(self, router: Router, h: Tensor, made: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Router.forward with these ops; `made`, the router's input by our own, is not read."""
        r = self.norm(h, router.scale, router.root, router.eps)
        logits = float32_product(r, router.proj.weight) if self.float32_logits else router.logits(r)
        return self.choose(logits, router.top_k, router.per_expert_scale)


def transformers_norm(h: Tensor, scale: Tensor, root: float, eps: float) -> Tensor:
    """transformers' formula to the letter; torch orders the sum."""
    return rms_norm_reference(h, None, eps) * scale * root


def transformers_choice(logits: Tensor, k: int, expert_scale: Tensor) -> tuple[Tensor, Tensor]:
    """transformers' formula to the letter; torch orders the sums and the ties."""
    weights, ids = torch.topk(torch.softmax(logits, dim=-1, dtype=torch.float32), k, dim=-1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights * expert_scale[ids], ids


NORMS: dict[str, Norm] = {
    "eager": router_norm.router_norm_reference,
    "fused": router_norm.launch,
    "transformers": transformers_norm,
}
CHOICES: dict[str, Choice] = {
    "eager": topk.topk_softmax_reference,
    "fused": topk.launch,
    "transformers": transformers_choice,
}


def parse_variant(text: str) -> Variant:
    """`eager`, `fused`, `transformers`; `float32-logits`, which is eager without the logits' rounding; or NORM,CHOICE,
    each one of the first three or `path/to/file.py:function`. Raises ValueError for anything else."""
    if text == "float32-logits":
        return Variant(text, NORMS["eager"], CHOICES["eager"], float32_logits=True)
    parts = text.split(",") if "," in text else [text, text]
    if len(parts) != 2 or ("," not in text and text not in NORMS):
        known = ", ".join([*NORMS, "float32-logits"])
        raise ValueError(f"{text!r} is no way of routing: give {known}, or NORM,CHOICE with a name or FILE.py:FUNCTION")
    norm, choose = parts
    return Variant(text, NORMS.get(norm) or load_function(norm), CHOICES.get(choose) or load_function(choose))


def load_function(text: str) -> Callable:
    """The function of `path/to/file.py:function`; the file is run. ValueError if there is none."""
    path, _, name = text.rpartition(":")
    file = Path(path)
    if not path or file.suffix != ".py" or not file.is_file():
        raise ValueError(f"{text!r} names no function: give a name or FILE.py:FUNCTION, with a file that exists")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = vars(module).get(name)
    if not callable(function):
        raise ValueError(f"{file} has no function {name!r}")
    return function


def routers(model: nn.Module) -> dict[str, Router]:
    """The model's routers by name, first layer first. ValueError if it has none."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Router)}
    if not found:
        raise ValueError("this model has no expert router")
    return found


@contextmanager
def routed_by(model: nn.Module, variant: Variant) -> Iterator[None]:
    """The model's routers take `variant` inside.

    On a CPU the model's other kernels are not interpreted meanwhile: that takes milliseconds a row.
    """
    before = triton_runtime.INTERPRETED
    triton_runtime.INTERPRETED = False
    for router in routers(model).values():
        router.forward = partial(variant.route, router)
    try:
        yield
    finally:
        triton_runtime.INTERPRETED = before
        for router in routers(model).values():
            del router.forward  # the class's shows again
