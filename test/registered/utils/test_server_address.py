"""The flags of a server's address: one spelling for all tools that ask a running server."""

import argparse
import sys
from types import SimpleNamespace

import pytest

from sglang import bench_serving, profiler
from sglang.srt.utils.server_address import add_server_flags, server_url
from sglang.test import few_shot_gsm8k, gsm8k_eval
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=3, suite="unit-test-cpu")

TOOLS = {
    "bench_serving": bench_serving.make_parser,
    "profiler": profiler.make_parser,
    "few_shot_gsm8k": few_shot_gsm8k.make_parser,
    "gsm8k_eval": gsm8k_eval.make_parser,
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_server_flags(made)
    return made


@pytest.mark.parametrize(
    "flags,url",
    [
        ([], "http://127.0.0.1:30000"),
        (["--port", "8000"], "http://127.0.0.1:8000"),
        (["--host", "gpu-3", "--port", "1"], "http://gpu-3:1"),
        (["--host", "http://10.0.0.1"], "http://10.0.0.1:30000"),
        (["--host", "::1"], "http://[::1]:30000"),
        (["--base-url", "https://here/"], "https://here"),
        (["--url", "http://[::1]:9", "--port", "4"], "http://[::1]:9"),
    ],
)
@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_takes_every_spelling(tool, flags, url):
    assert server_url(TOOLS[tool]().parse_args(flags)) == server_url(parser().parse_args(flags)) == url


def test_another_default_port_and_values_that_are_no_flags():
    assert server_url(parser().parse_args([]), 8000) == "http://127.0.0.1:8000"
    assert server_url(SimpleNamespace(base_url=None, host="http://h", port=7)) == "http://h:7"


@pytest.mark.parametrize(
    "flags",
    [["--url", "localhost:3"], ["--base-url", "http://a:b"], ["--url", "http://[::1"], ["--url", "http://a:0"]]
    + [["--port", port] for port in ("0", "65536", "x", "-1", "٣")],
)
def test_what_is_no_address(flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(flags)
    assert f"{flags[1]}: " in capsys.readouterr().err


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
