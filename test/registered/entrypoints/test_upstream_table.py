"""docs/upstream.md names every field and sampling parameter there is, and what it says of null is what happens."""

import json
import re
import sys
from pathlib import Path

import msgspec
import pytest

import sglang
from sglang.srt.entrypoints.checks import refuse_unserved
from sglang.srt.entrypoints.generate_api import GenerateRequest
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest
from sglang.srt.managers.generation import RequestError
from sglang.srt.sampling.sampling_params import CHECKS, MAX_NEW_TOKENS, SamplingParams
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=3, suite="unit-test-cpu")

DOC = Path(sglang.__file__).parents[2] / "docs" / "upstream.md"
ROWS = [re.split(r"\s*\|\s*", line)[1:-1] for line in DOC.read_text().splitlines() if line.startswith("|")][2:]


def names(kind: str) -> list[str]:
    return [name for row in ROWS if row[0] == kind for name in re.findall(r"`([^`]+)`", row[1])]


def test_the_table_is_whole():
    assert all(len(row) == 4 and row[3] for row in ROWS)
    assert {row[0] for row in ROWS} == {
        "sampling", "stop", "rid", "stream", "logprobs", "/generate", "OpenAI", "Responses", "Anthropic", "chat",
        "error", "start", "engine",
    }  # fmt: skip
    assert len(DOC.read_text().splitlines()) <= 250


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("sampling", set(CHECKS)),
        ("/generate", set(GenerateRequest.__struct_fields__)),
        ("OpenAI", {*CompletionRequest.__struct_fields__, *ChatCompletionRequest.__struct_fields__}),
    ],
)
def test_names_are_those_of_the_code(kind, fields):
    told = names(kind)
    assert sorted(told) == sorted(set(told)), "a name twice"
    assert set(told) == fields


@pytest.mark.parametrize("row", [row for row in ROWS if row[0] == "sampling"], ids=lambda row: row[1])
def test_what_null_means(row):
    """The third column is the default, as JSON where it is a value; null gives it, and leaving the field out does."""
    words = {"none": None, "the flag's": None}
    for name in re.findall(r"`([^`]+)`", row[1]):
        got = SamplingParams.from_request({name: None})
        if name == "max_new_tokens":
            assert row[2].startswith("left out 128; null: what the context holds")
            assert (SamplingParams().max_new_tokens, got.max_new_tokens) == (128, MAX_NEW_TOKENS)
            continue
        assert got == SamplingParams()
        if name in CHECKS:
            value = getattr(got, name)
            assert (None if value == [] else value) == (words[row[2]] if row[2] in words else json.loads(row[2]))


BODIES = {GenerateRequest: {}, CompletionRequest: {"prompt": "a"}, ChatCompletionRequest: {"messages": []}}


@pytest.mark.parametrize("body_type", BODIES)
def test_nothings_of_upstreams_fields_pass_and_what_asks_is_refused(body_type):
    """Typed clients and routers send every field that they know, with its default."""
    for name in body_type.NOT_SERVED:
        for nothing in (None, False, 0, 0.0, "", [], {}, [None], [None, None]):
            refuse_unserved(msgspec.convert(BODIES[body_type] | {name: nothing}, body_type))
        for something in (True, 1, "a", ["a"], [None, 1], {"a": 1}):
            with pytest.raises(RequestError, match=f"^{name} is not supported"):
                refuse_unserved(msgspec.convert(BODIES[body_type] | {name: something}, body_type))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
