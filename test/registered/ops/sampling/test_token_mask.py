"""Token masks: the kernel equals the reference bit by bit, and the sampler takes only what masks leave."""

import sys

from sglang.test.triton_testing import DEVICE

# isort: split
import numpy as np
import pytest
import torch

from sglang.srt.layers.sampler import SamplingState
from sglang.srt.model_executor.mask_copies import MaskCopies
from sglang.srt.model_executor.step_io import TokenMasks
from sglang.srt.ops.sampling.token_mask import can_use, mask_tokens, mask_tokens_reference
from sglang.srt.sampling.sampling_flags import SamplingFlags, flag_bits
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci

register_cpu_ci(est_time=6, suite="base-a-test-cpu")
register_cuda_ci(est_time=20, stage="base-b", runner_config="1-gpu-large")


def words(allowed: torch.Tensor) -> torch.Tensor:
    """[G, V] bool -> [G, V / 32 rounded up] int32, all bits beyond V set."""
    rows, width = allowed.shape
    padded = torch.ones(rows, -(-width // 32) * 32, dtype=torch.int64, device=allowed.device)
    padded[:, :width] = allowed
    bits = padded.view(rows, -1, 32) << torch.arange(32, device=allowed.device)
    return bits.sum(-1).to(torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 4096, 4097, 9000])
@pytest.mark.parametrize("places", [[0, -1, -1], [1, -1, 0], [0, 1, 2]])
def test_kernel_equals_reference(vocab_size, places, dtype):
    torch.manual_seed(vocab_size)
    logits = torch.randn(3, vocab_size, device=DEVICE).to(dtype)
    logits[0, 0], logits[1, -1], logits[2, 0] = -0.0, torch.inf, torch.finfo(dtype).min
    mask_rows = torch.tensor(places, dtype=torch.int32, device=DEVICE)
    allowed = torch.rand(max(places) + 1, vocab_size, device=DEVICE) < 0.3
    allowed[0] = True
    allowed[-1, 0] = False
    bits, before = words(allowed), logits.clone()
    assert can_use(logits, mask_rows, bits)
    got, want = mask_tokens(logits, mask_rows, bits), mask_tokens_reference(logits, mask_rows, bits)
    assert got.dtype == want.dtype == torch.float32
    assert torch.equal(got, want) and torch.equal(got.signbit(), want.signbit()) and torch.equal(logits, before)
    barred = torch.zeros_like(logits, dtype=torch.bool)
    masked = mask_rows >= 0
    barred[masked] = ~allowed[mask_rows[masked]]
    assert torch.equal(want, logits.float().masked_fill(barred, -torch.inf))


def test_what_the_kernel_does_not_take():
    logits, mask_rows = torch.zeros(2, 64, device=DEVICE), torch.tensor([0, -1], dtype=torch.int32, device=DEVICE)
    bits = torch.zeros(1, 2, dtype=torch.int32, device=DEVICE)
    columns = logits.t().contiguous().t()
    for given in (columns, logits[:0]):
        assert not can_use(given, mask_rows[: len(given)], bits)
        want = given.clone()
        want[:1] = -torch.inf
        assert torch.equal(mask_tokens(given, mask_rows[: len(given)], bits), want)


@pytest.mark.parametrize("rows,places", [(1, [0]), (3, [2]), (4, [0, 1, 2, 3]), (9, [1, 8])])
def test_masks_come_to_the_device(rows: int, places: list[int]):
    bits = np.random.default_rng(rows).integers(-(1 << 31), 1 << 31, (len(places), 5), dtype=np.int64).astype(np.int32)
    given = bits.copy()
    mask_rows, there = MaskCopies(torch.device(DEVICE)).put(TokenMasks(np.array(places), given), rows)
    given[:] = 0
    want = [places.index(row) if row in places else -1 for row in range(rows)]
    assert mask_rows.tolist() == want and mask_rows.dtype == there.dtype == torch.int32
    assert np.array_equal(there.cpu().numpy(), bits)


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 1},
        {},
        {"temperature": 0.5, "top_p": 0.8},
        {"top_k": 5, "min_p": 0.1},
        {"repetition_penalty": 1.5, "frequency_penalty": 1.0},
        {"logit_bias": {"3": 100.0}},
    ],
)
def test_no_sampling_takes_a_barred_token(params):
    """Two allowed tokens that no setting would prefer; a row without a mask keeps its token."""
    torch.manual_seed(0)
    state = SamplingState(2, 64, DEVICE)
    params = SamplingParams(**params)
    state.admit([1, 2], [params, params], [5, 5], [4, 4], [[], []], [[], []])
    flags = SamplingFlags(flag_bits(params))
    logits = torch.randn(1, 64, device=DEVICE).repeat(2, 1)
    logits[:, [40, 41]] = -5.0
    allowed = torch.zeros(1, 64, dtype=torch.bool, device=DEVICE)
    allowed[0, [40, 41]] = True
    rows = torch.tensor([1, 2], device=DEVICE)
    masks = torch.tensor([-1, 0], dtype=torch.int32, device=DEVICE), words(allowed)
    for position in range(4, 20):
        at = torch.tensor([position, position], device=DEVICE)
        free, _ = state.choose(logits, rows, at, flags)
        got, reported = state.choose(logits, rows, at, flags, masks=masks)
        assert got[0] == free[0] and got[1].item() in (40, 41)
        assert reported[1].isfinite().nonzero().flatten().tolist() == [40, 41]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
