"""HostKV without a GPU: rows go to the host and come back bit by bit, and a batch to the host comes first."""

import sys

import numpy as np
import pytest
import torch

from sglang.srt.configs.kv_layers import KVLayerSpec
from sglang.srt.layers.attention.host_kv import HostKV, copy_slots
from sglang.srt.layers.attention.kv_pool import KVArena
from sglang.srt.mem_cache.arena import ArenaShape
from sglang.srt.mem_cache.slot_copies import SlotCopy, StepCopies
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci

register_cpu_ci(est_time=3, suite="base-a-test-cpu")
register_cuda_ci(est_time=5, stage="base-b", runner_config="1-gpu-large")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYERS = [KVLayerSpec(0, True, 2, 4), KVLayerSpec(1, True, 2, 4), KVLayerSpec(2, False, 1, 8)]
SHAPE = ArenaShape(6, 8, 4, 48, 24, 4)


def i32(*slots: int) -> np.ndarray:
    return np.array(slots, dtype=np.int32)


def pair(layers: list[KVLayerSpec] = LAYERS, shape: ArenaShape = SHAPE) -> HostKV:
    """A card of random numbers, and host memory of twice the pages."""
    card = KVArena(layers, shape, torch.bfloat16, DEVICE)
    card.buffer.copy_(torch.randn(card.buffer.shape, generator=torch.Generator().manual_seed(0)))
    return HostKV(card, layers, shape._replace(num_pages=12))


@pytest.mark.parametrize("from_slots, to_slots", [
    ([8, 9, 10, 11], [20, 21, 22, 23]),
    ([8, 9, 12, 13, 40], [9, 10, 11, 12, 13]),
    ([30, 29, 28], [8, 9, 10]),
    ([17], [8]),
    ([], []),
])  # fmt: skip
def test_rows_are_copied_one_for_one(from_slots, to_slots):
    source, target = torch.randn(48, 6), torch.zeros(48, 6)
    want = target.clone()
    want[to_slots] = source[from_slots]
    copy_slots(source, i32(*from_slots), target, i32(*to_slots))
    assert torch.equal(target, want)


def test_a_prefix_goes_to_the_host_and_comes_back_elsewhere():
    host = pair()
    card = host.card
    keys = {layer: [part.cpu().clone() for part in card.get_kv(layer)] for layer in card.layers}
    host.run(StepCopies(1, [SlotCopy(i32(8, 9, 10, 15), i32(40, 41, 42, 43), i32(8, 9), i32(30, 31))], [], 1))
    card.buffer.zero_()
    host.run(StepCopies(2, [], [SlotCopy(i32(20, 21, 22, 30), i32(40, 41, 42, 43), i32(17, 18), i32(30, 31))], 2))
    for layer in card.layers:
        old, new = ([8, 9], [17, 18]) if card.is_sliding(layer) else ([8, 9, 10, 15], [20, 21, 22, 30])
        for before, now in zip(keys[layer], card.get_kv(layer), strict=True):
            assert torch.equal(now[new].cpu(), before[old]) and before[old].all()


def test_what_leaves_a_slot_goes_before_what_comes_into_it():
    host = pair()
    card, row = host.card, host.card.rows[0]
    first = row[8].cpu().clone()
    host.arena.rows[0][50].fill_(7)
    copies = StepCopies(1, [SlotCopy(i32(8), i32(9), i32(), i32())], [SlotCopy(i32(8), i32(50), i32(), i32())], 1)
    host.run(copies)
    assert (row[8] == 7).all().item() and torch.equal(host.arena.rows[0][9], first) and card.rows[1] is not None


def test_without_sliding_layers():
    host = pair(LAYERS[2:], SHAPE._replace(swa_per_page=0))
    host.run(StepCopies(1, [SlotCopy(i32(8, 9), i32(9, 10), i32(), i32())], [], 1))
    assert torch.equal(host.arena.rows[0][9:11], host.card.rows[0][8:10].cpu()) and host.card.rows[1] is None


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_a_gpu_copies_beside_steps_and_steps_wait_for_what_they_need():
    """Of 64 MB; a step that overwrites what is still being copied waits for it, one that does not goes ahead."""
    layers = [KVLayerSpec(0, False, 8, 256)]
    shape = ArenaShape(128, 64, 0, 128 * 64, 0, 64)
    card = KVArena(layers, shape, torch.bfloat16, DEVICE)
    card.buffer.normal_()
    host, all_slots = HostKV(card, layers, shape), np.arange(64, 64 * 129, dtype=np.int32)
    assert host.arena.buffer.is_pinned()
    before = card.buffer.cpu()
    torch.cuda.set_sync_debug_mode("error")
    host.run(StepCopies(1, [SlotCopy(all_slots, all_slots, i32(), i32())], []))
    host.run(StepCopies(2, [], [], 1))
    card.buffer.zero_()  # the step
    host.run(StepCopies(2, [], [SlotCopy(all_slots, all_slots, i32(), i32())], 2))
    torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(card.rows[0][64:].cpu(), before.view(card.rows[0].shape)[64:])


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
