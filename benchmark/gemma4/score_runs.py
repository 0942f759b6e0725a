"""Runs a command for one configuration, in a commit's own worktree or under a set of switches, and finds its score.

Used by bisect_runs.py, which knows the flags and the order; the table is score_table.py's.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from process_group import end_group

from sglang.test.eval_data import Answer, load_answers
from sglang.test.eval_stats import Score

TAIL_LINES = 15  # of a failed run's output


class RunError(RuntimeError):
    """Nothing more can be measured; the message says why."""


@dataclass(frozen=True)
class Configuration:
    """One row of the table: a commit, or a set of the working tree."""

    name: str
    commit: str | None = None
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    name: str
    status: str  # "pass", "fail (exit code N)", or why there is no result
    has_result: bool  # the command ended by itself
    score: Score | None
    answers: list[Answer] | None  # one a question, where the command writes them

    @property
    def passed(self) -> bool:
        return self.status == "pass"


def git(repo: Path, *args: str) -> str:
    done = subprocess.run(["git", "-C", str(repo), *args], capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"git {args[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout.strip()


@dataclass
class Runner:
    """Runs the command for one configuration after the other. Knows no table."""

    repo: Path
    command: list[str]  # with the test file, relative, last if `is_test_file`
    is_test_file: bool
    repeats: int
    timeout: float  # seconds a run
    pattern: re.Pattern
    score_n: int | None  # for patterns without a group n
    worktrees: Path  # an empty folder
    results: Path  # an empty folder for logs and answers
    count: int = 0

    def run(self, configuration: Configuration, on_outcome: Callable[[Outcome], None]) -> list[Outcome]:
        """The repeats' outcomes, each told as soon as there is one."""
        outcomes = []
        with self._tree(configuration.commit) as root:
            env = self._environment(root, configuration)
            for repeat in range(1, self.repeats + 1):
                name = f"{configuration.name} #{repeat}" if self.repeats > 1 else configuration.name
                print(f"{name}: ", end="", flush=True)
                outcomes.append(self._run_once(name, root, env))
                print(f"{outcomes[-1].status}, score {outcomes[-1].score or 'none'}", flush=True)
                on_outcome(outcomes[-1])
        return outcomes

    @contextlib.contextmanager
    def _tree(self, commit: str | None) -> Iterator[Path]:
        if commit is None:
            yield self.repo
            return
        folder = self.worktrees / commit
        try:
            git(self.repo, "worktree", "add", "--detach", str(folder), commit)
            yield folder
        finally:
            if folder.exists():  # twice: also one that git had not finished
                git(self.repo, "worktree", "remove", "--force", "--force", str(folder))

    def _environment(self, root: Path, configuration: Configuration) -> dict[str, str]:
        """`sglang` is the tree's own, `python` the interpreter that runs this. Raises RunError if it is not so."""
        env = os.environ | configuration.env
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
        package = root / "python" / "sglang"
        if package.is_dir():
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(package.parent), env.get("PYTHONPATH")]))
            code = "import importlib.util; print(importlib.util.find_spec('sglang').origin)"
            found = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True)
            if Path(found.stdout.strip()).resolve().parent != package.resolve():
                raise RunError(f"`import sglang` takes {found.stdout.strip() or found.stderr}, not {package}")
        return env

    def _run_once(self, name: str, root: Path, env: dict[str, str]) -> Outcome:
        if self.is_test_file and not (root / self.command[-1]).is_file():
            return Outcome(name, f"no {self.command[-1]} here", False, None, None)
        self.count += 1
        stem = f"{self.count:02d}-{re.sub(r'[^A-Za-z0-9]+', '-', name)[:40].strip('-')}"
        log, answers_file = self.results / f"{stem}.log", self.results / f"{stem}.jsonl"
        status, has_result = self._execute(root, env | {"SGLANG_EVAL_OUTPUT": str(answers_file)}, log)
        output = log.read_text(errors="replace")
        if status != "pass":
            print("\n".join(["", *output.splitlines()[-TAIL_LINES:]]))
        if answers_file.exists() and answers_file.stat().st_size:
            answers = load_answers(answers_file)
            return Outcome(name, status, has_result, Score(sum(a.correct for a in answers), len(answers)), answers)
        return Outcome(name, status, has_result, self._printed_score(output), None)

    def _execute(self, root: Path, env: dict[str, str], log: Path) -> tuple[str, bool]:
        with log.open("wb") as out:
            try:
                process = subprocess.Popen(
                    self.command,
                    cwd=root,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            except OSError as e:
                raise RunError(f"{self.command[0]} can't be run: {e.strerror}") from None
            try:
                code = process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                return f"timed out after {self.timeout:g} s", False
            finally:
                end_group(process)
        if code < 0:
            return f"killed by {signal.Signals(-code).name}", False
        return ("pass" if code == 0 else f"fail (exit code {code})"), True

    def _printed_score(self, output: str) -> Score | None:
        matches = list(self.pattern.finditer(output))
        if not matches:
            return None
        found = matches[-1].groupdict()
        try:
            share, n = float(found["score"]), int(found.get("n") or self.score_n or 0)
        except ValueError:
            share, n = -1.0, 0
        if not 0 <= share <= 1 or n < 1:
            raise RunError(f"{matches[-1][0]!r} is no score from 0 to 1 with its n")
        return Score(round(share * n), n)
