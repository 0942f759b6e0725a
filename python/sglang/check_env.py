"""`python -m sglang.check_env`, or `sglang check-env`: what of this machine matters to a server, for reports of faults.

Each line is a name and a value; what is not there or does not answer says so in its line. Nothing is changed, no model
is loaded, and no variable's value is shown that could be a secret.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

PROG = "python -m sglang.check_env"
SHOWN_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "HF_HOME", "HF_ENDPOINT")
SECRET = re.compile("KEY|TOKEN|SECRET|PASS")
TOOL_SECONDS = 30
ABSENT = "not there"


def packages() -> Iterator[tuple[str, str]]:
    """Those that sglang asks for, extras included, in the order of pyproject.toml."""
    try:
        wanted = importlib.metadata.requires("sglang") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        wanted = ["torch", "transformers", "triton"]
    for name in dict.fromkeys(re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in wanted):
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, ABSENT


def machine() -> Iterator[tuple[str, str]]:
    yield "Python", sys.version.replace("\n", " ")
    yield "Platform", platform.platform()
    try:
        from sglang.srt.utils.host import cores, free_memory

        yield "CPU cores for this process", str(cores())
        yield "Free memory", f"{free_memory() / 2**30:.1f} GiB"
    except ModuleNotFoundError as e:
        yield "CPU cores, memory", f"unknown: {e.name} is not installed"
    try:
        import resource

        yield "Open files at most", "{} (soft), {} (hard)".format(*resource.getrlimit(resource.RLIMIT_NOFILE))
    except ImportError:  # no such thing on this system
        pass
    for name in (*SHOWN_VARIABLES, *sorted(name for name in os.environ if name.startswith("SGLANG_"))):
        if name in os.environ:
            yield name, "is set" if SECRET.search(name) else os.environ[name]


def gpus() -> Iterator[tuple[str, str]]:
    """What torch sees, which is what a server can use."""
    try:
        import torch
    except ImportError as e:
        yield "GPUs", f"unknown: torch can't be imported ({e})"
        return
    yield "CUDA of torch", torch.version.cuda or "none: a CPU build"
    if not torch.cuda.is_available():
        yield "GPUs", "none that torch sees"
        return
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        memory, capability = f"{card.total_memory / 2**30:.1f} GiB", f"compute capability {card.major}.{card.minor}"
        yield f"GPU {i}", f"{card.name}, {memory}, {capability}"


def tools() -> Iterator[tuple[str, str]]:
    yield "Driver", output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
    yield "nvcc", output_of("nvcc", "--version").rpartition("\n")[2]
    yield "C compiler", output_of("cc", "--version").partition("\n")[0]
    yield "GPU topology", output_of("nvidia-smi", "topo", "-m")


def output_of(*words: str) -> str:
    """What a program prints, or why it prints nothing."""
    if shutil.which(words[0]) is None:
        return ABSENT
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TOOL_SECONDS, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"does not answer: {e}"
    return done.stdout.strip() if done.returncode == 0 else f"exit code {done.returncode}"


def main(argv: list[str], prog: str = PROG) -> int:
    argparse.ArgumentParser(prog=prog, description="What of this machine matters to a server.").parse_args(argv)
    from sglang.version import __version__

    print(f"sglang: {__version__}")
    for part in (machine, packages, gpus, tools):
        for name, value in part():
            print(f"{name}:{chr(10) if chr(10) in value else ' '}{value}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
