"""Prompts of the benchmarks: lengths, seeds, and what a malformed file is told."""

import json
import sys

import pytest

from sglang.bench_serving import make_parser
from sglang.benchmark.datasets import SAMPLERS, get_dataset, text_of_length
from sglang.srt.utils.tokenizer import Tokenizer
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.tiny_tokenizer import make_model_folder

register_cpu_ci(est_time=3, suite="unit-test-cpu")

CHATS = [
    {"conversations": [{"from": "human", "value": f"{'the apples ' * i}?"}, {"from": "gpt", "value": "and" * 9}]}
    for i in range(1, 9)
]
PROBLEMS = [{"question": f"{i} and {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(9)]

REQUESTS = [{"messages": [{"role": "user", "content": f"{'the apples ' * i}?"}], "max_tokens": i} for i in range(1, 9)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer(make_model_folder(tmp_path_factory.mktemp("m")))


@pytest.fixture
def make(tokenizer, tmp_path):
    """make("--flags", file=rows or text, chat=False): the rows; a list of records is written as JSON lines."""

    def make(*flags: str, file=None, chat: bool = False, with_tokenizer: bool = True, vocab_size: int | None = 300):
        if file is not None:
            path = tmp_path / "data"
            path.write_text(file if isinstance(file, str) else "\n".join(map(json.dumps, file)))
            flags = ("--dataset-path", str(path), *flags)
        args = make_parser().parse_args(flags)
        return get_dataset(args, tokenizer if with_tokenizer else None, vocab_size, chat)

    return make


def file_of(name: str):
    chats = json.dumps(CHATS)
    return {"sharegpt": chats, "random": chats, "custom": CHATS, "gsm8k": PROBLEMS}.get(name)


def small(name: str) -> tuple[str, ...]:
    if name == "generated-shared-prefix":
        return ("--gsp-num-groups", "2", "--gsp-prompts-per-group", "2", "--gsp-system-prompt-len", "30")
    return ("--num-prompts", "4", "--random-input-len", "30", "--random-output-len", "9")


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "openai"])
@pytest.mark.parametrize("ids", [False, True])
def test_rows_of_every_dataset(make, tokenizer, name, ids):
    """A row's length is that of its prompt as a server counts it, and the seed alone decides."""
    flags = ("--dataset-name", name, *small(name), *(["--tokenize-prompt"] if ids else []))
    rows = make(*flags, file=file_of(name))
    assert len(rows) == 4 and all(row.output_len >= 1 for row in rows)
    for row in rows:
        assert isinstance(row.prompt, list if ids else str)
        assert row.prompt_len == len(row.prompt if ids else tokenizer.encode(row.prompt))
    assert make(*flags, file=file_of(name)) == rows
    assert make(*flags, "--seed", "43", file=file_of(name)) != rows or name in ("custom", "gsm8k")


@pytest.mark.parametrize("name", ["random", "random-ids"])
@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("length", [2, 3, 50])
def test_exact_lengths(make, name, ids, length):
    flags = ("--random-input-len", str(length), "--random-output-len", "7", "--random-range-ratio", "1")
    rows = make("--dataset-name", name, "--num-prompts", "9", *flags, *(["--tokenize-prompt"] if ids else []),
                file=file_of(name))  # fmt: skip
    assert {(row.prompt_len, row.output_len) for row in rows} == {(length, 7)}


def test_range_ratio(make):
    """Uniform from half the length to the length, both included."""
    flags = ("--random-input-len", "11", "--random-output-len", "4", "--random-range-ratio", "0.5")
    rows = make("--dataset-name", "random-ids", "--tokenize-prompt", "--num-prompts", "400", *flags)
    assert {row.prompt_len for row in rows} == set(range(5, 12)) and {row.output_len for row in rows} == {2, 3, 4}
    rows = make("--dataset-name", "random-ids", "--tokenize-prompt", "--num-prompts", "100", "--random-output-len", "3")
    assert {row.output_len for row in rows} == {1, 2, 3}  # ratio 0: never nothing


def test_random_ids_follow_each_other(make):
    """Without a tokenizer too; ids wrap at the vocabulary's end."""
    rows = make("--dataset-name", "random-ids", "--tokenize-prompt", "--num-prompts", "20", with_tokenizer=False)
    assert all((b - a) % 300 == 1 for row in rows for a, b in zip(row.prompt, row.prompt[1:], strict=False))
    assert {token for row in rows for token in row.prompt} == set(range(300))


def test_random_repeats_a_short_conversation(make, tokenizer):
    flags = ("--random-input-len", "50", "--random-range-ratio", "1", "--tokenize-prompt")
    rows = make("--dataset-name", "random", "--num-prompts", "3", *flags, file=CHATS[:1])
    own = tokenizer.encode(CHATS[0]["conversations"][0]["value"], add_special_tokens=False)
    assert all(row.prompt == (own * 50)[:50] for row in rows)


def test_text_of_length_with_cut_characters(tokenizer):
    """The foreign character is three byte tokens: a length that cuts one is filled up with what follows."""
    ids = tokenizer.encode("a値" * 40, add_special_tokens=False)
    for length in (10, 11, 12, 13):
        text, reached = text_of_length(ids, length, tokenizer)
        assert reached == length == len(tokenizer.encode(text)) and "\ufffd" not in text


def test_sharegpt_takes_first_turns(make, tokenizer):
    rows = make("--dataset-name", "sharegpt", "--num-prompts", "8", file=json.dumps(CHATS))
    assert {row.prompt for row in rows} == {chat["conversations"][0]["value"] for chat in CHATS}
    answer = len(tokenizer.encode(CHATS[0]["conversations"][1]["value"], add_special_tokens=False))
    assert {row.output_len for row in rows} == {answer}
    rows = make("--dataset-name", "sharegpt", "--num-prompts", "8", "--sharegpt-output-len", "3", file=CHATS)
    assert {row.output_len for row in rows} == {3}


def test_sharegpt_leaves_conversations_out(make, tokenizer):
    lengths = sorted(len(tokenizer.encode(chat["conversations"][0]["value"])) for chat in CHATS)
    limit = ("--sharegpt-context-len", str(lengths[3] + 5), "--sharegpt-output-len", "5")
    rows = make("--dataset-name", "sharegpt", "--num-prompts", "4", *limit, file=CHATS)
    assert sorted(row.prompt_len for row in rows) == lengths[:4]
    with pytest.raises(ValueError, match="gives 4 usable prompts, --num-prompts asks for 5"):
        make("--dataset-name", "sharegpt", "--num-prompts", "5", *limit, file=CHATS)
    alone = [{"conversations": [{"value": "hello there"}]}, {"conversations": []}, {}]
    empty = [
        {"conversations": [{"value": "hello"}, {"value": ""}]},
        {"conversations": [{"value": ""}, {"value": "abc"}]},
    ]
    with pytest.raises(ValueError, match="gives 0 usable prompts"):
        make("--dataset-name", "sharegpt", "--num-prompts", "1", file=alone + empty)


def test_custom_prompts(make, tokenizer):
    rows = [{"prompt": "abc", "output_len": 5}, {"prompt": [7, 8], "output_len": 6}, {"prompt": "d", "output_len": 1}]
    made = make("--dataset-name", "custom", "--num-prompts", "2", file=rows)
    assert [(row.prompt, row.prompt_len, row.output_len) for row in made] == [("abc", 4, 5), ([7, 8], 2, 6)]
    made = make("--dataset-name", "custom", "--num-prompts", "3", "--sharegpt-output-len", "9", file=rows)
    assert [row.output_len for row in made] == [9, 9, 9]
    turns = [{"conversation": [{"content": "the apples"}, {"content": "stop ing"}]}]
    (row,) = make("--dataset-name", "custom", "--num-prompts", "1", file=turns)
    assert row.prompt == "the apples" and row.output_len == len(tokenizer.encode("stop ing")) - 1


@pytest.mark.parametrize(
    "row,message",
    [
        ({"prompt": "a"}, 'record 2 needs a "prompt" and an "output_len" of at least 1'),
        ({"prompt": "a", "output_len": 0}, "record 2 needs"),
        ({"output_len": 3}, "record 2 needs"),
        ({"prompt": [4, -1], "output_len": 3}, "record 2 has a negative token id, -1"),
    ],
)
def test_wrong_custom_prompts(make, row, message):
    with pytest.raises(ValueError, match=message):
        make("--dataset-name", "custom", "--num-prompts", "2", file=[{"prompt": "a", "output_len": 1}, row])


def test_ids_do_not_go_into_a_chat(make):
    with pytest.raises(ValueError, match="record 1 has token ids, which cannot be put into a chat"):
        make("--dataset-name", "custom", "--num-prompts", "1", file=[{"prompt": [3], "output_len": 1}], chat=True)


def groups(rows, prefix: int) -> list[tuple[int, ...]]:
    return [tuple(row.prompt[:prefix]) for row in rows]


def test_shared_prefixes_in_order_and_of_different_lengths(make):
    flags = ("--dataset-name", "generated-shared-prefix", "--tokenize-prompt", "--gsp-num-groups", "3",
             "--gsp-prompts-per-group", "40", "--gsp-system-prompt-len", "8", "--gsp-question-len", "20",
             "--gsp-output-len", "30")  # fmt: skip
    found = groups(make(*flags, "--gsp-ordered"), 8)
    assert [found.index(each) for each in found] == [0] * 40 + [40] * 40 + [80] * 40
    shuffled = groups(make(*flags), 8)
    assert sorted(shuffled) == sorted(found) and shuffled != found
    rows = make(*flags, "--gsp-range-ratio", "0.5")
    assert {row.output_len for row in rows} == set(range(15, 31))
    assert 4 + 10 <= min(row.prompt_len for row in rows) < max(row.prompt_len for row in rows) <= 8 + 20


def test_groups_drawn_by_zipfs_law(make):
    """Group r gets a share as 1/r^2 of 1 + 1/4 + 1/9; questions are those of the uniform run."""
    flags = ("--dataset-name", "generated-shared-prefix", "--tokenize-prompt", "--gsp-ordered", "--gsp-num-groups", "3",
             "--gsp-prompts-per-group", "200", "--gsp-system-prompt-len", "8", "--gsp-question-len", "4")  # fmt: skip
    even = make(*flags)
    drawn = make(*flags, "--gsp-group-distribution", "zipf", "--gsp-zipf-alpha", "2")
    heads = list(dict.fromkeys(groups(even, 8)))
    shares = [groups(drawn, 8).count(head) / 600 for head in heads]
    assert shares == pytest.approx([36 / 49, 9 / 49, 4 / 49], abs=0.05)
    assert [row.prompt[8:] for row in drawn] == [row.prompt[8:] for row in even]


def test_a_suffix_ends_each_prompt(make):
    rows = make("--dataset-name", "custom", "--num-prompts", "2", "--prompt-suffix", " and you", file=CHATS)
    assert all(row.prompt.endswith("? and you") for row in rows)
    rows = make("--dataset-name", "sharegpt", "--num-prompts", "2", "--prompt-suffix", "!", file=CHATS)
    assert all(row.prompt.endswith("?!") for row in rows)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({}, 'record 1 needs "messages", a list of objects'),
        ({"messages": ["x"]}, 'record 1 needs "messages", a list of objects'),
        (REQUESTS[0] | {"max_tokens": 0}, "max_tokens must be an integer of at least 1"),
        (REQUESTS[0] | {"max_tokens": "9"}, "max_tokens must be an integer"),
    ],
)  # fmt: skip
def test_chats_that_can_not_be(make, record: dict, says: str):
    with pytest.raises(ValueError, match=says):
        make("--dataset-name", "openai", "--num-prompts", "1", file=[record], chat=True)


def test_chats_need_a_chat(make):
    rows = make("--dataset-name", "openai", "--num-prompts", "3", file=REQUESTS, chat=True)
    assert [row.output_len for row in rows] == [1, 2, 3] and rows[0].messages == REQUESTS[0]["messages"]
    assert make("--dataset-name", "openai", "--num-prompts", "1", file=[{"messages": REQUESTS[0]["messages"]}],
                chat=True)[0].output_len == 256  # fmt: skip
    with pytest.raises(ValueError, match="it needs --backend sglang-oai-chat"):
        make("--dataset-name", "openai", "--num-prompts", "3", file=REQUESTS)


def test_shared_prefixes(make):
    flags = ("--gsp-num-groups", "3", "--gsp-prompts-per-group", "4", "--gsp-system-prompt-len", "40",
             "--gsp-question-len", "6", "--gsp-output-len", "5")  # fmt: skip
    rows = make("--dataset-name", "generated-shared-prefix", *flags, "--tokenize-prompt", vocab_size=50_000)
    assert {(row.prompt_len, row.output_len) for row in rows} == {(46, 5)}
    heads = [tuple(row.prompt[:40]) for row in rows]
    assert sorted(map(heads.count, set(heads))) == [4, 4, 4] and heads[:4] != [heads[0]] * 4  # shuffled
    assert len({tuple(row.prompt[40:]) for row in rows}) == 12
    texts = make("--dataset-name", "generated-shared-prefix", *flags)
    heads = [row.prompt.partition("\n\n")[0] for row in texts]
    assert len(texts) == 12 and sorted(map(heads.count, set(heads))) == [4, 4, 4]


def test_gsm8k_forms(make, tokenizer):
    flags = ("--dataset-name", "gsm8k", "--num-prompts", "2", "--gsm8k-num-shots", "1", "--gsm8k-output-len", "30")
    rows = make(*flags, file=PROBLEMS)
    shot = "Question: 0 and 0?\nAnswer: It is 0.\n#### 0\n\n"
    assert [row.prompt for row in rows] == [f"{shot}Question: {i} and {i}?\nAnswer:" for i in (1, 2)]
    assert {row.output_len for row in rows} == {30}
    assert [row.prompt for row in make(*flags, file=PROBLEMS, chat=True)] == ["0 and 0?", "1 and 1?"]
    templated = make(*flags, "--apply-chat-template", file=PROBLEMS)
    assert templated[0].prompt == "<|turn>user\n0 and 0?<turn|>\n<|turn>model\n"  # <bos> comes with encoding
    assert tokenizer.encode(templated[0].prompt)[0] == tokenizer.encode("")[0]
    with pytest.raises(ValueError, match="gives 8 usable prompts, --num-prompts asks for 9"):
        make("--dataset-name", "gsm8k", "--num-prompts", "9", "--gsm8k-num-shots", "1", file=PROBLEMS)


def test_gsm8k_without_a_file(make):
    rows = make("--dataset-name", "gsm8k", "--num-prompts", "20", "--gsm8k-num-shots", "0")
    assert len({row.prompt for row in rows}) == 20 and all(row.prompt.startswith("Question: ") for row in rows)
    assert make("--dataset-name", "gsm8k", "--num-prompts", "20", "--gsm8k-num-shots", "0", "--seed", "1") != rows
    assert len(make("--dataset-name", "gsm8k")) == 200
    with pytest.raises(ValueError, match="the shipped file gives 495 usable prompts, --num-prompts asks for 496"):
        make("--dataset-name", "gsm8k", "--num-prompts", "496")


@pytest.mark.parametrize("name", ["random", "sharegpt", "custom"])
def test_a_file_that_is_not_there(make, tmp_path, name):
    with pytest.raises(ValueError, match="give it with --dataset-path .nothing is downloaded."):
        make("--dataset-name", name)
    with pytest.raises(ValueError, match=r"--dataset-path .*none: No such file or directory; nothing is downloaded"):
        make("--dataset-name", name, "--dataset-path", str(tmp_path / "none"))


@pytest.mark.parametrize(
    "name,text,message",
    [
        ("gsm8k", '{"question": "a", "answer": "#### 1"}\n{"question": "b"}', "line 2: .*missing .* field `answer`"),
        ("gsm8k", '{"question": "a", "answer": "#### 1"}\n\n{"question"', "line 3: "),
        ("custom", '{"prompt": 3}', "line 1: "),
        ("sharegpt", '[{"conversations": []}, {"conversations": 3}]', "entry [1.]?.*conversations"),
        ("sharegpt", '[{"conversations": []', "not valid JSON"),
        ("sharegpt", "<html>", "line 1: "),
        ("sharegpt", "", "it holds no records"),
        ("sharegpt", "[]", "it holds no records"),
        ("random", '[{"conversations": [{"value": ""}]}]', "no conversation has any text"),
        ("random", '[{"conversations": []}]', "no conversation has any text"),
        ("sharegpt", b"\xff\xfe\x00", "line 1: "),
    ],
)
def test_malformed_files(make, tmp_path, name, text, message):
    (tmp_path / "bad").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as error:
        make("--dataset-name", name, "--num-prompts", "1", "--dataset-path", str(tmp_path / "bad"))
    assert str(tmp_path / "bad") in str(error.value) and "\n" not in str(error.value)


def test_what_is_needed_is_named(make):
    with pytest.raises(ValueError, match="random-ids without --tokenize-prompt needs a tokenizer"):
        make("--dataset-name", "random-ids", with_tokenizer=False)
    with pytest.raises(ValueError, match="gsm8k needs a tokenizer: .* --tokenizer"):
        make("--dataset-name", "gsm8k", "--tokenize-prompt", with_tokenizer=False)
    with pytest.raises(ValueError, match="vocabulary's size is not known"):
        make("--dataset-name", "random-ids", "--tokenize-prompt", with_tokenizer=False, vocab_size=None)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
