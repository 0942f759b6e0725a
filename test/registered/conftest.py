"""For `pytest --collect-only` over many files: it imports them all into one process, where those that run kernels in
Triton's interpreter and those that compile them refuse to come after each other. Tests run a file a process."""

import os


def pytest_configure(config):
    if config.option.collectonly:
        import sglang.srt.utils.triton_runtime  # noqa: F401  it reads the switch now: what compiles finds it off

        os.environ["TRITON_INTERPRET"] = "1"  # and what interprets finds it on
