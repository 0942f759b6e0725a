"""Every command that the pages print: its program is there and explains itself, its flags exist, its paths exist."""

import os
import re
import runpy
import subprocess
import sys
import tempfile
import traceback
from importlib.util import find_spec
from pathlib import Path

import pytest

from sglang.srt.arg_fields import all_flags
from sglang.srt.server_args import ServerArgs
from sglang.test import doc_pages
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=20, suite="base-b-test-cpu")

ROOT = doc_pages.ROOT
SHELL = {"cd", "cp", "export", "source", "git"}  # need no look: their paths are checked


def documented() -> list[tuple[str, list[str]]]:
    found = []
    for page in doc_pages.pages():
        name = str(page.relative_to(ROOT))
        for block in doc_pages.blocks(page):
            if block.language == "bash":
                found += [(name, words) for words in doc_pages.commands(block)]
        found += [(name, words) for words in doc_pages.inline_commands(page)]
    return found


COMMANDS = [pytest.param(page, words, id=f"{page}: {' '.join(words)[:60]}") for page, words in documented()]


def program(words: list[str]) -> tuple[str, ...] | None:
    """What is run, without its flags: ("-m", module), (file,), or None for what is not ours."""
    words = [word for i, word in enumerate(words) if "=" not in word or any("=" not in w for w in words[:i])]
    name, rest = words[0].removeprefix(".venv/bin/"), words[1:]
    if name in ("python", "python3") and rest[0] == "-m":
        return None if rest[1] == "pip" else ("-m", rest[1])
    if name == "sglang":
        return ("sglang", *rest[: 2 if rest[0] == "bench" else 1])
    if name in ("python", "python3", "bash"):
        return (rest[0],)
    if name in SHELL or name in ("pip", "curl"):
        return None
    raise AssertionError(f"{name}: a kind of command this test does not know")


def flags_of(words: list[str]) -> tuple[list[str], list[str]]:
    """(flags of the program, flags of a server that it passes on)."""
    own, _, passed_on = " ".join(w for w in words if " " not in w).partition(" -- ")
    inside = " ".join(word for word in words if " " in word)  # quoted settings
    return re.findall(r"(?<!\S)--[a-z][\w-]*", own), re.findall(r"(?<!\S)--[a-z][\w-]*", f"{inside} {passed_on}")


_helps: dict[tuple[str, ...], str] = {}


def help_of(which: tuple[str, ...]) -> str:
    if which not in _helps:
        with tempfile.TemporaryFile("w+") as shown:
            if which[0].endswith(".sh"):
                code = subprocess.call(["bash", *which, "--help"], cwd=ROOT, stdout=shown, stderr=shown, timeout=120)
            else:
                code = call_in_fork(which, shown.fileno())
            shown.seek(0)
            _helps[which] = shown.read()
        assert code == 0, (which, _helps[which])
    return _helps[which]


def call_in_fork(which: tuple[str, ...], output: int) -> int:
    """The exit code of `python program --help`, in a child that has what most programs import: some forty starts of an
    interpreter of its own would take a second and more each."""
    import torch  # noqa: F401

    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    try:
        os.dup2(output, 1), os.dup2(output, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        sys.argv = [which[-1], "--help"]
        if which[0] == "sglang":
            sys.argv = [*which, "--help"]
            runpy.run_module("sglang", run_name="__main__", alter_sys=True)
        elif which[0] == "-m":
            runpy.run_module(which[1], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str((ROOT / which[0]).parent))
            runpy.run_path(str(ROOT / which[0]), run_name="__main__")
    except SystemExit as e:
        code = 0 if not e.code else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def test_commands_were_found():
    assert len(COMMANDS) > 50 and any(words[0] == "curl" for _, words in documented())


@pytest.mark.parametrize("page,words", COMMANDS)
def test_program_and_flags_exist(page: str, words: list[str]):
    which = program(words)
    if which is None:
        return
    if which[0] == "-m":
        assert find_spec(which[1]) is not None, which[1]
    elif which[0].startswith("test/registered"):
        return  # a test file takes pytest's flags; test_paths_exist looks for it
    own, passed_on = flags_of(words[words.index(which[-1]) :])
    text = help_of(which)
    missing = [flag for flag in own if not re.search(rf"(?<![\w-]){flag}(?![\w-])", text)]
    missing += [flag for flag in passed_on if flag not in all_flags(ServerArgs)]
    assert not missing, f"{page}: {' '.join(words)}"


MADE = ("--out", "--output", "--output-dir", "--output-file", "--result-filename", "--chart", "--log")


@pytest.mark.parametrize("page,words", COMMANDS)
def test_paths_exist(page: str, words: list[str]):
    """Words that begin with a folder of the repository name something in it, unless they name what a command makes."""
    folders = [p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")]
    for before, word in zip(["", *words], words, strict=False):
        if word.partition("/")[0] in folders and "/" in word and before not in MADE and "*" not in word:
            assert (ROOT / word.partition("::")[0]).exists(), f"{page}: {word}"


def sources() -> list[Path]:
    kept = {".py", ".sh", ".md", ".toml", ".txt"}
    folders = ("python", "test", "benchmark", "scripts", "docs")
    return [ROOT / "README.md", *(p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in kept)]


def test_no_installation_by_the_bare_name():
    """Package indexes have another project under our name: only a path, or a folder of wheels, installs this one."""
    by_name = re.compile(r"pip install(?P<words>[^\n`]*?)[\s'\"]sglang(?![\w./-])")
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in sources()
        if path != Path(__file__).resolve()
        for match in by_name.finditer(path.read_text(encoding="utf-8"))
        if "--no-index" not in match["words"]
    ]
    assert not found


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
