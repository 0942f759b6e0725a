"""What a request needs from the sampler, and a batch of them."""

import sys

import pytest

from sglang.srt.sampling.sampling_flags import SamplingFlags, combine, flag_bits
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=2, suite="unit-test-cpu")


@pytest.mark.parametrize(
    "params,wanted",
    [
        (SamplingParams(top_k=1), 0),
        (SamplingParams(top_k=1, top_p=0.5, min_p=0.2), 0),
        (SamplingParams(), SamplingFlags.DRAW),
        (SamplingParams(top_k=128, top_p=0.9), SamplingFlags.DRAW | SamplingFlags.TOP_K | SamplingFlags.TOP_P),
        (SamplingParams(top_k=129), SamplingFlags.DRAW | SamplingFlags.TOP_K | SamplingFlags.FULL_SORT),
        (SamplingParams(top_p=0.9), SamplingFlags.DRAW | SamplingFlags.TOP_P | SamplingFlags.FULL_SORT),
        (SamplingParams(min_p=0.1), SamplingFlags.DRAW | SamplingFlags.MIN_P),
        (SamplingParams(top_k=1, frequency_penalty=0.1), SamplingFlags.PENALTY),
        (SamplingParams(top_k=1, presence_penalty=-0.1), SamplingFlags.PENALTY),
        (SamplingParams(top_k=1, repetition_penalty=0.9), SamplingFlags.PENALTY),
        (SamplingParams(top_k=1, logit_bias={"1": 1.0}), SamplingFlags.BIAS),
        (SamplingParams(top_k=1, logit_bias={}), 0),
        (SamplingParams(top_k=1, min_new_tokens=1), SamplingFlags.MIN_TOKENS),
        (SamplingParams(top_k=1, temperature=0.5), SamplingFlags.TEMPERATURE),
    ],
)
def test_flags_say_what_a_request_needs(params: SamplingParams, wanted: int):
    assert flag_bits(params) == wanted


def test_flags_of_a_batch_are_those_of_all():
    assert combine([]) == 0
    assert combine([1, 64]) == SamplingFlags.DRAW | SamplingFlags.BIAS


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
