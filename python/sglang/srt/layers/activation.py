"""Gated activations over the fused [gate, up] rows. Exact ops: act(gate) is rounded, then multiplied by up, rounded."""

from torch import Tensor
from torch.nn import functional as F


def gelu_tanh_and_mul_reference(gate_up: Tensor) -> Tensor:
    """gelu(gate, tanh form) * up; gate_up [..., 2I] with the gate half first -> [..., I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


def gelu_tanh_and_mul(gate_up: Tensor) -> Tensor:
    """See gelu_tanh_and_mul_reference."""
    return gelu_tanh_and_mul_reference(gate_up)


def silu_and_mul_reference(gate_up: Tensor) -> Tensor:
    """silu(gate) * up; gate_up [..., 2I] with the gate half first -> [..., I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """See silu_and_mul_reference."""
    return silu_and_mul_reference(gate_up)
