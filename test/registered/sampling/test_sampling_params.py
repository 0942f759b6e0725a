"""Sampling parameters from a request: defaults, null, bounds, and messages that name the field."""

import copy
import json
import sys

import msgspec
import pytest

from sglang.srt.sampling.sampling_flags import SamplingFlags, flag_bits
from sglang.srt.sampling.sampling_params import (
    CHECKS,
    GRAMMAR_FIELDS,
    MAX_GRAMMAR_BYTES,
    MAX_NEW_TOKENS,
    MAX_SCHEMA_DEPTH,
    SamplingParams,
)
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=2, suite="unit-test-cpu")

GOOD = {
    "max_new_tokens": [0, 1, 5.0, 1 << 30],
    "min_new_tokens": [0, 128],
    "stop": ["x", ["a", "b"], [], ["s"] * 32],
    "stop_token_ids": [[], [1, 2], 5, [0] * 1024],
    "stop_regex": ["a+b", ["x", "[0-9]"]],
    "temperature": [0.1, 1, 2.5],
    "top_p": [0.001, 1],
    "top_k": [-1, 1, 50],
    "min_p": [0, 1.0],
    "frequency_penalty": [-2, 0, 2],
    "presence_penalty": [-2.0, 2],
    "repetition_penalty": [0.01, 2],
    "logit_bias": [{}, {"5": 1}, {"0": -100, "7": 100.0}],
    "n": [1, 128],
    "ignore_eos": [True, False],
    "skip_special_tokens": [True, False],
    "spaces_between_special_tokens": [True, False],
    "no_stop_trim": [True, False],
    "stream_interval": [1, 100],
    "sampling_seed": [0, -5, 2**63 - 1, -(2**63)],
    "custom_params": [{}, {"a": [1]}],
    "json_schema": ["{}", "true"],
    "regex": ["a+"],
    "ebnf": ['root ::= "a"'],
    "structural_tag": ['{"type": "structural_tag", "format": {"type": "any_text"}}'],
    "thinking_budget": [0, 1, 1 << 30],
}
NAN, INF = float("nan"), float("inf")
BAD = {
    "max_new_tokens": [-1, 1.5, "8", True, 1 << 31, [1], INF, NAN, 10**5000],
    "min_new_tokens": [-1, 129, "x"],
    "stop": [5, [""], [1], ["s"] * 33, ["s"] * 1000, "x" * 2000, {"a": 1}, "\ud800", ["ok", "a\udfffb"]],
    "stop_token_ids": [[-1], [1.0], ["1"], [True], "5", list(range(1025)), [2**40]],
    "stop_regex": ["(", "x" * 257, 5, ["a{99999999999}"], ["a"] * 33, "\\L<name>", "\ud800"],
    "temperature": [-0.1, NAN, INF, -INF, "1", True, [1], 1e9, 10**400, 10**5000],
    "top_p": [0, -1, 1.1, NAN, "0.5"],
    "top_k": [0, -2, 1.5, "5"],
    "min_p": [-0.1, 1.1, NAN],
    "frequency_penalty": [-2.1, 2.1, NAN, "1"],
    "presence_penalty": [-3, INF],
    "repetition_penalty": [0, -1, 2.1],
    "logit_bias": [
        [1],
        {"x": 1},
        {"-1": 1},
        {"1": 101},
        {"1": "2"},
        {"1": 1, "01": 2},
        {str(i): 1 for i in range(1025)},
        {"1": NAN},
    ],
    "n": [0, 129, 1.5, True],
    "ignore_eos": [1, "true"],
    "skip_special_tokens": [0],
    "spaces_between_special_tokens": ["no"],
    "no_stop_trim": [2],
    "stream_interval": [0, -1, "1"],
    "sampling_seed": [1.5, 2**63, -(2**63) - 1, "7", True],
    "json_schema": ["{", "[1]", "5", 5, ["{}"], {"a": object()}, '{"a": "\0"}'],
    "regex": [5, ["a"], "a" * 65537, "\ud800"],
    "ebnf": [5, {"root": "a"}, "a\0"],
    "structural_tag": ["x", "[1]", 5, {}, {"structures": []}, '{"format": "\ud800"}'],
    "thinking_budget": [-1, 0.5, True, "5", 1 << 31, [1], {}],
    "custom_params": [[1], "x", {"a": "y" * 70000}, {"a": object()}, {"a": 2**70}, {"a": "\ud800"}],
}


def cases(table: dict[str, list]) -> list:
    """Each (name, value) under a numbered id: pytest can't print every value, 10**5000 for one."""
    return [
        pytest.param(name, value, id=f"{name}-{i}") for name, values in table.items() for i, value in enumerate(values)
    ]


def test_the_tables_cover_every_field():
    """But for `tools`, which no request gives."""
    assert set(GOOD) == set(BAD) == set(CHECKS) == set(SamplingParams.__struct_fields__) - {"tools"}
    with pytest.raises(ValueError, match="unknown sampling parameter 'tools'"):
        SamplingParams.from_request({"tools": "start: x"})


def test_a_grammar_of_calls_beside_a_form():
    params = SamplingParams.from_request({"regex": "a"})
    assert params.grammar == ("regex", "a")
    params.tools = "start: x"
    assert params.grammar == ("regex or tools", '["a", "start: x"]')
    params.regex = None
    assert params.grammar == ("tools", "start: x")


@pytest.mark.parametrize("name,value", cases(GOOD))
def test_good_values(name: str, value):
    got = getattr(SamplingParams.from_request({name: value}), name)
    if name in ("stop", "stop_regex", "stop_token_ids") and not isinstance(value, list):
        value = [value]
    assert got == value


@pytest.mark.parametrize("name,value", cases(BAD))
def test_bad_values_are_named(name: str, value):
    with pytest.raises(ValueError, match=name) as error:
        SamplingParams.from_request({name: value})
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", sorted({*CHECKS, *GRAMMAR_FIELDS}))
def test_null_is_the_default(name: str):
    if name != "max_new_tokens":
        assert SamplingParams.from_request({name: None}) == SamplingParams()


def test_null_max_new_tokens_is_as_many_as_there_is_room_for():
    assert SamplingParams.from_request({"max_new_tokens": None}).max_new_tokens == MAX_NEW_TOKENS
    assert SamplingParams.from_request({}, {"max_new_tokens": None}).max_new_tokens == 128  # it was not given


@pytest.mark.parametrize("name", GRAMMAR_FIELDS)
def test_an_empty_grammar_is_none(name):
    assert SamplingParams.from_request({name: ""}) == SamplingParams()


def test_defaults_fill_what_is_left_out():
    params = SamplingParams.from_request({"top_p": 0.5, "top_k": None}, {"temperature": 0.3, "top_p": 0.9, "top_k": 64})
    assert (params.temperature, params.top_p, params.top_k) == (0.3, 0.5, 64)


@pytest.mark.parametrize("temperature", [0, 1e-7])
def test_a_low_temperature_is_greedy(temperature: float):
    params = SamplingParams.from_request({"temperature": temperature, "top_k": 50})
    assert (params.temperature, params.top_k) == (1.0, 1)


@pytest.mark.parametrize("name,value", [("json_schema", '{"a": 1}'), ("regex", "a+"), ("ebnf", 'root ::= "a"')])
def test_a_grammar_and_its_kind(name: str, value: str):
    params = SamplingParams.from_request({name: value})
    assert params.grammar == (name, value)
    assert flag_bits(params) & SamplingFlags.MASK
    assert SamplingParams().grammar is None and not flag_bits(SamplingParams()) & SamplingFlags.MASK


def test_a_schema_may_be_an_object():
    assert SamplingParams.from_request({"json_schema": {"type": "object"}}).grammar[1] == '{"type":"object"}'


def test_both_ways_of_structural_tags_are_one():
    old = {"structures": [{"begin": "<f>", "schema": {"type": "object"}, "end": "</f>"}], "triggers": ["<f"]}
    content = {"type": "json_schema", "json_schema": {"type": "object"}}
    tags = [{"type": "tag", "begin": "<f>", "content": content, "end": "</f>"}]
    new = {"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": ["<f"], "tags": tags}}
    given = [old, json.dumps(old), copy.deepcopy(new), json.dumps(new)]
    for tag in given:
        kind, text = SamplingParams.from_request({"structural_tag": tag}).grammar
        assert (kind, json.loads(text)) == ("structural_tag", new)


DEEP = '{"a":' * MAX_SCHEMA_DEPTH


@pytest.mark.parametrize(
    "given,message",
    [
        ({"json_schema": "{"}, "json_schema is no JSON: .*column 2"),
        ({"json_schema": "[1]"}, "json_schema must be a JSON schema"),
        ({"json_schema": "[" * 30000}, "json_schema is no JSON"),
        ({"json_schema": DEEP + "{}" + "}" * MAX_SCHEMA_DEPTH}, "nested more than 64 levels deep"),
        ({"json_schema": 5}, "json_schema must be text, got 5"),
        ({"regex": ["a"]}, "regex must be text"),
        ({"regex": "a" * (MAX_GRAMMAR_BYTES + 1)}, "regex has 65537 bytes, at most 65536"),
        ({"regex": "\ud800"}, "regex must be valid Unicode"),
        ({"ebnf": "a\0"}, "ebnf holds a NUL character, at 1"),
        ({"regex": "a", "ebnf": "b"}, "regex and ebnf are both given"),
        ({"regex": "a", "min_new_tokens": 3}, "min_new_tokens contradicts regex"),
        (
            {"structural_tag": {"structures": [{"begin": "x"}], "triggers": []}},
            "has in structures.0. no begin",
        ),
        ({"structural_tag": {"format": {"type": "token", "token": "<x>"}}}, "names in token a token by its text"),
        ({"structural_tag": {"format": [{"exclude_tokens": [1, "x"]}]}}, "names in exclude_tokens a token by its text"),
        ({"structural_tag": {"format": {}}, "regex": "a"}, "regex and structural_tag are both given"),
    ],
)
def test_grammars_that_cannot_be_served(given: dict, message: str):
    with pytest.raises(ValueError, match=message) as error:
        SamplingParams.from_request(given)
    assert len(str(error.value)) < 400


def test_the_deepest_schema():
    levels = MAX_SCHEMA_DEPTH - 1
    assert SamplingParams.from_request({"json_schema": '{"a":' * levels + "{}" + "}" * levels}).json_schema


@pytest.mark.parametrize("given", [[], "x", 5, {"temprature": 1}])
def test_wrong_shapes_and_unknown_names(given):
    with pytest.raises(ValueError):
        SamplingParams.from_request(given)


@pytest.mark.parametrize("fields", [{"stop_token_ids": [100]}, {"logit_bias": {"100": 1}}])
def test_verify_refuses_ids_outside_the_vocabulary(fields: dict):
    params = SamplingParams.from_request(fields)
    params.verify(101)
    with pytest.raises(ValueError, match="token id 100 must be from 0 to 99"):
        params.verify(100)


def test_it_travels_as_msgpack():
    params = SamplingParams.from_request({"stop": "a", "logit_bias": {"5": 1}, "sampling_seed": -1})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


def test_a_thinking_budget_by_upstreams_name():
    """Its logit processors read it there."""
    assert SamplingParams.from_request({"custom_params": {"thinking_budget": 7}}).thinking_budget == 7
    both = {"thinking_budget": 5, "custom_params": {"thinking_budget": 7}}
    assert SamplingParams.from_request(both).thinking_budget == 5
    with pytest.raises(ValueError, match="custom_params.thinking_budget must be an integer from 0"):
        SamplingParams.from_request({"custom_params": {"thinking_budget": "7"}})


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
