"""The examples of the pages, run as they are printed: they give the answers printed under them, which are right, and
commands marked in the page run to their end. The server's port alone is another."""

import json
import os
import re
import shlex
import string
import subprocess
import sys

import pytest

from sglang.test import doc_pages
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.doc_pages import Block
from sglang.test.eval_data import last_number
from sglang.test.server_process import ServerProcess

register_cpu_ci(est_time=60, suite="base-b-test-cpu")

BLOCKS = [block for page in doc_pages.pages() for block in doc_pages.blocks(page)]
ASKED = re.compile(r"-m (sglang\.(bench_serving|profiler|test\.gsm8k_eval|test\.few_shot_gsm8k))\b")
PLAIN = frozenset(f"{string.ascii_letters}{string.digits}-_./")  # no shell makes anything else of them
RIGHT = {"README.md": [10, None], "docs/users.md": [16, 40, 30]}  # worked out by hand; None: a call


def named(blocks: list[Block]) -> list:
    return [pytest.param(block, id=f"{block.page}: {block.text.strip()[:40]!r}") for block in blocks]


CURLS = [block for block in BLOCKS if block.language == "bash" and block.text.startswith("curl ")]
PYTHON = [block for block in BLOCKS if block.language == "python" and "import " in block.text]
RUN = [block for block in BLOCKS if block.runs and block not in CURLS]


@pytest.fixture(scope="module")
def server():
    with ServerProcess("sglang.launch_server", "--random-seed", "1") as running:
        yield running
        assert running.stop() == 0


def shell(text: str, server: ServerProcess, folder) -> str:
    """What the commands print, run in `folder` by the Python that runs the test."""
    text = text.replace("http://127.0.0.1:30000", server.url)
    text = ASKED.sub(lambda found: f"{found[0]} --port {server.port}", text)
    tools = folder / "bin"
    tools.mkdir()
    # Not a link: an environment's Python finds its packages by the place it is called from.
    (tools / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (tools / "python").chmod(0o755)
    env = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-ec", text], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_kind_of_example_was_found():
    shown = {page: [last_number(b.shows) for b in BLOCKS if b.page == page and b.shows] for page in RIGHT}
    assert shown == RIGHT
    assert len(CURLS) >= 3 and len(PYTHON) >= 2 and len(RUN) >= 5


def answer(reply: dict) -> str:
    """A reply's text, or its call as it stands in the reply."""
    if "choices" not in reply:
        return reply["text"]
    message = reply["choices"][0]["message"]
    return message["content"] or json.dumps(message["tool_calls"][0]["function"])


@pytest.mark.parametrize("block", named(CURLS))
def test_curl(server: ServerProcess, tmp_path, block: Block):
    reply = shell(re.sub(r"\bcurl ", "curl --fail-with-body ", block.text), server, tmp_path)
    if block.shows is not None:
        reply = json.loads(reply)
        assert answer(reply) == block.shows.strip()


@pytest.mark.parametrize("block", named(PYTHON))
def test_python(server: ServerProcess, tmp_path, block: Block):
    (tmp_path / "example.py").write_text(block.text.replace("http://127.0.0.1:30000", server.url))
    printed = shell("python example.py", server, tmp_path)
    assert block.shows is not None and printed.strip() == block.shows.strip()


@pytest.mark.parametrize("block", named(RUN))
def test_marked_commands_run(server: ServerProcess, tmp_path, block: Block):
    lines = [shlex.split(line, comments=True) for line in block.text.replace("\\\n", " ").splitlines()]
    if any(words[:2] != ["python", "-m"] or not PLAIN.issuperset("".join(words)) for words in lines):
        assert shell(block.text, server, tmp_path)
        return
    for words in lines:  # as the shell would, but the runner may fork these (sglang.test.ci.forker)
        port = ["--port", str(server.port)] if ASKED.search(" ".join(words)) else []
        command = [sys.executable, *words[1:], *port]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and done.stdout, done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
