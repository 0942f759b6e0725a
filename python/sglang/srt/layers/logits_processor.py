"""From hidden states to logits: the tied or own head, of all tokens or of some, and Gemma's softcap."""

from torch import Tensor

from sglang.srt.distributed.tensor_parallel import TensorParallel
from sglang.srt.layers.vocab_parallel_embedding import VocabEmbedding
from sglang.srt.ops.products.linear import linear


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


def candidate_logits(hidden: Tensor, ids: Tensor, head: VocabEmbedding) -> Tensor:
    """hidden [N, H], ids [N, C] int64 -> logits [N, C] of those tokens in the model dtype, on every rank."""
    if head.tp.size == 1:
        return _products(hidden, head.weight[ids])
    mine = (ids >= head.first) & (ids < head.end)
    # one rank adds a logit and the others zeros, so the sum is exact
    return head.tp.all_reduce(_products(hidden, head.weight[(ids - head.first) * mine]) * mine)


def _products(hidden: Tensor, rows: Tensor) -> Tensor:  # [N, H], [N, C, H] -> [N, C]
    return (rows @ hidden.unsqueeze(-1)).squeeze(-1)
