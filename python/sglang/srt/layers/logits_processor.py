"""From hidden states to logits: the tied or own head, and Gemma's softcap."""

from torch import Tensor
from torch.nn import functional as F


def softcap_reference(logits: Tensor, cap: float) -> Tensor:
    """cap * tanh(logits / cap), each step rounded to the logits' dtype (transformers' order). Exact op."""
    return (logits / cap).tanh() * cap


def softcap(logits: Tensor, cap: float) -> Tensor:
    """See softcap_reference."""
    return softcap_reference(logits, cap)


def head_logits(hidden: Tensor, head_weight: Tensor, cap: float | None) -> Tensor:
    """hidden [N, H], head_weight [V, H] -> logits [N, V] in the model dtype, capped unless `cap` is None."""
    logits = F.linear(hidden, head_weight)
    return logits if cap is None else softcap(logits, cap)
