"""generation_config.json: what is taken over gives transformers' tokens, the rest is named or refused."""

import json
import sys
from pathlib import Path

import pytest
import torch

from sglang.srt.configs.generation_config import (
    NOT_READ,
    SAMPLING_FIELDS,
    check_defaults,
    never_sampled,
    sampling_defaults,
    without_effect,
)
from sglang.srt.configs.model_config import ModelConfig
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.engine_harness import engine, prompts
from sglang.test.tiny_models import load_oracle, make_tiny_assistant, make_tiny_gemma4, make_tiny_unified

register_cpu_ci(est_time=12, suite="base-a-test-cpu")

TAKEN_OVER = {*SAMPLING_FIELDS, "do_sample", "stop_strings", "eos_token_id", "suppress_tokens", "bad_words_ids"}
# what changes no token of a decoder that makes one answer without beams: forms of output, caches, compilers, names
NOTHING = {
    "early_stopping", "use_cache", "cache_implementation", "cache_config", "max_cache_len", "length_penalty",
    "renormalize_logits", "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "return_dict_in_generate", "pad_token_id", "bos_token_id", "encoder_no_repeat_ngram_size",
    "decoder_start_token_id", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind",
    "target_lookbehind", "assistant_ensemble_weight", "speculation_type", "compile_config", "disable_compile",
    "continuous_batching_config", "low_memory", "diversity_penalty", "prefill_chunk_size", "transformers_version",
}  # fmt: skip


def test_every_field_of_transformers_is_taken_over_or_named_or_changes_nothing():
    from transformers import GenerationConfig

    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert fields == TAKEN_OVER | NOT_READ.keys() | NOTHING


@pytest.mark.parametrize(
    ("config", "want"),
    [
        ({}, {}),
        ({"temperature": 0.7, "top_k": 64, "top_p": 0.95}, {"temperature": 0.7, "top_k": 64, "top_p": 0.95}),
        ({"do_sample": True, "min_p": 0.1, "repetition_penalty": 1.2}, {"min_p": 0.1, "repetition_penalty": 1.2}),
        ({"do_sample": False, "temperature": 0.7, "top_k": 5}, {"temperature": 0.0}),
        ({"do_sample": False, "repetition_penalty": 1.2}, {"repetition_penalty": 1.2, "temperature": 0.0}),
        ({"top_k": 0, "top_p": 1.5, "temperature": None}, {"top_k": -1, "top_p": 1.0}),
        ({"stop_strings": ["END"], "eos_token_id": 3}, {"stop": ["END"]}),
        ({"stop_strings": "END"}, {"stop": "END"}),
    ],
)  # fmt: skip
def test_what_a_request_leaves_out(config, want):
    assert sampling_defaults(config) == want
    check_defaults(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"temperature": -1}, "generation_config.json: temperature must be a number from 0 to 10000, got -1"),
        ({"top_k": "all"}, "generation_config.json: top_k must be an integer"),
        ({"top_p": 0}, "generation_config.json: top_p must be a number above 0"),
        ({"repetition_penalty": 3.0}, r"repetition_penalty must be .* \(or start with --sampling-defaults openai"),
        ({"stop_strings": [1]}, "generation_config.json: stop must be a string or a list"),
    ],
)
def test_defaults_that_no_request_may_have(config, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_defaults(config)
    assert "\n" not in str(caught.value)


def test_what_has_no_effect_is_named():
    config = {"max_new_tokens": 9, "num_beams": 4, "typical_p": 1.0, "max_length": 20, "no_repeat_ngram_size": 0}
    words = [[5], [6, 7]]
    assert without_effect(config | {"temperature": 0.3, "mine": 1}) == {"max_new_tokens": 9, "num_beams": 4}
    assert without_effect({"bad_words_ids": words}) == {"bad_words_ids": words}
    assert without_effect({"bad_words_ids": [[5]]}) == {}


@pytest.mark.parametrize(
    "config",
    [
        {"suppress_tokens": 5},
        {"suppress_tokens": [-1]},
        {"suppress_tokens": [512]},
        {"suppress_tokens": ["5"]},
        {"bad_words_ids": [5]},
        {"bad_words_ids": [[5, 512]]},
        {"bad_words_ids": "5"},
    ],
)
def test_ids_that_are_none(config):
    with pytest.raises(ValueError, match=f"{next(iter(config))} must list ids of tokens below 512, got"):
        never_sampled(config, [1], 512)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_tiny_gemma4(tmp_path_factory.mktemp("saved"), "dense_k_eq_v", torch.float32)


def write(folder: Path, config: dict) -> None:
    (folder / "generation_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("field", ["suppress_tokens", "bad_words_ids", "eos_token_id", "all"])
def test_greedy_tokens_are_those_of_transformers(folder, field):
    """What a model likes to say is barred, or ends it: tokens and ends are those of generate() with the same file."""
    model, prompt = load_oracle(folder, torch.float32), prompts()[4]
    (plain,) = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None).tolist()
    liked = list(dict.fromkeys(plain[len(prompt) :]))
    config = {
        "suppress_tokens": {"suppress_tokens": liked[:2], "eos_token_id": 1},
        "bad_words_ids": {"bad_words_ids": [[token] for token in liked], "eos_token_id": [1, liked[3]]},
        "eos_token_id": {"eos_token_id": [1, liked[3]]},
        "all": {"eos_token_id": [liked[5]], "suppress_tokens": liked[1:2], "bad_words_ids": [[liked[2]]]},
    }[field]
    write(folder, config | {"do_sample": False, "pad_token_id": 0})
    model = load_oracle(folder, torch.float32)
    (want,) = model.generate(torch.tensor([prompt]), max_new_tokens=12).tolist()
    assert want != plain
    ends = ModelConfig.load(str(folder)).eos_token_ids
    assert 1 in ends  # config.json's
    harness = engine(folder, device="cpu", disable_cuda_graph=True)
    harness.add("r", prompt, 12, params={"top_k": 1, "stop_token_ids": ends})
    harness.run()
    assert harness.received["r"].ids == want[len(prompt) :]


def test_barred_tokens_stay_barred_with_drafts(tmp_path):
    """The 12B's pair: a drafter may like them, and no token of the answer is one."""
    target = make_tiny_unified(tmp_path / "target", torch.float32)
    drafter = make_tiny_assistant(tmp_path / "drafter", "unified", dtype=torch.float32)
    model, prompt = load_oracle(target, torch.float32), prompts()[4]
    (plain,) = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None).tolist()
    barred = list(dict.fromkeys(plain[len(prompt) :]))[:3]
    write(target, {"suppress_tokens": barred})
    harness = engine(
        target, device="cpu", disable_cuda_graph=True, speculative_algorithm="NEXTN",
        speculative_draft_model_path=str(drafter), speculative_num_steps=3, speculative_eagle_topk=2,
        speculative_num_draft_tokens=6,
    )  # fmt: skip
    harness.add("r", prompt, 12, params={"top_k": 1})
    harness.run()
    got = harness.received["r"].ids
    logits = model(torch.tensor([prompt + got[:-1]])).logits[0, len(prompt) - 1 :]
    assert got == logits.index_fill(1, torch.tensor(barred), -torch.inf).argmax(-1).tolist()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
