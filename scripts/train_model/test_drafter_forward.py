"""The drafter's forward over many rounds equals transformers' modules, one round at a time."""

import sys
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "python")]
from data import Mixture, rows  # noqa: E402
from drafter_forward import DraftForward, start_rounds, target_states  # noqa: E402
from train import batch_of  # noqa: E402
from train_drafter import ASSETS, build, choose_rounds, draft_loss, frozen_target  # noqa: E402
from transformers import DynamicCache  # noqa: E402

WINDOW = 128


@pytest.fixture(scope="module")
def draft() -> DraftForward:
    target = frozen_target(ASSETS, "cpu", torch.float32, compile=False)
    drafter = build(target).eval().requires_grad_(False)
    for p in drafter.parameters():  # no scale or norm may stay at its first value
        if p.dim() == 1:
            p.mul_(0.7 + 0.6 * torch.rand_like(p))
    return DraftForward(drafter, target, compile=False)


@pytest.mark.parametrize("rule", ["n", "n-1"])
@torch.no_grad()
def test_rounds_equal_transformers(draft, rule):
    torch.manual_seed(0)
    first, second = torch.randint(107, 2048, (1, 40)), torch.randint(107, 2048, (1, 200))
    doc = torch.cat([torch.ones(1, 40), 2 * torch.ones(1, 200)], 1)
    states = target_states(draft.target, torch.cat([first, second], 1), doc)
    ns = [1, 60, 128, 129, 170]  # within the second document; the window is full from 128 on
    at = 40 + torch.tensor([ns])
    rounds, state = start_rounds(draft.target, states, at, rule)
    tokens = states.ids.gather(1, at)
    got = []
    for i in range(3):
        logits, state = draft.step(rounds, tokens, state)
        tokens = states.ids.gather(1, at + i + 1)
        got.append(logits[0])
    model, drafter = draft.target.model, draft.drafter
    cache = DynamicCache()
    hidden = model.model(second, past_key_values=cache).last_hidden_state
    for j, n in enumerate(ns):
        kv = {
            "sliding_attention": tuple(
                x[:, :, max(0, n - WINDOW) : n] for x in (cache.layers[4].keys, cache.layers[4].values)
            ),
            "full_attention": tuple(x[:, :, :n] for x in (cache.layers[5].keys, cache.layers[5].values)),
        }
        state = hidden[:, n - 1 : n]
        for i in range(3):
            x = torch.cat([model.model.embed_tokens(second[:, n + i : n + i + 1]), state], -1)
            position = torch.tensor([[n - 1 if rule == "n-1" else n]])
            out = drafter(inputs_embeds=x, position_ids=position, shared_kv_states=kv)
            state = out.last_hidden_state
            want = out.logits[0, 0]
            assert (got[i][j] - want).abs().max() < 2e-3 * want.abs().max(), (n, i)


@pytest.fixture(scope="module")
def row():
    """ids, doc, weights [1, 448] of a row as trained on, and the starts of its second document's rounds."""
    ids, doc, _, weights = batch_of([next(rows(ASSETS, 0, 448, Mixture(0.0, 1.0, 0), 1))], 1, "cpu")
    (answer,) = torch.nonzero((doc[0] == 2) & (weights[0] == 1.0), as_tuple=True)
    return ids, doc, weights, answer[None]


def loss_of(draft, ids, doc, weights, at, steps=5) -> float:
    states = target_states(draft.target, ids, doc)
    return draft_loss(draft, states, ids.roll(-1, 1), weights, at, steps, "n")[0].item()


def test_other_documents_change_nothing(draft, row):
    ids, doc, weights, at = row
    others = torch.where(doc == 2, ids, torch.randint(107, 2048, ids.shape))
    want = loss_of(draft, ids, doc, weights, at)
    assert loss_of(draft, others, doc, weights, at) == pytest.approx(want, rel=1e-4)
    assert loss_of(draft, ids, doc, weights, at, steps=1) != pytest.approx(want, rel=0.01)  # later steps do count


def test_steps_count_until_the_row_departs_from_the_models_choice(draft, row):
    ids, doc, weights, at = row
    at = at[:, 10:11]
    changed = ids.clone()
    changed[0, at + 2] = 300 if ids[0, at + 2] != 300 else 301
    want = loss_of(draft, changed, doc, weights, at, steps=2)
    assert loss_of(draft, changed, doc, weights, at) == pytest.approx(want, rel=1e-5)
    assert loss_of(draft, ids, doc, weights, at) != pytest.approx(loss_of(draft, ids, doc, weights, at, 2), rel=1e-3)


def test_rounds_start_where_the_model_writes():
    doc = torch.repeat_interleave(torch.tensor([[1, 2, 0]]), 20, 1)
    weights = torch.zeros(1, 60)
    weights[0, [0, 7, 20, 25, 33]] = 1.0  # 0 and 20 are first tokens: no state before them
    assert sorted(choose_rounds(doc, weights, 3)[0].tolist()) == [7, 25, 33]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
