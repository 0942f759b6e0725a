"""Steps as numbers: how one lies in an array that goes to the device in one copy, and how one of prompts is filled up
with padding.

Padding's requests are row 0 of the tables, its tokens lie in slot 0 of both kinds.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from torch import Tensor

from sglang.srt.model_executor.step_io import StepInput
from sglang.srt.sampling.sampling_flags import SamplingFlags

LAST_TOKEN = -1  # among the ids: the row's newest token, which the device knows
PADDING_REQUESTS = 2  # that a filled step has at least beyond its own


class StepTensors(NamedTuple):
    """What layout() has of each of T new tokens, and of each of B requests; int64."""

    token_rows: Tensor  # [T]
    positions: Tensor
    out_cache_loc: Tensor
    out_cache_loc_swa: Tensor
    ids: Tensor  # LAST_TOKEN, or a token
    rows: Tensor  # [B]
    seq_lens: Tensor
    extend_lens: Tensor
    prefix_lens: Tensor
    starts: Tensor


PER_TOKEN = StepTensors._fields.index("rows")
PER_REQUEST = len(StepTensors._fields) - PER_TOKEN


def decode_layout(step: StepInput) -> np.ndarray:
    """Of a step of decodes alone: request rows, lengths, slots, sliding slots [4, B] int64."""
    return np.stack((step.rows, step.seq_lens, step.out_cache_loc, step.out_cache_loc_swa))


def layout(step: StepInput) -> np.ndarray:
    """The arrays of StepTensors, one after another; int64."""
    lengths = step.extend_lens
    starts, prefix_lens = np.cumsum(lengths) - lengths, step.seq_lens - lengths
    positions = np.arange(int(lengths.sum())) + np.repeat(prefix_lens - starts, lengths)
    decodes = np.full(len(positions) - len(step.prefill_ids), LAST_TOKEN)
    slots = step.out_cache_loc, step.out_cache_loc_swa
    per_token = np.repeat(step.rows, lengths), positions, *slots, step.prefill_ids, decodes
    return np.concatenate((*per_token, step.rows, step.seq_lens, lengths, prefix_lens, starts))


def split(numbers: Tensor, requests: int) -> StepTensors:
    """Views of layout()'s array of a step of so many requests."""
    per_request = PER_REQUEST * requests
    tokens, others = numbers.split([len(numbers) - per_request, per_request])
    return StepTensors(*tokens.view(PER_TOKEN, -1), *others.view(PER_REQUEST, -1))


def filled(step: StepInput, tokens: int, requests: int) -> StepInput:
    """A step of prompts only with so many tokens and requests: each decode is a prompt of one token, and behind the
    step's own are padding's, PADDING_REQUESTS at least, none of which has a token but the last, which has those left
    over."""
    left, decodes = tokens - int(step.extend_lens.sum()), len(step.rows) - step.num_extends
    empty, lengths = np.zeros((2, requests - len(step.rows)), dtype=np.int64)
    lengths[-1] = left
    padding = np.zeros(left, dtype=np.int64)
    return replace(
        step,
        rows=np.concatenate((step.rows, empty)),
        seq_lens=np.concatenate((step.seq_lens, lengths)),
        extend_lens=np.concatenate((step.extend_lens, lengths)),
        num_extends=requests,
        prefill_ids=np.concatenate((step.prefill_ids, np.full(decodes, LAST_TOKEN), padding)),
        out_cache_loc=np.concatenate((step.out_cache_loc, padding)),
        out_cache_loc_swa=np.concatenate((step.out_cache_loc_swa, padding)),
    )


def padding_step(tokens: int, longest: int) -> StepInput:
    """A prefill of `tokens` tokens that belong to no request, in prompts of up to `longest`."""
    lengths = np.full(-(-tokens // longest), longest, dtype=np.int64)
    lengths[-1] -= lengths.sum() - tokens
    zeros = np.zeros(tokens, dtype=np.int64)
    return StepInput(
        rows=np.zeros_like(lengths),
        seq_lens=lengths,
        extend_lens=lengths,
        num_extends=len(lengths),
        prefill_ids=zeros,
        out_cache_loc=zeros,
        out_cache_loc_swa=zeros,
        sampled=np.zeros(0, dtype=np.int64),
        flags=SamplingFlags(0),
    )
