"""Room behind a tensor's last row."""

import sys

import pytest
import torch

from sglang.srt.ops.invariance.mode import batch_invariant
from sglang.srt.ops.invariance.row_room import ROOM, empty_rows, with_rows
from sglang.srt.ops.products.linear import FEW_ROWS, GPU_SIZES
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci

register_cpu_ci(est_time=5, suite="base-a-test-cpu")
register_cuda_ci(est_time=10, stage="base-b", runner_config="1-gpu-large")

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU's products take blocks of many rows")


def test_rows_behind_are_a_view():
    memory = torch.arange(40.0).view(10, 4)
    got = with_rows(memory[2:5], 7)
    assert got.data_ptr() == memory[2:5].data_ptr() and torch.equal(got, memory[2:9])
    assert torch.equal(with_rows(memory[2:5], 8), memory[2:]) and torch.equal(with_rows(memory, 10), memory)


@pytest.mark.parametrize("x", [torch.ones(3, 4), torch.ones(10, 4)[8:], torch.ones(10, 8)[:3, :4]])
def test_zeros_where_there_is_no_room(x):
    """A tensor of its own, the end of one, rows that are apart."""
    got = with_rows(x, 5)
    assert torch.equal(got, torch.cat([torch.ones(len(x), 4), torch.zeros(5 - len(x), 4)]))


@pytest.mark.parametrize("mode", [False, True])
def test_room_is_for_gpus(mode):
    like = torch.ones(3, 4, dtype=torch.bfloat16)
    with batch_invariant(mode):
        got = empty_rows(3, 2, 5, like=like)
    assert got.shape == (3, 2, 5) and got.dtype == like.dtype and got.is_contiguous()
    assert got.untyped_storage().nbytes() == 2 * got.numel()


@on_gpu
def test_room_reaches_the_next_size():
    """From the first size on; of the rows that the largest block leaves over a few go to the kernel."""
    like = torch.ones(1, dtype=torch.bfloat16, device="cuda")
    assert all(b - a <= ROOM for a, b in zip(GPU_SIZES, GPU_SIZES[1:], strict=False))
    with batch_invariant():
        for rows in range(FEW_ROWS + 1, GPU_SIZES[-1] + 1):
            x = empty_rows(rows, 1, like=like)
            assert x.shape == (rows, 1)
            size = next(size for size in GPU_SIZES if size >= rows)
            assert with_rows(x, size).data_ptr() == x.data_ptr()
    assert empty_rows(300, 1, like=like).untyped_storage().nbytes() == 600


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
