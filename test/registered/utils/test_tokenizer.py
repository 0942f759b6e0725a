"""Tokenizer gives what transformers' own classes give for the same folder, without importing torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from sglang.srt.utils.tokenizer import Tokenizer
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.tiny_tokenizer import make_model_folder

register_cpu_ci(est_time=5, suite="unit-test-cpu")

TEXTS = [
    "",
    " ",
    "hello the world",
    "  two  spaces\n\nand the apples",
    "naïve €5 😀 日本",
    "<|turn>user\nhi<turn|>",
    "a<eos>b",
]
CHATS = [
    [{"role": "user", "content": "Hi"}],
    [
        {"role": "system", "content": "be\nbrief"},
        {"role": "user", "content": " x "},
        {"role": "assistant", "content": "y"},
    ],
]


def make_byte_level_folder(folder: Path) -> str:
    """A GPT-2-like byte-level tokenizer. For transformers, too, tokenizer.json outranks add_bos_token and its like."""
    folder.mkdir()
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the apples and the pears"] * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True, "add_eos_token": True}))
    return str(folder)


@pytest.fixture(scope="module", params=[make_model_folder, make_byte_level_folder])
def folder(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("tok") / "model")


def test_ids_and_text_equal_transformers(folder):
    from transformers import AutoTokenizer

    ours, theirs = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.size == len(theirs)
    for text in TEXTS:
        for add_special in (True, False):
            ids = ours.encode(text, add_special)
            assert ids == theirs.encode(text, add_special_tokens=add_special), text
            for skip in (True, False):
                assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), text
        assert ours.decode(ours.encode(text, False), skip_special_tokens=False) == text


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "f", "parameters": {}}}]])
def test_chats_equal_transformers(tmp_path, chat, tools):
    from transformers import AutoTokenizer

    folder = make_model_folder(tmp_path / "m")
    ours, theirs = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for generation, shout in ((True, {}), (False, {}), (True, {"shout": "HEY"})):
        want = theirs.apply_chat_template(chat, tools=tools, tokenize=False, add_generation_prompt=generation, **shout)
        assert ours.render_chat(chat, tools, add_generation_prompt=generation, variables=shout) == want


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}\n  {% if loop.first %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}",
        "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }}{% continue %}x{% endfor %}",
        "{% set x = 1 %}{% generation %}{% set x = 2 %}[{{ messages[0].role }}{{ x }}]{% endgeneration %}{{ x }}",
        "{% for m in messages %}{% generation %}{{ loop.index }}{{ m.content }}\n{% endgeneration %}\n{% endfor %}",
        "{% set ns = namespace(n=0) %}{% generation %}{% set ns.n = 3 %}{% endgeneration %}{{ ns.n }}",
        "{{ {'b': '<é>', 'a': [1, 2.5, none]} | tojson }} {{ messages | tojson(indent=2) }}",
        "{{ {'b': '<é>', 'a': 1} | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}",
        "{{ strftime_now('%Y') }} {{ documents is none }} {{ tools is none }} {{ unknown }}|{{ unknown is defined }}",
        "{{ messages[0].content | trim | upper }} {{ messages[0]['content'].split(' ')[0] }} {{ bos_token }}",
        "{% macro show(m) %}{{ m.role }}={{ caller() }}{% endmacro %}{% call show(messages[0]) %}x{% endcall %}\n",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no ' ~ messages[0].role) }}",
        "{% generation %}",
        "{{ 'é' | tojson(colour=1) }}",
    ],
)
def test_templates_are_read_as_transformers_reads_them(tmp_path, source):
    """Every extension, filter and global there is, what a template may not do, and the words of its complaints."""
    from transformers import AutoTokenizer

    folder = make_model_folder(tmp_path / "m")
    file = tmp_path / "t.jinja"
    file.write_text(source)
    ours, theirs = Tokenizer(folder, str(file)), AutoTokenizer.from_pretrained(folder)
    for chat in CHATS:
        try:
            want = theirs.apply_chat_template(chat, chat_template=source, tokenize=False, add_generation_prompt=True)
        except (ValueError, TypeError, jinja2.TemplateError) as e:
            said = re.sub(r"\S+<locals>\.", "", str(e))
            with pytest.raises(ValueError, match=re.escape(said)):
                ours.render_chat(chat)
        else:
            assert ours.render_chat(chat) == want


def test_template_sources(tmp_path):
    folder = Path(make_model_folder(tmp_path / "m"))
    override = tmp_path / "mine.jinja"
    override.write_text("mine: {{ messages[0].content }}{{ eos_token }}")
    assert Tokenizer(str(folder), str(override)).render_chat(CHATS[0]) == "mine: Hi<eos>"
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template; give one with --chat-template"):
        Tokenizer(str(folder)).render_chat(CHATS[0])
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain {{ bos_token }}"}]
    for template, want in (("one", "one"), (named, "plain <bos>")):
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
        assert Tokenizer(str(folder)).render_chat(CHATS[0]) == want


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('roles must alternate') }}", "{{ messages[0].nope.nope }}", "{% for %}", "{{ 1 + 'a' }}"],
)
def test_template_errors_are_value_errors(tmp_path, template):
    file = tmp_path / "t.jinja"
    file.write_text(template)
    tokenizer = Tokenizer(make_model_folder(tmp_path / "m"), str(file))
    with pytest.raises(ValueError, match="the chat template refuses these messages: .+"):
        tokenizer.render_chat(CHATS[0])


def test_template_cannot_reach_python(tmp_path):
    """Templates come with checkpoints: they run in a sandbox."""
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ValueError, match="unsafe"):
        Tokenizer(make_model_folder(tmp_path / "m"), str(file)).render_chat(CHATS[0])


def test_token_texts_and_bytes(tmp_path):
    tokenizer = Tokenizer(make_model_folder(tmp_path / "m"))
    ids = tokenizer.encode(" the €", add_special_tokens=False)
    assert [tokenizer.token_text(i) for i in ids] == [" the", " ", "\ufffd", "\ufffd", "\ufffd"]
    assert sum((tokenizer.token_bytes(i) for i in ids), []) == list(" the €".encode())
    assert [tokenizer.bytes_of(i) for i in ids] == [None, None, b"\xe2", b"\x82", b"\xac"]
    assert tokenizer.token_text(2) == "<bos>"
    assert tokenizer.decode([5, 100000]) == ""  # ids without a token add nothing


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "no tokenizer.json in"),
        ("tokenizer.json", '{"model"', "is not a readable tokenizer"),
        ("tokenizer.json", "{}", "is not a readable tokenizer"),
        ("tokenizer_config.json", "{", "is not valid JSON"),
        ("tokenizer_config.json", "[]", "holds no JSON object"),
    ],
)
def test_broken_folders_give_one_line(tmp_path, name, content, message):
    folder = Path(make_model_folder(tmp_path / "m"))
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer(str(folder))
    assert "\n" not in str(caught.value)


def test_the_small_processes_are_small():
    """torch and transformers take seconds to import; HTTP process and detokenizer start and write chats without."""
    code = """if True:
        import sys
        sys.modules["torch"] = sys.modules["transformers"] = None  # what an import finds, and raises ImportError for
        import sglang.srt.entrypoints.http_server, sglang.srt.managers.detokenizer_manager
        import sglang.srt.entrypoints.engine, sglang.srt.entrypoints.chat_worker
        from sglang.srt.utils.chat_template import ChatTemplate
        assert ChatTemplate("{{ messages }}", {}).render([1]) == "[1]"
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
