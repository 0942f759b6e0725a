"""Token masks on logits. Exact op: out[r, i] = -inf where row r has a mask and its bit i is 0, else logits[r, i]; fp32.

Masks are int32 words, a bit a token (constrained/grammar.py). The result is what the sampler would make of the logits
without masks, too: memory is the floor, V / 8 bytes a mask more than for that.
"""

import torch
from torch import Tensor

from sglang.srt.utils.triton_runtime import cdiv, runs_triton, tl, triton

BLOCK = 128  # words one program looks at


@triton.jit
def _mask_kernel(
    out_ptr,  # [S, V] float32
    logits_ptr,  # [S, V]
    mask_rows_ptr,  # [S] int32, rows of bits; -1 for none
    bits_ptr,  # [G, words] int32
    V,
    words,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = word[:, None] * 32 + tl.arange(0, 32)[None, :]
    inside = token < V
    mask_row = tl.load(mask_rows_ptr + row).to(tl.int64)
    bits = tl.load(bits_ptr + mask_row * words + word, mask=(word * 32 < V) & (mask_row >= 0), other=-1)
    allowed = ((bits[:, None] >> tl.arange(0, 32)[None, :]) & 1) != 0
    logits = tl.load(logits_ptr + row * V + token, mask=inside).to(tl.float32)
    tl.store(out_ptr + row * V + token, tl.where(allowed, logits, float("-inf")), mask=inside)


def _launch(logits: Tensor, mask_rows: Tensor, bits: Tensor) -> Tensor:
    out = torch.empty_like(logits, dtype=torch.float32)
    grid = (len(out), cdiv(out.shape[1], 32 * BLOCK))
    _mask_kernel[grid](out, logits, mask_rows, bits, out.shape[1], bits.shape[1], BLOCK)
    return out


def can_use(logits: Tensor, mask_rows: Tensor, bits: Tensor) -> bool:
    return runs_triton(logits) and logits.is_contiguous() and bits.is_contiguous() and len(logits) > 0


def mask_tokens_reference(logits: Tensor, mask_rows: Tensor, bits: Tensor) -> Tensor:
    """logits [S, V] of any float dtype -> [S, V] fp32 with -inf for what masks bar: `mask_rows` [S] int32 is each row's
    place in `bits` [G, at least V / 32] int32, -1 where all may come. `logits` stays as it is."""
    shifts = torch.arange(32, dtype=torch.int32, device=bits.device)
    masked = mask_rows >= 0
    allowed = ((bits[mask_rows[masked], :, None] >> shifts) & 1).bool().flatten(1)[:, : logits.shape[1]]
    out = logits.to(torch.float32, copy=True)
    out[masked] = out[masked].masked_fill(~allowed, -torch.inf)
    return out


def mask_tokens(logits: Tensor, mask_rows: Tensor, bits: Tensor) -> Tensor:
    """See mask_tokens_reference."""
    takes = can_use(logits, mask_rows, bits)
    return (_launch if takes else mask_tokens_reference)(logits, mask_rows, bits)
