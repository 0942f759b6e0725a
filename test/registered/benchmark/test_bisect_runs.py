"""bisect_runs.py over a small repository of its own: scores by commit and set, the search, and what is left behind."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import wait_for

register_cpu_ci(est_time=15, suite="base-a-test-cpu")

SCRIPT = Path(__file__).resolve().parents[3] / "benchmark" / "gemma4" / "bisect_runs.py"
sys.path.insert(0, str(SCRIPT.parent))
from bisect_runs import main, parse_set  # noqa: E402

# Each commit has its own right answers in python/sglang; the test file writes them as an evaluation would.
TEST_FILE = """
import os, sys
from sglang import RIGHT
from sglang_answers import write
write(RIGHT)
print("running in", os.getcwd())
sys.exit(0 if len(RIGHT) >= 6 else 3)
"""
ANSWERS = """
import os, msgspec
def write(right):
    with open(os.environ["SGLANG_EVAL_OUTPUT"], "wb") as f:
        for i in range(8):
            got = i if i in right else 99
            row = dict(index=i, hash=f"h{i}", question="q", gold=i, prediction=got, correct=got == i, invalid=False,
                       text=str(got), completion_tokens=1, finish_reason="stop")
            f.write(msgspec.json.encode(row) + b"\\n")
"""
RIGHT = [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 7], [0, 1, 2, 3, 4, 5], [0, 1], [0, 1], [0, 1, 2, 3, 4]]


def git(repo: Path, *args: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(repo), *identity, *args], check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(repo: Path, subject: str) -> None:
    git(repo, "add", ".")
    git(repo, "commit", "-q", "--allow-empty", "-m", subject)


@pytest.fixture(scope="module")
def made_repo(tmp_path_factory) -> Path:
    repo = tmp_path_factory.mktemp("repo")
    git(repo, "init", "-q")
    package = repo / "python" / "sglang"
    package.mkdir(parents=True)
    (repo / ".gitignore").write_text("__pycache__/\n")
    (repo / "score.py").write_text(TEST_FILE)
    (repo / "python" / "sglang_answers.py").write_text(ANSWERS)
    for i, right in enumerate(RIGHT):
        (package / "__init__.py").write_text(f"RIGHT = {right!r}\n")
        commit(repo, f"c{i} | step")
        git(repo, "tag", f"c{i}")
    return repo


@pytest.fixture
def repo(made_repo, tmp_path, monkeypatch):
    """The repository, which a test must leave as it was: no worktree, no change, nothing in the temporary folder."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield made_repo
    assert len(git(made_repo, "worktree", "list").splitlines()) == 1
    assert git(made_repo, "status", "--porcelain") == ""
    assert git(made_repo, "rev-parse", "HEAD") == git(made_repo, "rev-parse", "c5")
    assert not list((made_repo / ".git").glob("worktrees/*")) and not list(scratch.iterdir())


def run(repo: Path, *argv: str) -> int | str | None:
    """main(); its exit code, or the message it ended with."""
    try:
        main(["--repo", str(repo), *argv])
    except SystemExit as e:
        return e.code
    return 0


def rows(text: str) -> list[list[str]]:
    """The table's cells, without its head; a bar inside a cell becomes a slash."""
    lines = [line.replace("\\|", "/")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")] for line in lines[1:]]


def python(code: str) -> list[str]:
    return ["--", "python", "-c", code]


def test_table_over_commits(repo, tmp_path, capsys):
    md, png, kept = tmp_path / "t.md", tmp_path / "t.png", tmp_path / "kept"
    files = ["--output-md", str(md), "--output-png", str(png), "--output-dir", str(kept)]
    assert run(repo, "--commits", "c0..c3", *files, "score.py") == 0
    table = rows(md.read_text())
    names = [git(repo, "show", "--no-patch", "--format=%h %s", f"c{i}").replace("|", "/") for i in range(4)]
    assert table == [
        [names[0], "0.875 (n = 8, 0.529 to 0.978)", "", "pass", ""],
        [names[1], "0.875 (n = 8, 0.529 to 0.978)", "+0.000", "pass", "2 of 8 (1 lost, 1 won, p = 1)"],
        [names[2], "0.750 (n = 8, 0.409 to 0.929)", "-0.125", "pass", "1 of 8 (1 lost, 0 won, p = 1)"],
        [
            names[3],
            "0.250 (n = 8, 0.071 to 0.591)",
            "-0.625",
            "fail (exit code 3)",
            "5 of 8 (5 lost, 0 won, p = 0.0625)",
        ],
    ]
    assert rows(capsys.readouterr().out) == table
    assert png.read_bytes().startswith(b"\x89PNG")
    assert md.read_text().startswith(f"`bisect_runs.py --repo {repo} --commits c0..c3 ")
    assert len(list(kept.glob("*.jsonl"))) == 4
    [log] = kept.glob("01-*.log")
    assert "scratch" in log.read_text() and str(repo) not in log.read_text()  # not in the main working tree


def test_a_list_of_commits_in_its_order(repo, capsys):
    assert run(repo, "--commits", "c3,c0", "score.py") == 0
    assert [row[0].split()[1] for row in rows(capsys.readouterr().out)] == ["c3", "c0"]


def test_sets_and_repeats(repo, capsys):
    code = (
        "import os, shlex; flags = shlex.split(os.environ['SGLANG_EXTRA_SERVER_ARGS'])\n"
        "print('score', os.environ.get('SCORE', '0.5'), '(n = 20'); assert os.getcwd() == REPO\n"
        "assert not flags or flags == ['--name', 'two words', '--eager']"
    ).replace("REPO", repr(str(repo)))
    sets = ["--set", "plain:", "--set", "better: SCORE=0.9 OTHER= --name 'two words' --eager"]
    assert run(repo, *sets, "--repeats", "2", *python(code)) == 0
    table = rows(capsys.readouterr().out)
    assert [row[0] for row in table] == ["plain #1", "plain #2", "better #1", "better #2"]
    assert [row[1] for row in table] == ["0.500 (n = 20, 0.299 to 0.701)"] * 2 + ["0.900 (n = 20, 0.699 to 0.972)"] * 2
    assert [row[2] for row in table] == ["", "+0.000", "+0.400", "+0.400"]
    assert [row[3] for row in table] == ["pass"] * 4
    assert [row[4] for row in table] == ["", "not known", "not known", "not known"]


def test_other_questions_are_not_compared(repo, capsys):
    code = "import sglang_answers as a, os\nif 'LESS' in os.environ: a.range = lambda n: [1, 2]\na.write([1, 2])"
    assert run(repo, "--set", "all:", "--set", "two: LESS=1", *python(code)) == 0
    assert rows(capsys.readouterr().out)[1][1:] == [
        "1.000 (n = 2, 0.342 to 1.000)",
        "+0.750",
        "pass",
        "other questions",
    ]


@pytest.mark.parametrize("good,bad,first,runs", [(0, 5, "c3", 5), (2, 3, "c3", 2)])
def test_bisect_finds_the_first_bad_commit(repo, capsys, good, bad, first, runs):
    assert run(repo, "--commits", f"c{good}..c{bad}", "--bisect", "score.py") == 0
    out = capsys.readouterr().out
    assert f"first bad commit: {git(repo, 'show', '--no-patch', '--format=%h %s', first)}\n" in out
    table = rows(out)
    tested = [row[0].split()[1] for row in table]
    assert tested == sorted(tested) and len(tested) <= runs and f"c{good}" in tested and f"c{bad}" in tested


@pytest.mark.parametrize(
    "commits,command,message",
    [
        ("c3..c5", ["score.py"], "the good commit fails already"),
        ("c0..c2", ["score.py"], "the bad commit passes"),
        ("c0..c5", python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), "neither good nor bad"),
    ],
)
def test_bisect_that_cannot_tell(repo, commits, command, message):
    assert message in run(repo, "--commits", commits, "--bisect", *command)


def test_a_flaky_commit_is_bad(repo, tmp_path, capsys):
    """c1 passes once and then fails: with two repeats it is found."""
    flag = tmp_path / "flag"
    code = (
        "import pathlib, sys, sglang\nflag = pathlib.Path(FLAG)\n"
        "if 7 not in sglang.RIGHT: sys.exit(len(sglang.RIGHT) < 7)\n"
        "if flag.exists(): sys.exit(1)\nflag.touch()"
    ).replace("FLAG", repr(str(flag)))
    assert run(repo, "--commits", "c0..c3", "--bisect", "--repeats", "2", *python(code)) == 0
    assert "c1 |" in capsys.readouterr().out.partition("first bad commit: ")[2].splitlines()[0]


@pytest.mark.parametrize(
    "command,flags,status",
    [
        (["nowhere.py"], [], "no nowhere.py here"),
        (python("import time; time.sleep(60)"), ["--timeout-seconds", "0.5"], "timed out after 0.5 s"),
        (python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"), [], "killed by SIGSEGV"),
    ],
)
def test_runs_without_a_result(repo, tmp_path, command, flags, status):
    md = tmp_path / "t.md"
    argv = ["--commits", "c0,c1", "--output-md", str(md), *flags, *command]
    assert run(repo, *argv).startswith("error: no result of ")
    assert [row[1:4] for row in rows(md.read_text())] == [["none", "", status]] * 2


def test_a_failed_run_shows_the_end_of_its_output(repo, capsys):
    assert run(repo, "--set", "a:", *python("print(*range(50), sep='\\n'); raise SystemExit('the reason')")) == 0
    out = capsys.readouterr().out
    assert "the reason" in out and "49\n" in out and "20\n" not in out and "fail (exit code 1)" in out


@pytest.mark.parametrize(
    "pattern,printed,score",
    [
        ([], "Accuracy: 0.445 (n = 200, 95 % interval", "0.445 (n = 200, 0.378 to 0.514)"),
        ([], "score 0.100 (n = 10\nscore 0.300 (n = 10", "0.300 (n = 10, 0.108 to 0.603)"),
        (["--score-pattern", "gsm8k=(?P<score>\\S+) of (?P<n>\\d+)"], "gsm8k=.5 of 4", "0.500 (n = 4, 0.150 to 0.850)"),
        (["--score-pattern", "is (?P<score>\\S+)", "--score-n", "200"], "is 0.445", "0.445 (n = 200, 0.378 to 0.514)"),
        ([], "no score", "none"),
    ],
)  # fmt: skip
def test_printed_scores(repo, capsys, pattern, printed, score):
    assert run(repo, "--set", "a:", *pattern, *python(f"print({printed!r})")) == 0
    assert rows(capsys.readouterr().out)[0][1] == score


@pytest.mark.parametrize("printed", ["score 44.5 (n = 200", "score 0.5 (n = 0", "score 0.5.5 (n = 3"])
def test_what_is_no_score_is_refused(repo, printed):
    assert "is no score from 0 to 1 with its n" in run(repo, "--set", "a:", *python(f"print({printed!r})"))


def test_answers_that_cannot_be_read(repo):
    code = "import os; open(os.environ['SGLANG_EVAL_OUTPUT'], 'w').write('{}')"
    assert "line 1: not an answer" in run(repo, "--set", "a:", *python(code))


def test_an_evaluation_that_never_got_an_answer(repo, capsys):
    code = "import os; open(os.environ['SGLANG_EVAL_OUTPUT'], 'w'); raise SystemExit('no server')"
    assert run(repo, "--set", "a:", *python(code)) == 0
    assert rows(capsys.readouterr().out)[0][1:] == ["none", "", "fail (exit code 1)", ""]


def test_a_package_from_elsewhere_is_refused(repo):
    """Without an __init__.py the commit's python/sglang is not what `import sglang` takes."""
    git(repo, "checkout", "-q", "-b", "hollow")
    try:
        (repo / "python" / "sglang" / "__init__.py").unlink()
        (repo / "python" / "sglang" / "other.py").touch()
        commit(repo, "hollow")
        hollow = git(repo, "rev-parse", "HEAD")
    finally:
        git(repo, "checkout", "-q", "--detach", "c5")
    message = run(repo, "--commits", f"c0,{hollow}", "score.py")
    assert message.startswith("error: `import sglang` takes ") and "not " in message


def test_what_a_command_leaves_running_is_ended(repo, tmp_path):
    pid_file = tmp_path / "pid"
    code = "import subprocess; p = subprocess.Popen(['sleep', '60']); open(PID, 'w').write(str(p.pid))"
    assert run(repo, "--set", "a:", *python(code.replace("PID", repr(str(pid_file))))) == 0
    wait_for(lambda: not alive(int(pid_file.read_text())))


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number,code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_leaves_nothing_but_the_table(repo, tmp_path, number, code):
    """The second commit's run is interrupted: its process and worktree go, the first one's row stays."""
    pid_file, md = tmp_path / "pid", tmp_path / "t.md"
    command = (
        "import os, time, sglang\nprint('score 1.0 (n = 5')\nif 6 not in sglang.RIGHT:\n"
        f"    with open({str(pid_file)!r}, 'w') as f: f.write(str(os.getpid()))\n    time.sleep(60)"
    )
    argv = [sys.executable, str(SCRIPT), "--repo", str(repo), "--commits", "c0..c2", "--output-md", str(md)]
    process = subprocess.Popen([*argv, *python(command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: pid_file.exists() and pid_file.read_text(), 20)
    assert len(git(repo, "worktree", "list").splitlines()) == 2
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == code and "Traceback" not in out
    assert [row[3] for row in rows(md.read_text())] == ["pass"] == [row[3] for row in rows(out)]
    assert not alive(int(pid_file.read_text()))


@pytest.mark.parametrize(
    "argv,message",
    [
        (["score.py"], "one of the arguments --commits --set is required"),
        (["--commits", "c0..c1", "--set", "a:", "score.py"], "not allowed with"),
        (["--commits", "c0..c1"], "either a registered test file or a command"),
        (["--commits", "c0..c1", "--"], "either a registered test file or a command"),
        (["--commits", "c0..c1", "score.py", "--", "true"], "either a registered test file or a command"),
        (["--set", "a:", "--bisect", "score.py"], "--bisect searches --commits"),
        (["--set", "a:", "--set", "a: X=1", "score.py"], "a name of its own"),
        (["--set", "a", "score.py"], "not of the form"),
        (["--set", ": X=1", "score.py"], "not of the form"),
        (["--set", "a: word", "score.py"], "not of the form"),
        (["--set", "a: 'open", "score.py"], "No closing quotation"),
        (["--set", "a:", "--repeats", "0", "score.py"], "--repeats"),
        (["--set", "a:", "--timeout-seconds", "0", "score.py"], "--timeout-seconds"),
        (["--set", "a:", "--score-pattern", "(", "score.py"], "--score-pattern"),
        (["--set", "a:", "--score-pattern", "x", "score.py"], "no group (?P<score>...)"),
        (["--set", "a:", "--score-pattern", "(?P<score>x)", "score.py"], "a score needs its n"),
        (["--set", "a:", "--score-n", "0", "score.py"], "--score-n"),
        (["--set", "a:", "--output-md", "nowhere/t.md", "score.py"], "nowhere is no folder"),
        (["--set", "a:", "--output-dir", "/", "score.py"], "not an empty folder"),
    ],
)
def test_flags_that_cannot_be(repo, capsys, argv, message):
    assert run(repo, *argv) == 2
    assert message in capsys.readouterr().err


def test_missing_matplotlib_is_told_before_any_run(repo, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(repo, "--set", "a:", "--output-png", "chart.png", "score.py") == 2
    assert ".venv/bin/pip install -e '.[bench]'" in capsys.readouterr().err


@pytest.mark.parametrize("commits", ["c0..nowhere", "c5..c0", "--all", "c0,,c1", "c0.."])
def test_commits_that_are_none(repo, commits):
    assert f"{commits}: unknown commits" in run(repo, f"--commits={commits}", "score.py")


def test_no_repository_and_no_command(repo, tmp_path):
    assert "git rev-parse: " in run(tmp_path, "--commits", "c0", "score.py")
    assert (
        run(repo, "--set", "a:", "--", "no-such-command")
        == "error: no-such-command can't be run: No such file or directory"
    )


def test_sets_are_quoted_as_for_a_shell():
    parsed = parse_set("both: A=1 B='x y' C= --flag 'two words' D=4")
    assert parsed.name == "both"
    flags = parsed.env.pop("SGLANG_EXTRA_SERVER_ARGS")
    assert parsed.env == {"A": "1", "B": "x y", "C": ""}
    assert shlex.split(flags) == ["--flag", "two words", "D=4"]
    assert os.environ.get("A") != "1"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
