"""SamplingFlags: what a batch needs from the sampler, as the scheduler tells it. No torch."""

import enum
from functools import reduce
from operator import or_

from sglang.srt.sampling.sampling_params import SamplingParams

SMALL_TOP_K = 128  # up to here top_k takes a selection, above it a full sort


class SamplingFlags(enum.IntFlag):
    """What a batch needs from the sampler, so that nothing branches on device data."""

    DRAW = 1  # some row is not greedy
    TOP_K = 2  # of rows that draw, as are the next three
    TOP_P = 4
    MIN_P = 8
    FULL_SORT = 16  # some row's cut may lie beyond the SMALL_TOP_K best tokens
    PENALTY = 32
    BIAS = 64
    MIN_TOKENS = 128
    TEMPERATURE = 256
    MASK = 512  # some row has a grammar: its tokens are masked


def flag_bits(params: SamplingParams) -> int:
    """The SamplingFlags one request needs, as a plain int."""
    bits = 0
    if params.top_k != 1:
        bits |= SamplingFlags.DRAW
        if params.top_k > 0:
            bits |= SamplingFlags.TOP_K
        if params.top_p < 1:
            bits |= SamplingFlags.TOP_P
        if params.min_p > 0:
            bits |= SamplingFlags.MIN_P
        if params.top_k > SMALL_TOP_K or (params.top_p < 1 and params.top_k < 0):
            bits |= SamplingFlags.FULL_SORT
    if params.frequency_penalty or params.presence_penalty or params.repetition_penalty != 1:
        bits |= SamplingFlags.PENALTY
    if params.logit_bias:
        bits |= SamplingFlags.BIAS
    if params.min_new_tokens:
        bits |= SamplingFlags.MIN_TOKENS
    if params.temperature != 1:
        bits |= SamplingFlags.TEMPERATURE
    if params.grammar is not None:
        bits |= SamplingFlags.MASK
    return int(bits)


def combine(bits: list[int]) -> SamplingFlags:
    """What a batch of requests needs, given flag_bits() of each."""
    return SamplingFlags(reduce(or_, bits, 0))
