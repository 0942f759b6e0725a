"""Batch-invariant mode: a token's row comes out with the same bits whatever stands beside it in the step.

Layers call the ops below, which ask the mode; outside of it they are torch's own. What is not here is row by row
already. docs/numerics.md says what the mode promises and why each op keeps it.
"""

from sglang.srt.batch_invariant_ops.elementwise import gelu_tanh, silu
from sglang.srt.batch_invariant_ops.linear import linear, prepare
from sglang.srt.batch_invariant_ops.mode import batch_invariant, enabled, set_enabled
from sglang.srt.batch_invariant_ops.sums import row_mean

__all__ = [
    "batch_invariant",
    "enabled",
    "gelu_tanh",
    "linear",
    "prepare",
    "row_mean",
    "set_enabled",
    "silu",
]
