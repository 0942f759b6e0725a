"""What is said of environment variables is true: the list of those read is that of the sources."""

import logging
import os
import re
import sys
from pathlib import Path

import pytest

import sglang
from sglang.srt.utils.environment import READ, is_on, unread, warn_of_unread
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=2, suite="unit-test-cpu")


def test_the_list_is_that_of_the_sources():
    package = Path(sglang.__file__).parent
    sources = [file for file in package.rglob("*.py") if file.name != "environment.py"]
    assert {name for file in sources for name in re.findall(r"SGLANG_[A-Z0-9_]+", file.read_text())} == READ


def test_unread_variables_are_named_in_one_line(monkeypatch, caplog):
    for name in list(os.environ):
        if name.startswith("SGLANG_"):
            monkeypatch.delenv(name)
    with caplog.at_level(logging.WARNING):
        warn_of_unread()
        assert not caplog.records
        monkeypatch.setenv("SGLANG_REQ_WAITING_TIMEOUT", "secret-5")
        monkeypatch.setenv("SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION", "1")
        monkeypatch.setenv("SGLANG_RETURN_ORIGINAL_LOGPROB", "1")
        warn_of_unread()
    assert [r.getMessage() for r in caplog.records] == [
        "these environment variables have no effect here: "
        "SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION, SGLANG_REQ_WAITING_TIMEOUT"
    ]
    assert unread({"SGLANG_X": "1", "PATH": "/", "MY_SGLANG_Y": ""}) == ["SGLANG_X"]


@pytest.mark.parametrize(("value", "on"), [("1", True), ("true", True), ("True", True), ("0", False), ("", False)])
def test_switches(monkeypatch, value, on):
    monkeypatch.setenv("SGLANG_X", value)
    assert is_on("SGLANG_X") == on
    monkeypatch.delenv("SGLANG_X")
    assert not is_on("SGLANG_X")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
