"""The training forward equals transformers' on the same weights: logits, and documents packed in one row."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "python")]
from fast_forward import FastForward, norm  # noqa: E402
from model_config import CONFIG  # noqa: E402
from train import build  # noqa: E402


@torch.no_grad()
def test_equals_transformers():
    model = build("cpu").eval()
    for p in model.parameters():  # no scale or norm may stay at its first value
        if p.dim() == 1:
            p.mul_(0.7 + 0.6 * torch.rand_like(p))
    first, second = torch.randint(0, 2048, (1, 300)), torch.randint(0, 2048, (1, 50))
    doc = torch.cat([torch.ones(1, 300), 2 * torch.ones(1, 50)], 1)
    fast = FastForward(model, CONFIG, torch.float32, compile=False)
    h, _ = fast.streams(torch.cat([first, second], 1), doc)
    got = 30 * torch.tanh(F.linear(norm(h[-1], model.model.norm.weight), model.model.embed_tokens.weight) / 30)
    want = torch.cat([model(first).logits, model(second).logits], 1)
    assert (got - want).abs().max() < 2e-3 * want.abs().max()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
