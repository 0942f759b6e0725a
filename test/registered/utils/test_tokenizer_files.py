"""A tokenizer's folder is read as AutoTokenizer reads it: same ids, texts and named tokens, one row a field."""

import json
import sys
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from sglang.srt.utils.tokenizer import Tokenizer
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.tiny_tokenizer import make_model_folder

register_cpu_ci(est_time=4, suite="unit-test-cpu")

TEXTS = [
    "",
    " ",
    "hello the world",
    "  two  spaces\n\nand the apples",
    "naïve €5 😀 日本",
    "<|turn>user\nhi<turn|>",
    "a<eos>b <bos><eos> <s></s>",
    "<img> x <mine>y<s>z</s> a<mask>b",
    "[X]q <tool> <|turn>  x",
    "a . b , c ' s don 't <x1>  lead",
]
WORDS = ["the apples and the pears can't 12 hello"] * 3


def make_gemma(folder: Path) -> None:
    make_model_folder(folder)


def make_bytes(folder: Path) -> None:
    """Byte-level, as GPT-2's and Llama 3's."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    save(tokenizer, folder, ["<s>", "</s>"], bos_token="<s>", eos_token="</s>")


def make_qwen(folder: Path) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder, tokenizer.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    named = {"eos_token": special[2], "pad_token": special[0], "bos_token": None, "unk_token": None}
    save(tokenizer, folder, special, **named, additional_special_tokens=special[1:2], add_bos_token=False)


def save(tokenizer: tokenizers.Tokenizer, folder: Path, special: list[str], **config) -> None:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def make_llama(folder: Path) -> None:
    """SentencePiece's way, as Llama 2's."""
    make_model_folder(folder)
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    steps = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]
    edit(
        folder / "tokenizer.json",
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]},
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": steps},
    )


def edit(file: Path, **values) -> None:
    """Set fields of a JSON file; ... takes one out."""
    raw = json.loads(file.read_text()) | values
    file.write_text(json.dumps({name: value for name, value in raw.items() if value is not ...}))


def token(content: str, **fields) -> dict:
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False, **fields}


def added(content: str, **fields) -> dict:
    return {"__type": "AddedToken", **token(content, **fields)}


def check(folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer(str(folder))
    assert ours.size == len(theirs)
    assert ours.special_tokens == theirs.special_tokens_map
    for text in TEXTS:
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, special) == ids, text
            for skip in (True, False):
                assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), text


CONFIGS = [
    {},
    {"pad_token": "[X]"},  # a token that tokenizer.json does not have
    {"pad_token": "a"},  # one that it has, but not as a special one
    {"bos_token": None},
    {"bos_token": added("<s>", lstrip=True)},
    {"image_token": "<img>"},
    {"extra_special_tokens": ["<img>", "<mine>"]},
    {"extra_special_tokens": {"img_token": "<img>"}},
    {"extra_special_tokens": [added("<img>", lstrip=True, special=True), added("<x1>", rstrip=True, special=True)]},
    {"additional_special_tokens": ["<img>", "<turn|>"]},
    {"additional_special_tokens": ["<img>"], "extra_special_tokens": ["<mine>"]},
    {"bos_token": "<mine>", "eos_token": added("<mine>", single_word=True)},
    {"additional_special_tokens": [added("<img>", lstrip=True), "<x1>"]},  # not a special one, it says
    {"image_token": added("<img>", single_word=True), "extra_special_tokens": ["<img>"]},
    {"added_tokens_decoder": {"400": {"content": "<mine>", "special": False}, "9": {"content": "<img>"}}},
    {"added_tokens_decoder": {"1": {"content": "<|turn>", "special": False, "rstrip": True}}},
    {"add_bos_token": False, "add_eos_token": True},  # no effect beside a tokenizer.json
    {"split_special_tokens": True},
    {"clean_up_tokenization_spaces": True},  # not done for BPE
    {"model_max_length": 3, "truncation_side": "left", "padding_side": "right", "add_prefix_space": True},
]


@pytest.mark.parametrize("config", CONFIGS, ids=json.dumps)
@pytest.mark.parametrize("make", [make_gemma, make_bytes])
def test_tokenizer_config(tmp_path, make, config):
    make(tmp_path / "m")
    edit(tmp_path / "m" / "tokenizer_config.json", **config)
    check(tmp_path / "m")


@pytest.mark.parametrize("make", [make_gemma, make_bytes])
@pytest.mark.parametrize(
    ("config", "files"),
    [
        ({}, {"special_tokens_map.json": {"pad_token": "[X]", "additional_special_tokens": ["<img>"]}}),
        ({}, {"special_tokens_map.json": {"eos_token": token("</s>", lstrip=True)}}),
        ({}, {"special_tokens_map.json": {"tool_token": "<tool>"}}),
        ({"extra_special_tokens": ["<x1>"]}, {"special_tokens_map.json": {"extra_special_tokens": ["<img>", "<x1>"]}}),
        ({"extra_special_tokens": ["<x1>"]}, {"special_tokens_map.json": {"additional_special_tokens": ["<img>"]}}),
        ({"added_tokens_decoder": {}}, {"special_tokens_map.json": {"pad_token": "[X]"}}),  # then it is not read
        ({"extra_special_tokens": {"i_token": "[X]"}}, {"special_tokens_map.json": {"extra_special_tokens": ["<s>"]}}),
        ({}, {"special_tokens_map.json": {"tool_token": "</s>"}, "added_tokens.json": {"a": 415, "</s>": 391}}),
        ({}, {"added_tokens.json": {"<mine>": 399, "<img>": 380}}),
        ({"pad_token": "<img>"}, {"added_tokens.json": {"<mine>": 399, "<img>": 380}}),
        (
            {},
            {
                "added_tokens.json": {"<mine>": 399, "<img>": 380},
                "special_tokens_map.json": {"additional_special_tokens": ["<img>"]},
            },
        ),
    ],
)  # fmt: skip
def test_files_of_older_folders(tmp_path, make, config, files):
    make(tmp_path / "m")
    edit(tmp_path / "m" / "tokenizer_config.json", **config)
    for name, content in files.items():
        (tmp_path / "m" / name).write_text(json.dumps(content))
    check(tmp_path / "m")


PADDING = {
    "strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
    "pad_token": "[Y]",
}  # fmt: skip
TRUNCATION = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}


@pytest.mark.parametrize("make", [make_gemma, make_bytes])
@pytest.mark.parametrize(
    "parts", [{"padding": PADDING}, {"truncation": TRUNCATION}, {"added_tokens": []}, {"post_processor": None}]
)
def test_tokenizer_json(tmp_path, make, parts):
    make(tmp_path / "m")
    edit(tmp_path / "m" / "tokenizer_config.json", pad_token=...)
    edit(tmp_path / "m" / "tokenizer.json", **parts)
    check(tmp_path / "m")


@pytest.mark.parametrize(
    ("make", "name", "config"),
    [
        (make_gemma, "GemmaTokenizer", {}),
        (make_gemma, "GemmaTokenizerFast", {"bos_token": ..., "unk_token": ...}),
        (make_gemma, "GemmaTokenizer", {"bos_token": None}),
        (make_gemma, "GemmaTokenizer", {"added_tokens_decoder": {"9": {"content": "<turn|>", "special": True}}}),
        (make_gemma, "NoSuchTokenizer", {}),
        (make_llama, "PreTrainedTokenizerFast", {}),
        (make_llama, "LlamaTokenizer", {}),
        (make_llama, "LlamaTokenizerFast", {"legacy": True}),
        (make_llama, "LlamaTokenizer", {"legacy": False, "add_prefix_space": False}),
        (make_llama, "LlamaTokenizer", {"bos_token": ..., "eos_token": ...}),
        (make_qwen, "Qwen2Tokenizer", {}),
        (make_bytes, "PreTrainedTokenizerFast", {}),
    ],
)
def test_classes(tmp_path, make, name, config):
    make(tmp_path / "m")
    edit(tmp_path / "m" / "tokenizer_config.json", tokenizer_class=name, **config)
    check(tmp_path / "m")


def test_gemmas_class_makes_its_own_parts(tmp_path):
    make_gemma(tmp_path / "m")
    edit(tmp_path / "m" / "tokenizer.json", normalizer={"type": "Lowercase"}, pre_tokenizer=None)
    check(tmp_path / "m")
    edit(tmp_path / "m" / "tokenizer_config.json", tokenizer_class="GemmaTokenizer")
    check(tmp_path / "m")
    assert Tokenizer(str(tmp_path / "m")).decode(Tokenizer(str(tmp_path / "m")).encode("A b"), True) == "A b"


DEFAULT, FOR_TOOLS = "plain {{ messages[0].content }}{{ bos_token }}", "tools {{ tools[0].function.name }}"
NAMED = [{"name": "tool_use", "template": FOR_TOOLS}, {"name": "default", "template": DEFAULT}]
TOOL_FILE = "additional_chat_templates/tool_use.jinja"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ({"chat_template": DEFAULT}, {}),
        ({"chat_template": NAMED}, {}),
        ({"chat_template": "outranked"}, {"chat_template.jinja": DEFAULT}),
        ({"chat_template": "outranked"}, {"chat_template.jinja": DEFAULT, TOOL_FILE: FOR_TOOLS}),
        ({"chat_template": DEFAULT}, {"chat_template.json": json.dumps({"chat_template": "outranked"})}),
        ({"chat_template": DEFAULT, "extra_special_tokens": {"bos_token": "<x1>"}}, {}),
    ],
)  # fmt: skip
def test_chat_templates(tmp_path, config, files):
    from transformers import AutoTokenizer

    folder = tmp_path / "m"
    make_gemma(folder)
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", **config)
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    ours, theirs = Tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "Hi"}]
    for tools in (None, TOOLS):
        want = theirs.apply_chat_template(chat, tools=tools, tokenize=False, add_generation_prompt=True)
        assert ours.render_chat(chat, tools) == want
        assert want.startswith("tools f" if tools and "tool_use" in json.dumps([config, files]) else "plain Hi")


def test_a_processors_older_template_file(tmp_path):
    """transformers' processors read it, its tokenizers do not; here it is better than none."""
    make_gemma(tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    (tmp_path / "m" / "chat_template.json").write_text(json.dumps({"chat_template": DEFAULT}))
    assert Tokenizer(str(tmp_path / "m")).render_chat([{"role": "user", "content": "Hi"}]) == "plain Hi<bos>"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {
                "clean_up_tokenization_spaces": True,
                "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True,
            },
            "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output is not supported; set it to false",
        ),
        ({"bos_token": {"no": "content"}}, "its special tokens can't be read: a token is text or an object"),
        ({"extra_special_tokens": [3]}, "its special tokens can't be read: a token is text or an object"),
        ({"added_tokens_decoder": {"x": {"content": "<a>"}}}, "its special tokens can't be read"),
        ({"added_tokens_decoder": {"7": "<a>"}}, "its special tokens can't be read"),
        ({"chat_template": 3}, "chat_template in .* must be text, or texts by name"),
        ({"chat_template": [{"name": "default"}]}, "chat_template in .* must be text, or texts by name"),
    ],
)
def test_what_can_not_be_read_is_one_line(tmp_path, config, message):
    make_gemma(tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    edit(tmp_path / "m" / "tokenizer_config.json", **config)
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer(str(tmp_path / "m"))
    assert "\n" not in str(caught.value)


def test_cleaning_up_where_transformers_would_do_it(tmp_path):
    words = models.WordLevel({"<unk>": 0, "a": 1, ".": 2}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.add_special_tokens([AddedToken("<unk>")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    Tokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"clean_up_tokenization_spaces": True}))
    with pytest.raises(ValueError, match="clean_up_tokenization_spaces is not supported; set it to false"):
        Tokenizer(str(tmp_path))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
