"""Two runs question by question: the table, the lists and the exit codes, against a pair of runs counted by hand."""

import sys
from pathlib import Path

import msgspec
import pytest

from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.compare_runs import compare, main
from sglang.test.eval_data import Answer, Question, grade

register_cpu_ci(est_time=2, suite="unit-test-cpu")


def answers(*texts: str, start: int = 0) -> list[Answer]:
    """Question i, whose right answer is i, was answered with texts[i]."""
    questions = [Question(f"What is {i} | {i}?", f"#### {i}") for i in range(start, start + len(texts))]
    return [
        grade(i, question, text, 3, "stop") for i, (question, text) in enumerate(zip(questions, texts, strict=True))
    ]


A = answers("is 0", "is 1", "is 2", "is 3", "is 9", "is 9", "who knows", "is 7")
B = answers("is 0", "so 1", "is 8", "is 8", "is 4", "is 8", "who knows", "is 7.0")


def write(path: Path, run: list[Answer]) -> str:
    path.write_bytes(b"\n".join(map(msgspec.json.encode, run)))
    return str(path)


@pytest.fixture
def files(tmp_path) -> tuple[str, str]:
    return write(tmp_path / "a.jsonl", A), write(tmp_path / "b.jsonl", B[::-1])


def exit_code(*argv: str) -> int:
    with pytest.raises(SystemExit) as e:
        main(list(argv))
    return e.value.code


def test_counts():
    comparison = compare(A, B)
    table = [comparison.count(a, b) for a in (True, False) for b in (True, False)]
    assert table == [3, 2, 1, 2]
    assert (comparison.score_a.hits, comparison.score_b.hits, comparison.score_a.n) == (5, 4, 8)
    assert comparison.p == 1.0  # 2 * (1 + 3) / 8
    assert [p.a.index for p in comparison.changed] == [2, 3, 4, 5]  # 5 is wrong in both, in different ways
    assert [(p.a.index, p.first_difference) for p in comparison.reworded] == [(1, 0), (7, 4)]


def test_report(files, capsys):
    assert exit_code(*files) == 0
    out = capsys.readouterr().out
    assert "a.jsonl: 0.625 (n = 8, 95 % interval 0.306 to 0.863)" in out
    assert "b.jsonl: 0.500 (n = 8, 95 % interval 0.215 to 0.785)" in out
    assert "| A right | 3 | 2 |\n| A wrong | 1 | 2 |" in out
    assert "p = 1\n" in out
    assert "Answer changed: 4 of 8 questions" in out
    assert f"| 4 | {A[4].hash} | 4 | 9 wrong | 4 right | 3 | What is 4 \\| 4? |" in out
    assert "Text changed, answer the same: 2 questions; first differing character: earliest 0, median 2" in out


def test_equal_runs_pass_every_condition(files, capsys):
    conditions = ["--fail-if-changed", "--fail-if-text-changed", "--fail-if-worse", "1"]
    assert exit_code(files[0], files[0], *conditions) == 0
    assert "Answer changed: 0 of 8 questions\nText changed, answer the same: 0 questions\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "a,b,flags,code",
    [
        (A, B, ["--fail-if-changed"], 1),
        (A[:2], B[:2], ["--fail-if-changed"], 0),  # only the text changed
        (A[:2], B[:2], ["--fail-if-text-changed"], 1),
        (A, B, ["--fail-if-worse", "1"], 1),
        (B, A, ["--fail-if-worse", "1"], 0),  # better
        (A, B, ["--fail-if-worse", "0.05"], 0),  # worse by no more than chance
        (answers(*"012345"), answers(*"999999"), ["--fail-if-worse", "0.05"], 1),  # p = 2 / 64
        (answers(*"012345"), answers(*"999999"), ["--fail-if-worse", "0.03"], 0),
    ],
)
def test_exit_codes(tmp_path, a, b, flags, code):
    assert exit_code(write(tmp_path / "a", a), write(tmp_path / "b", b), *flags) == code


@pytest.mark.parametrize("p", ["0", "1.1", "-0.5", "nan", "x"])
def test_probabilities_that_are_none(files, p, capsys):
    assert exit_code(*files, f"--fail-if-worse={p}") == 2
    assert "above 0 and at most 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "b,message",
    [
        (answers("0", "1", start=1), "1 are in both, 1 only in the first, 1 only in the second"),
        (answers("0"), "1 are in both, 1 only in the first, 0 only in the second"),
        (answers("0", "1") * 2, "2 are in both, 0 only in the first, 2 only in the second"),
        ([msgspec.structs.replace(answer, gold=5.0) for answer in A[:2]], "different right answers for question 0"),
    ],
)
def test_runs_over_other_questions_are_refused(tmp_path, capsys, b, message):
    assert exit_code(write(tmp_path / "a", A[:2]), write(tmp_path / "b", b)) == 2
    assert message in capsys.readouterr().err


def test_a_question_asked_twice_is_paired_in_order():
    a, b = answers("0") + answers("5"), answers("0") + answers("7")
    assert [(p.a.text, p.b.text) for p in compare(a, b).pairs] == [("0", "0"), ("5", "7")]


def test_files_that_cannot_be_read(tmp_path, files, capsys):
    assert exit_code(files[0], str(tmp_path / "nowhere")) == 2
    assert "nowhere" in capsys.readouterr().err
    (tmp_path / "bad").write_text("{}")
    assert exit_code(files[0], str(tmp_path / "bad")) == 2
    assert "bad, line 1" in capsys.readouterr().err


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
