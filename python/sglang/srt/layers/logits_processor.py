"""From hidden states to logits: the tied or own head, and Gemma's softcap."""

from torch import Tensor

from sglang.srt.batch_invariant_ops import linear
from sglang.srt.distributed.tensor_parallel import TensorParallel


def softcap_reference(logits: Tensor, cap: float) -> Tensor:
    """cap * tanh(logits / cap), each step rounded to the logits' dtype (transformers' order). Exact op."""
    return (logits / cap).tanh() * cap


def softcap(logits: Tensor, cap: float) -> Tensor:
    """See softcap_reference."""
    return softcap_reference(logits, cap)


def head_logits(hidden: Tensor, head_weight: Tensor, cap: float | None, tp: TensorParallel) -> Tensor:
    """hidden [N, H], head_weight [this rank's part of V, H] -> logits [N, V] in the model dtype, on every rank; capped
    unless `cap` is None."""
    logits = tp.all_gather(linear(hidden, head_weight))
    return logits if cap is None else softcap(logits, cap)
