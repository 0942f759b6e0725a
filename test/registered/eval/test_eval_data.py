"""Questions, numbers and the lines of a run."""

import sys
from pathlib import Path

import pytest

import sglang
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.eval_data import (
    Question,
    few_shot_prompt,
    grade,
    last_number,
    load,
    load_answers,
    open_answers,
    question_set,
    write_answer,
)

register_cpu_ci(est_time=2, suite="unit-test-cpu")

SEEN = Path(sglang.__file__).parent / "test" / "data" / "mini_gsm_seen.jsonl"
GOOD = '{"question": "1 + 1?", "answer": "1 + 1 = 2\\n#### 2"}\n'


@pytest.mark.parametrize(
    "text,value",
    [
        ("so 12 apples", 12),
        ("#### 1,234,567", 1234567),
        ("It is $3.50.", 3.5),
        ("that makes 18.", 18),
        ("first 7, then -5 degrees", -5),
        ("a 3, b 4", 4),
        ("none at all", None),
        ("", None),
        ("1" * 400, None),  # a model that repeats itself: no float holds it
    ],
)
def test_the_last_number_counts(text, value):
    assert last_number(text) == value


@pytest.mark.parametrize(
    "end,gold", [("#### 72", 72), ("#### 1,200", 1200), ("#### -5", -5), ("#### 0.25", 0.25), ("x #### 1\n#### 3 ", 3)]
)
def test_gold_follows_the_last_mark(end, gold):
    assert Question("q", f"4 steps\n{end}").gold == gold


def test_load_keeps_what_json_may_hold(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes('{"question": "a\u2028b\u0085c", "answer": "#### 1", "more": [1]}\r\n\n'.encode() + GOOD.encode())
    assert [q.question for q in load(path)] == ["a\u2028b\u0085c", "1 + 1?"]


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[1, 2]",
        b'{"question": "q"}',
        b'{"question": 5, "answer": "#### 5"}',
        b'{"question": "q", "answer": "so it is 5"}',
        b'{"question": "q", "answer": "#### five"}',
        b'{"question": "\xff", "answer": "#### 5"}',
        b'{"question": "\\ud800", "answer": "#### 5"}',
    ],
)
def test_a_malformed_line_is_named(tmp_path, line):
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD.encode() * 2 + line + b"\n" + GOOD.encode())
    with pytest.raises(ValueError, match=r"data\.jsonl, line 3: "):
        load(path)


def test_shots_come_first_and_are_not_asked():
    data = question_set(SEEN, None, None, 3, 4)
    rows = load(SEEN)
    assert (data.shots, data.questions, data.source) == (rows[:3], rows[3:7], str(SEEN))
    assert question_set(SEEN, None, None, 0, None).questions == rows


def test_without_a_file_the_shipped_questions_are_asked():
    data = question_set(None, None, None, 2, 10)
    assert data == question_set(None, "seen", None, 2, 10) and data.source == "mini_gsm_seen.jsonl"
    assert (data.shots, data.questions) == (load(SEEN)[:2], load(SEEN)[2:12])
    assert len(question_set(None, None, None, 0, None).questions) == 200
    held_out = question_set(None, "held-out", None, 0, 204).questions
    assert len(set(held_out)) == 204 and not set(held_out) & set(load(SEEN))


def test_a_seed_gives_the_shipped_questions_an_order():
    data = question_set(None, None, 1, 5, 495)
    assert data == question_set(None, None, 1, 5, 495) and data.source == "mini_gsm_seen.jsonl, seed 1"
    rows = data.shots + data.questions
    assert rows != load(SEEN) and sorted(q.hash for q in rows) == sorted(q.hash for q in load(SEEN))
    assert question_set(None, None, 2, 5, 495) != data


@pytest.mark.parametrize(
    "arguments,message",
    [
        ((SEEN, "seen", None, 0, 1), "leave them out"),
        ((SEEN, None, 1, 0, 1), "leave them out"),
        ((SEEN, None, None, -1, 1), "-1 worked examples"),
        ((SEEN, None, None, 0, 0), "0 questions"),
        ((SEEN, None, None, 500, 1), "of 500 questions none is left after 500"),
        ((None, None, None, 500, 1), "mini_gsm_seen.jsonl: of 500 questions none is left"),
    ],
)
def test_question_sets_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        question_set(*arguments)


def test_few_shot_prompt_has_upstreams_form():
    shots = [Question("1 + 1?", "#### 2"), Question("2 + 2?", "#### 4")]
    assert few_shot_prompt(shots, Question("3 + 3?", "#### 6")) == (
        "Question: 1 + 1?\nAnswer: #### 2\n\nQuestion: 2 + 2?\nAnswer: #### 4\n\nQuestion: 3 + 3?\nAnswer:"
    )


def test_answers_are_written_at_once_and_read_in_order(tmp_path):
    path = tmp_path / "run.jsonl"
    question = Question("1 + 1?", "#### 2")
    right = grade(1, question, "it is 2.0", 4, "stop")
    none = grade(0, question, "no idea", 2, "length")
    assert (right.correct, right.invalid, right.prediction) == (True, False, 2)
    assert (none.correct, none.invalid, none.prediction) == (False, True, None)
    with open_answers(path) as files:
        write_answer(files, right)
        assert load_answers(path) == [right]
        write_answer(files, none)
    assert load_answers(path) == [none, right]
    # hex digits 1 to 16 of sha256("1 + 1?")
    assert right.hash == none.hash == "c97c3a9c9b990740"


def test_an_older_run_is_not_overwritten(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text("older\n")
    with pytest.raises(ValueError, match="exists already"), open_answers(path):
        pass
    assert path.read_text() == "older\n"


def test_evaluations_of_one_command_share_a_file(tmp_path, monkeypatch):
    """Also those that have a file of their own."""
    shared, own = tmp_path / "shared.jsonl", tmp_path / "own.jsonl"
    monkeypatch.setenv("SGLANG_EVAL_OUTPUT", str(shared))
    for index, output_file in enumerate([None, own]):
        with open_answers(output_file) as files:
            write_answer(files, grade(index, Question("q", "#### 1"), "1", 1, "stop"))
    assert [a.index for a in load_answers(shared)] == [0, 1]
    assert [a.index for a in load_answers(own)] == [1]


@pytest.mark.parametrize("content,message", [("", "holds no answers"), ("\n{}\n", "line 2: not an answer")])
def test_what_is_no_run_is_refused(tmp_path, content, message):
    (tmp_path / "run.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_answers(tmp_path / "run.jsonl")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
