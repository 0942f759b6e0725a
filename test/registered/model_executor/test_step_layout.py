"""How a step with prompts becomes numbers, and how it is filled up."""

import sys

import numpy as np
import pytest
import torch

from sglang.srt.model_executor.step_layout import LAST_TOKEN, filled, layout, padding_step, split
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.steps import step_of

register_cpu_ci(est_time=3, suite="base-a-test-cpu")

# a chunk behind a prefix, a prompt, and a decode
STEP = step_of([3, 1, 2], [7, 3, 9], [4, 3, 1], 2, [10, 11, 12, 13, 20, 21, 22], range(1, 9))


def numbers_of(step) -> dict[str, list[int]]:
    return {k: v.tolist() for k, v in split(torch.from_numpy(layout(step)), len(step.rows))._asdict().items()}


def test_the_numbers_of_a_step():
    assert numbers_of(STEP) == {
        "token_rows": [3, 3, 3, 3, 1, 1, 1, 2],
        "positions": [3, 4, 5, 6, 0, 1, 2, 8],
        "out_cache_loc": [101, 102, 103, 104, 105, 106, 107, 108],
        "out_cache_loc_swa": [201, 202, 203, 204, 205, 206, 207, 208],
        "ids": [10, 11, 12, 13, 20, 21, 22, LAST_TOKEN],
        "rows": [3, 1, 2],
        "seq_lens": [7, 3, 9],
        "extend_lens": [4, 3, 1],
        "prefix_lens": [3, 0, 8],
        "starts": [0, 4, 7],
    }


def test_what_is_filled_up_is_padding():
    step = filled(STEP, tokens=12, requests=6)
    assert step.num_extends == 6 and step.sampled is STEP.sampled
    assert numbers_of(step) == {
        "token_rows": [3, 3, 3, 3, 1, 1, 1, 2, 0, 0, 0, 0],
        "positions": [3, 4, 5, 6, 0, 1, 2, 8, 0, 1, 2, 3],
        "out_cache_loc": [101, 102, 103, 104, 105, 106, 107, 108, 0, 0, 0, 0],
        "out_cache_loc_swa": [201, 202, 203, 204, 205, 206, 207, 208, 0, 0, 0, 0],
        "ids": [10, 11, 12, 13, 20, 21, 22, LAST_TOKEN, 0, 0, 0, 0],
        "rows": [3, 1, 2, 0, 0, 0],
        "seq_lens": [7, 3, 9, 0, 0, 4],
        "extend_lens": [4, 3, 1, 0, 0, 4],
        "prefix_lens": [3, 0, 8, 0, 0, 0],
        "starts": [0, 4, 7, 8, 8, 8],
    }


def test_a_full_step_keeps_its_tokens():
    step = filled(STEP, tokens=8, requests=5)
    numbers, own = numbers_of(step), numbers_of(STEP)
    assert all(numbers[name] == own[name] for name in ("token_rows", "positions", "out_cache_loc", "ids"))
    assert numbers["extend_lens"] == [4, 3, 1, 0, 0]


@pytest.mark.parametrize(("tokens", "lengths"), [(1, [1]), (40, [40]), (41, [40, 1]), (120, [40, 40, 40])])
def test_a_padding_step_fits_the_context(tokens, lengths):
    step = padding_step(tokens, longest=40)
    assert step.extend_lens.tolist() == step.seq_lens.tolist() == lengths and not step.rows.any()
    assert step.num_extends == len(lengths) and len(step.prefill_ids) == len(step.out_cache_loc) == tokens
    assert len(layout(step)) == 5 * (tokens + len(lengths)) and layout(step).dtype == np.int64


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
