"""Token masks on logits. Exact op: out[r, i] = -inf where row r has a mask and its bit i is 0, else logits[r, i].

Masks are int32 words, a bit a token (constrained/grammar.py). Memory is the floor: a copy of the logits, and V / 8
bytes a mask read; only barred logits are written a second time.
"""

import torch
from torch import Tensor

from sglang.srt.utils.triton_runtime import cdiv, runs_triton, tl, triton

BLOCK = 4096  # tokens one program looks at


@triton.jit
def _mask_kernel(
    out_ptr,  # [S, V] float32
    places_ptr,  # [G] int64, rows of out
    bits_ptr,  # [G, words] int32
    V,
    words,
    BLOCK: tl.constexpr,
):
    mask_row = tl.program_id(0)
    row = tl.load(places_ptr + mask_row)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = token < V
    word = tl.load(bits_ptr + mask_row * words + token // 32, mask=inside, other=-1)
    barred = ((word >> (token % 32)) & 1) == 0
    tl.store(out_ptr + row * V + token, float("-inf"), mask=inside & barred)


def _launch(logits: Tensor, places: Tensor, bits: Tensor) -> Tensor:
    out = logits.clone()
    grid = (len(places), cdiv(out.shape[1], BLOCK))
    _mask_kernel[grid](out, places, bits, out.shape[1], bits.shape[1], BLOCK)
    return out


def can_use(logits: Tensor, places: Tensor, bits: Tensor) -> bool:
    return (
        runs_triton(logits)
        and logits.dtype == torch.float32
        and logits.is_contiguous()
        and bits.is_contiguous()
        and len(places) > 0
    )


def mask_tokens_reference(logits: Tensor, places: Tensor, bits: Tensor) -> Tensor:
    """logits [S, V] with -inf for what masks bar: `bits` [G, at least V / 32] int32 are those of the rows `places` [G]
    int64, all different. `logits` stays as it is."""
    shifts = torch.arange(32, dtype=torch.int32, device=bits.device)
    allowed = ((bits[:, :, None] >> shifts) & 1).bool().flatten(1)[:, : logits.shape[1]]
    out = logits.clone()
    out[places] = out[places].masked_fill(~allowed, -torch.inf)
    return out


def mask_tokens(logits: Tensor, places: Tensor, bits: Tensor) -> Tensor:
    """See mask_tokens_reference."""
    return (
        _launch(logits, places, bits) if can_use(logits, places, bits) else mask_tokens_reference(logits, places, bits)
    )
