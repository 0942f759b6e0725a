"""A serving framework for language models. `Engine` serves in-process; `python -m sglang.launch_server` over HTTP."""

from sglang.version import __version__

__all__ = ["Engine", "__version__"]


def __getattr__(name: str):
    # Late, so that tools which only need the version or the command line do not import torch.
    if name == "Engine":
        from sglang.srt.entrypoints.engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
