"""Two parts of a layer on two streams: the same results, and nothing is overwritten while it is read."""

import sys

import pytest
import torch

from sglang.srt.layers import side_by_side as module
from sglang.srt.layers.side_by_side import side_by_side
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci

register_cpu_ci(est_time=2, suite="base-a-test-cpu")
register_cuda_ci(est_time=10, stage="base-b", runner_config="1-gpu-large")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ROWS, WIDTH, LAYERS = 4, 256, 40


def test_one_after_the_other_without_a_capture():
    order = []
    got = side_by_side(lambda: order.append("aside") or 1, lambda: order.append("here") or 2, torch.zeros(1))
    assert got == (1, 2) and order == ["aside", "here"]


@needs_gpu
def test_no_second_stream_outside_a_capture():
    x, streams = torch.zeros(1, device="cuda"), []
    side_by_side(lambda: streams.append(torch.cuda.current_stream()), lambda: None, x)
    assert not module.can_use(x) and streams == [torch.cuda.current_stream()]


@needs_gpu
@torch.inference_mode()
@pytest.mark.parametrize("disabled", [False, True])
def test_replays_equal_eager(disabled, monkeypatch):
    """A chain of layers: either part may be the one waited for, and memory of one layer is used again in the next."""
    monkeypatch.setattr(module, "DISABLED", disabled)
    generator = torch.Generator(device="cuda").manual_seed(0)
    weights = torch.randn(2, WIDTH, WIDTH, device="cuda", generator=generator).div_(WIDTH**0.5)
    streams = set()

    def part(x, weight, times):
        streams.add(torch.cuda.current_stream())
        for _ in range(times):
            x = torch.tanh(x @ weight)
        return x

    def layer(x, times_aside, times_here):
        aside, here = side_by_side(lambda: part(x, weights[0], times_aside), lambda: part(x, weights[1], times_here), x)
        return x + aside - here

    def chain(x):
        for i in range(LAYERS):
            times = (1, 6) if i % 2 else (6, 1)
            x = layer(x, *times)
        return x

    static = torch.zeros(ROWS, WIDTH, device="cuda")
    chain(static)  # libraries allocate their workspaces
    torch.cuda.synchronize()
    streams.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain(static)
    assert len(streams) == (1 if disabled else 2)
    for _ in range(20):
        x = torch.randn(ROWS, WIDTH, device="cuda", generator=generator)
        static.copy_(x)
        graph.replay()
        replayed = out.clone()
        assert torch.equal(replayed, chain(x))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
