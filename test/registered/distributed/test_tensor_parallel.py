"""Two ranks' model equals one rank's: same weights, same logits within float32 noise, on every variant."""

import subprocess
import sys
import textwrap

import pytest
import torch

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed.tensor_parallel import TensorParallel
from sglang.srt.model_loader.loader import load_model
from sglang.srt.model_loader.weight_map import checkpoint_targets
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.paged_harness import PagedHarness
from sglang.test.tiny_models import make_tiny_gemma4, make_tiny_llama

register_cpu_ci(est_time=24, suite="base-a-test-cpu")

CPU = torch.device("cpu")
BOUND = 2e-4  # of logits up to 30: float32 sums in another order
GEMMA = ["moe_top2", "dense_k_eq_v", "ple_shared_double_wide"]  # the first and last have one KV head on some layer
OWN_HEAD = "own_head"
LLAMA = ["llama", "qwen2"]  # qwen2 has biases
RANK = """
    import sys, torch
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.distributed.process_group import ProcessGroup
    from sglang.srt.model_loader.loader import load_model
    from sglang.test.paged_harness import PagedHarness
    torch.set_num_threads(1)
    rank, root = int(sys.argv[1]), sys.argv[2]
    tp = ProcessGroup(rank, 2, f"file://{root}/rendezvous", "cpu")
    out = {}
    for name in sys.argv[3:]:
        config = ModelConfig.load(f"{root}/{name}")
        harness = PagedHarness(load_model(config, "auto", torch.device("cpu"), tp), config)
        ids = torch.load(f"{root}/ids.pt")
        out[name] = [harness.step({0: ids[:40]})[0], harness.step({0: ids[40:41]})[0]]
    out["bytes"] = torch.tensor(list(tp.broadcast_bytes(b"to all" if rank == 0 else None)))
    out["empty"] = torch.tensor(len(tp.broadcast_bytes(b"" if rank == 0 else None)))
    out["minimum"] = torch.tensor(tp.minimum(7 - rank))
    torch.save(out, f"{root}/rank{rank}.pt")
    tp.close()
"""
SUMMING_RANK = """
    import sys, torch
    from sglang.srt.ops.invariance.mode import batch_invariant
    from sglang.srt.distributed.process_group import ProcessGroup
    rank, root = int(sys.argv[1]), sys.argv[2]
    tp = ProcessGroup(rank, 3, f"file://{root}/summing", "cpu")
    parts = [torch.randn(50, 640, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    x = parts[rank]
    with batch_invariant():
        whole = tp.all_reduce(x.clone())
        assert torch.equal(whole, parts[0] + parts[1] + parts[2])
        for rows in (1, 2, 7, 33):
            assert torch.equal(tp.all_reduce(x[:rows].clone()), whole[:rows])
            assert torch.equal(tp.all_reduce_pair(x[:rows], x[1 : rows + 1])[1], whole[1 : rows + 1])
    tp.close()
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tp")
    for name in GEMMA:
        make_tiny_gemma4(root / name, name, torch.float32)
    make_tiny_gemma4(root / OWN_HEAD, "dense_k_eq_v", torch.float32, tie_word_embeddings=False)
    for name in LLAMA:
        make_tiny_llama(root / name, name, torch.float32)
    ids = torch.randint(3, 500, (41,), generator=torch.Generator().manual_seed(1)).tolist()
    torch.save(ids, root / "ids.pt")
    return root


@pytest.fixture(scope="module")
def ranks(root) -> list[dict]:
    script = root / "rank.py"
    script.write_text(textwrap.dedent(RANK))
    names = [*GEMMA, OWN_HEAD, *LLAMA]
    processes = [subprocess.Popen([sys.executable, str(script), str(rank), str(root), *names]) for rank in range(2)]
    assert [process.wait(90) for process in processes] == [0, 0]
    return [torch.load(root / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", [*GEMMA, OWN_HEAD, *LLAMA])
def test_logits_equal_one_rank(root, ranks, name):
    config = ModelConfig.load(str(root / name))
    harness = PagedHarness(load_model(config, "auto", CPU), config)
    ids = torch.load(root / "ids.pt")
    for step, tokens in enumerate((ids[:40], ids[40:41])):  # a prompt, then a decode over its KV
        want = harness.step({0: tokens})[0]
        assert want.std() > 0.1
        for rank in ranks:
            torch.testing.assert_close(rank[name][step], want, atol=BOUND, rtol=0)
        assert torch.equal(ranks[0][name][step], ranks[1][name][step])  # what makes sampled tokens equal


def test_sums_over_three_ranks_have_one_order_in_batch_invariant_mode(root):
    script = root / "summing.py"
    script.write_text(textwrap.dedent(SUMMING_RANK))
    processes = [subprocess.Popen([sys.executable, str(script), str(rank), str(root)]) for rank in range(3)]
    assert [process.wait(90) for process in processes] == [0, 0, 0]


def test_messages_and_minimum(ranks):
    for rank in ranks:
        assert bytes(rank["bytes"].tolist()) == b"to all"
        assert (int(rank["empty"]), int(rank["minimum"])) == (0, 6)


@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_shares_make_up_the_whole_model(root, load_format):
    """Every element of every tensor is on some rank, and is the one of the whole model."""
    for name in (*GEMMA, OWN_HEAD, *LLAMA):
        config = ModelConfig.load(str(root / name))
        whole = checkpoint_targets(load_model(config, load_format, CPU))
        parts = [checkpoint_targets(load_model(config, load_format, CPU, TensorParallel(r, 2))) for r in range(2)]
        held = {tensor: torch.full_like(target.view, torch.nan) for tensor, target in whole.items()}
        for rank in parts:
            for tensor, target in rank.items():
                full, got = whole[tensor].view, target.view
                assert target.full_shape == tuple(full.shape)
                dims = [d for d in range(full.dim()) if full.shape[d] != got.shape[d]]
                if not dims:
                    held[tensor].copy_(got)
                    continue
                (dim,) = dims
                rows = [row for start, end in target.extents[dim].ranges for row in range(start, end)]
                held[tensor].index_copy_(dim, torch.tensor(rows), got)
        for tensor, target in whole.items():
            assert torch.equal(held[tensor], target.view), tensor


@pytest.mark.parametrize(
    ("size", "what"),
    [(3, "does not divide the vocabulary"), (8, "does not divide the attention heads")],
)
def test_sizes_that_do_not_fit_are_refused(root, size, what):
    with pytest.raises(ValueError, match=f"--tp-size {size} {what}"):
        load_model(ModelConfig.load(str(root / "moe_top2")), "auto", CPU, TensorParallel(0, size))


def test_kv_heads_are_split_or_shared_by_neighbours():
    assert [TensorParallel(r, 2).kv_heads(8) for r in range(2)] == [(0, 4), (4, 8)]
    assert [TensorParallel(r, 4).kv_heads(2) for r in range(4)] == [(0, 1), (0, 1), (1, 2), (1, 2)]
    with pytest.raises(ValueError, match="neither divides the KV heads"):
        TensorParallel(0, 3).kv_heads(2)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
