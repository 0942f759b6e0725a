"""The detokenizer: characters are never cut, stop strings never shown, and no request is kept longer than it lives."""

import random
import sys

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from sglang.srt.managers.detokenizer_manager import DetokenizerManager
from sglang.srt.managers.incremental_text import IncrementalText
from sglang.srt.managers.io_struct import (
    BatchTextOutput,
    BatchTokenOutput,
    FinishReason,
    FlushCacheReply,
    Logprobs,
    RequestReport,
    StopReq,
    TextSettings,
    TokenOutput,
)
from sglang.srt.managers.stop_matcher import StopMatcher
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.sampling.stop_regex import check_stop_regex, compile_stop_regex
from sglang.srt.utils.tokenizer import Tokenizer
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.tiny_tokenizer import make_model_folder

register_cpu_ci(est_time=3, suite="unit-test-cpu")

TEXT = "The apples, naïve and €5: 日本 😀👨‍👩‍👧 stop. the end\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer(make_model_folder(tmp_path_factory.mktemp("t")))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> Tokenizer:
    """GPT-2's kind: pieces of characters hide inside ordinary tokens."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        ["the apples 日本 and"] * 3, trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet)
    )
    folder = tmp_path_factory.mktemp("b")
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer(str(folder))


@pytest.fixture(scope="module")
def stripping(tmp_path_factory) -> Tokenizer:
    """Its decoder drops the space before a sequence's first word, as Llama 2's does."""
    folder = tmp_path_factory.mktemp("s")
    make_model_folder(folder)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer(str(folder))


def stream(tokenizer: Tokenizer, ids: list[int], sizes: list[int], tail: list[int], skip: bool = True) -> list[str]:
    text, pieces, at = IncrementalText(tokenizer, tail, skip), [], 0
    for size in sizes:
        pieces.append(text.push(ids[at : at + size]))
        at += size
    return [*pieces, text.push(ids[at:]), text.flush()]


# ---- text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokenizer", "byte_level", "stripping"])
@pytest.mark.parametrize("seed", range(30))
def test_any_cut_of_the_stream_gives_the_whole_text(request, name, seed):
    tokenizer, rng = request.getfixturevalue(name), random.Random(seed)
    text = "".join(rng.choice([*TEXT.split(" "), " ", "  "]) for _ in range(12))
    prompt, ids = tokenizer.encode(" the a", False), tokenizer.encode(text, False)
    sizes = [rng.randint(1, 4) for _ in range(len(ids))] if seed % 3 else [1] * len(ids)
    pieces = stream(tokenizer, ids, sizes, prompt)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces), pieces


def test_a_first_word_keeps_its_space_after_a_prompt(stripping):
    ids = stripping.encode(" the apples", False)
    assert "".join(stream(stripping, ids, [1, 1], stripping.encode("a", False))) == " the apples"
    assert "".join(stream(stripping, ids, [1, 1], [])) == "the apples"


def test_special_tokens_show_only_when_asked(tokenizer):
    ids = tokenizer.encode("<|turn>a<turn|>b", False)
    assert "".join(stream(tokenizer, ids, [1] * 4, [])) == "ab"
    assert "".join(stream(tokenizer, ids, [1] * 4, [], skip=False)) == "<|turn>a<turn|>b"


@pytest.mark.parametrize(
    ("data", "want"),
    [
        (b"\xe2\x82", "\ufffd"),  # cut off at the end
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"\xe2\x82\xac\xff", "€\ufffd"),  # the library would turn the sound € into three replacements
        (b"\xe2a", "\ufffda"),
        (b"\xf0\x9f\x98\x80" * 20, "😀" * 20),
    ],
)
def test_broken_bytes_spoil_nothing_else(tokenizer, data, want):
    byte_ids = {tokenizer.bytes_of(i)[0]: i for i in range(tokenizer.size) if tokenizer.bytes_of(i)}
    letters = {"a": tokenizer.encode("a", False)[0]}
    ids = [letters["a"] if b == ord("a") else byte_ids[b] for b in data]
    for sizes in ([1] * len(ids), [len(ids)]):
        assert "".join(stream(tokenizer, ids, sizes, [])) == want


# ---- stop strings -------------------------------------------------------------------------------------------------


def run_matcher(matcher: StopMatcher, text: str) -> tuple[list[str], str | None]:
    """Feed character by character; what was shown each time, and what matched."""
    shown = []
    for char in text:
        if match := matcher.add(char):
            return [*shown, matcher.take_until(match.start)], match.matched
        shown.append(matcher.take())
    return [*shown, matcher.take(final=True)], None


@pytest.mark.parametrize("seed", range(200))
def test_matcher_against_the_plain_way(seed):
    """Over a two-letter alphabet matches and near-matches are everywhere. Nothing shown may have to be taken back."""
    rng = random.Random(seed)
    stops = ["".join(rng.choices("ab", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 3))]
    text = "".join(rng.choices("abc", k=30))
    ends = [text.find(s) + len(s) for s in stops if s in text]
    shown, matched = run_matcher(StopMatcher(stops, []), text)
    if not ends:
        assert (matched, "".join(shown)) == (None, text)
        return
    end = min(ends)
    start = min(end - len(s) for s in stops if text[:end].endswith(s))
    assert "".join(shown) == text[:start]
    assert matched == text[start:end]


def test_text_is_shown_as_soon_as_it_is_safe():
    shown, _ = run_matcher(StopMatcher(["\n\nUser:"], []), "hi\n\nUse it")
    assert shown == ["h", "i", "", "", "", "", "", "\n\nUse ", "i", "t", ""]


def test_regex_holds_back_what_may_become_a_match():
    shown, matched = run_matcher(StopMatcher([], [r"#### \d+\n"]), "a # b #### 42\nmore")
    assert "".join(shown) == "a # b "
    assert matched == r"#### \d+\n"
    assert shown[2] == ""  # the first # is held until the next character clears it
    shown, matched = run_matcher(StopMatcher([], [r"^Q"]), "xQ")
    assert ("".join(shown), matched) == ("xQ", None)  # ^ is the output's beginning, not that of the unseen rest


@pytest.mark.parametrize("pattern", ["(((a{1000}){1000}){1000})", "(a{,200}){60,}", "x{999999999999999999999}"])
def test_patterns_that_would_unroll_without_end_are_refused(pattern):
    """Compiling the first takes gigabytes and minutes, which no time limit of a search would stop."""
    with pytest.raises(ValueError, match="multiply to more than 10000"):
        check_stop_regex(pattern)


@pytest.mark.parametrize("pattern", [r"\d{4}-\d{2}-\d{2}", "[a-z]{1,100} [a-z]{100}", r"\{x\}", "{", "a{,3}b"])
def test_ordinary_counts_are_fine(pattern):
    check_stop_regex(pattern)
    assert compile_stop_regex(pattern).pattern == pattern


def test_earliest_match_wins_and_the_longest_of_those():
    assert run_matcher(StopMatcher(["b", "ab"], []), "xab") == (["x", "", ""], "ab")
    matcher = StopMatcher(["world", "wor"], ["o w.r"])
    match = matcher.add("hello world")
    assert (match.start, match.matched) == (4, "o w.r")


def test_long_output_with_a_stop_string_that_nearly_matches_stays_quick():
    matcher = StopMatcher(["a" * 1000 + "b"], [])
    for _ in range(3000):
        assert matcher.add("a") is None
        matcher.take()
    assert matcher.shown == 2000


# ---- the process --------------------------------------------------------------------------------------------------


class Harness:
    def __init__(self, tokenizer: Tokenizer | None):
        self.tokenizer = tokenizer
        self.http: list = []
        self.scheduler: list = []
        self.serial = 0
        self.settings: dict[int, TextSettings] = {}
        self.manager = DetokenizerManager(tokenizer, self.http.append, self.scheduler.append)

    def setup(self, mark_ids: list[int] | None = None, **params) -> int:
        """A new request, whose settings come with its first output; its serial."""
        self.serial += 1
        self.settings[self.serial] = TextSettings(SamplingParams(**params), mark_ids=mark_ids or [])
        return self.serial

    def output(self, ids: list[int], finish: FinishReason | None = None, serial: int = 0, **fields) -> TokenOutput:
        """The next output of that request, of the latest one by default."""
        serial = serial or self.serial
        return TokenOutput(serial, ids, finish, text=self.settings.pop(serial, None), **fields)

    def tokens(self, ids: list[int], finish: FinishReason | None = None, **fields) -> list:
        """Send one output; the TextOutputs it led to."""
        self.http.clear()
        self.manager.handle_all([BatchTokenOutput([self.output(ids, finish, **fields)])])
        return [text for message in self.http for text in message.outputs]

    def text(self, text: str, **kwargs) -> list:
        return self.tokens(self.tokenizer.encode(text, False), **kwargs)


@pytest.fixture
def harness(tokenizer) -> Harness:
    return Harness(tokenizer)


STOPPED = FinishReason("stop")
LENGTH = FinishReason("length", length=9)


def test_stop_string_across_tokens_ends_the_request_once(harness):
    harness.setup(stop=["END"])
    assert [o.text_delta for o in harness.text("aE")] == ["a"]
    assert [o.text_delta for o in harness.text("N")] == [""]
    (last,) = harness.text("Dxyz", report=RequestReport(cached_tokens=5))
    assert (last.text_delta, last.finish) == ("", FinishReason("stop", matched="END"))
    assert len(last.new_ids) == 1  # D completed it; xyz is cut off
    assert last.report == RequestReport(cached_tokens=5)
    assert harness.scheduler == [StopReq(harness.serial)]
    assert harness.text("more") == []  # a step that was under way
    assert harness.serial in harness.manager.requests
    assert harness.tokens([], STOPPED) == []  # the scheduler's answer to StopReq
    assert not harness.manager.requests
    assert len(harness.scheduler) == 1


def test_log_probabilities_are_cut_with_the_tokens(harness):
    harness.setup(stop=["c"])
    ids = harness.tokenizer.encode("abcd", False)
    tops = [[(-0.1, i)] for i in ids]
    logprobs = Logprobs([-1.0, -2.0, -3.0, -4.0], ids, tops, [[-9.0]] * 4)
    (out,) = harness.tokens(ids, output_logprobs=logprobs)
    assert out.new_ids == ids[:3]
    assert out.output_logprobs == Logprobs([-1.0, -2.0, -3.0], ids[:3], tops[:3], [[-9.0]] * 3)
    assert out.text_delta == "ab"


def test_stop_in_the_schedulers_final_output_needs_no_stop_message(harness):
    harness.setup(stop=["b"])
    (out,) = harness.text("abc", finish=LENGTH)
    assert (out.text_delta, out.finish.matched) == ("a", "b")
    assert harness.scheduler == []
    assert not harness.manager.requests


def test_no_stop_trim_keeps_the_match_only(harness):
    harness.setup(stop=["p a"], no_stop_trim=True)
    (out,) = harness.text("up apples")
    assert out.text_delta == "up a"  # the rest of the token ` apples` is no part of the answer


def test_held_text_comes_out_at_the_end(harness):
    harness.setup(stop=["END"])
    assert [o.text_delta for o in harness.text("xEN")] == ["x"]
    (out,) = harness.tokens([], LENGTH)
    assert (out.text_delta, out.finish) == ("EN", LENGTH)


@pytest.mark.parametrize("sizes", [[], [1] * 20, [3, 1, 4], [2, 5]])
@pytest.mark.parametrize(
    ("params", "want", "where"),
    [
        ({}, "aENb€ turn", [(0, "turn"), (2, "end"), (5, "turn")]),
        ({"stop": ["ENDE"]}, "aENb€ turn", [(0, "turn"), (2, "end"), (5, "turn")]),
        ({"stop": ["b€"]}, "aEN", [(0, "turn"), (2, "end")]),
        ({"stop": ["EN"]}, "a", [(0, "turn")]),  # across a mark, which is cut off with it
        ({"skip_special_tokens": False}, "aENb€ turn", [(0, "turn"), (2, "end"), (5, "turn")]),
    ],
)
def test_marks_travel_beside_the_text(harness, sizes, params, want, where):
    """A special token's place, however the stream is cut and whatever is held back for a stop string; text that looks
    like one is text."""
    turn, end = (harness.tokenizer.encode(t, False)[0] for t in ("<|turn>", "<turn|>"))
    ids = [turn, *harness.tokenizer.encode("aE", False), end, *harness.tokenizer.encode("Nb€", False), turn]
    ids += harness.tokenizer.encode(" turn", False)
    harness.setup(mark_ids=[turn, end], **params)
    text, marks, at = "", [], 0
    for size in [*sizes, len(ids)]:
        for out in harness.tokens(ids[at : at + size], LENGTH if at + size >= len(ids) else None):
            marks += [(len(text) + place, token_id) for place, token_id in out.marks]
            text += out.text_delta
            if out.finish:
                break
        at += size
        if at >= len(ids):
            break
    assert text == want
    assert marks == [(place, turn if kind == "turn" else end) for place, kind in where]


@pytest.mark.parametrize("chunk", [1, 100])
def test_min_new_tokens_passes_over_early_matches(harness, chunk):
    harness.setup(stop=["b"], min_new_tokens=4)
    ids, deltas, finish = harness.tokenizer.encode("abcabcab", False), [], None
    for at in range(0, len(ids), chunk):
        for out in harness.tokens(ids[at : at + chunk]):
            deltas.append(out.text_delta)
            finish = out.finish
    assert ("".join(deltas), finish.matched) == ("abca", "b")


def test_stop_token_has_no_text_unless_kept(harness):
    eos = FinishReason("stop", matched=1)
    for fields, want in (({}, "a"), ({"no_stop_trim": True}, "a"), ({"skip_special_tokens": False}, "a")):
        harness.setup(**fields)
        (out,) = harness.tokens([*harness.tokenizer.encode("a", False), 1], eos)
        assert (out.text_delta, out.new_ids[-1]) == (want, 1)
    harness.setup(skip_special_tokens=False, no_stop_trim=True)
    (out,) = harness.tokens([1], eos)
    assert out.text_delta == "<eos>"


def test_cut_character_comes_with_its_last_byte(harness):
    harness.setup()
    ids = harness.tokenizer.encode("€", False)
    assert [harness.tokens([i])[0].text_delta for i in ids] == ["", "", "€"]


def test_a_refusal_has_no_text_and_is_passed_on(harness):
    refusal = FinishReason("abort", message="the queue is full", status_code=503)
    (out,) = harness.tokens([], refusal, serial=9)
    assert (out.serial, out.text_delta, out.finish) == (9, "", refusal)
    assert not harness.manager.requests and not harness.scheduler


def test_hostile_regex_ends_its_own_request_only(harness):
    hostile = harness.setup(stop_regex=[r"(?:(?:x+)+)+(?:(?:x+)+)+y\1?|(x+x+)+y"])
    other = harness.setup()
    encode = harness.tokenizer.encode
    batch = [
        harness.output(encode("x" * 60 + "z", False), serial=hostile),
        harness.output(encode("ok", False), serial=other),
    ]
    harness.manager.handle_all([BatchTokenOutput(batch)])
    outputs = {o.serial: o for o in harness.http[0].outputs}
    assert outputs[other].text_delta == "ok"
    if outputs[hostile].finish is not None:  # the engine may be clever enough to answer in time
        assert outputs[hostile].finish.status_code == 400
        assert harness.scheduler == [StopReq(hostile)]


def test_regex_that_times_out_is_the_clients_fault(harness, monkeypatch):
    def too_slow(*_: object) -> None:
        raise TimeoutError

    harness.setup(stop_regex=["a+b"])
    monkeypatch.setattr(StopMatcher, "add", too_slow)
    (out,) = harness.text("aaa")
    assert (out.finish.type, out.finish.status_code) == ("abort", 400)
    assert "'a+b'" in out.finish.message
    assert harness.scheduler == [StopReq(harness.serial)]


def test_other_messages_pass_through_and_texts_travel_together(harness):
    a, b = harness.setup(), harness.setup()
    reply = FlushCacheReply("c", True)
    outputs = [harness.output([300], serial=a), harness.output([301], serial=b)]
    harness.manager.handle_all([BatchTokenOutput(outputs[:1]), reply, BatchTokenOutput(outputs[1:])])
    assert harness.http[0] == reply
    assert isinstance(harness.http[1], BatchTextOutput)
    assert [o.serial for o in harness.http[1].outputs] == [a, b]


def test_without_a_tokenizer_ids_pass():
    harness = Harness(None)
    harness.setup()
    (out,) = harness.tokens([5, 6], LENGTH)
    assert (out.text_delta, out.new_ids, out.finish) == ("", [5, 6], LENGTH)
    assert not harness.manager.requests


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
