"""On what a record was measured, with what, by which command and when: kept beside every result. Imports no torch."""

import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = ("*.py", "*.json", "*.cu")  # of a build: code and tables


def collect(argv: list[str], package: Path) -> dict[str, str | int | None]:
    """Facts about this run of `argv`, whose servers import the sglang folder `package`. None for what is not known.

    `build` changes with the package's sources, so it tells two states apart that have no commit of their own.
    """
    gpu, gpu_count, driver = _gpu()
    return {
        "hardware": gpu or f"{os.cpu_count()} {platform.machine()} cores",
        "gpu_count": gpu_count,
        "driver": driver,
        "torch": _version("torch"),
        "triton": _version("triton"),
        "python": platform.python_version(),
        "commit": _commit(package),
        "build": build_digest(package),
        "command": command_text(argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def build_digest(package: Path) -> str:
    """12 hex digits over the names and contents of the package's sources."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in SOURCES for path in package.rglob(pattern)}):
        digest.update(f"{path.relative_to(package)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def command_text(argv: list[str]) -> str:
    """The command line to type in the repository's root: paths inside of it are relative."""
    return shlex.join(["python", *(relative(argument) for argument in argv)])


def relative(argument: str) -> str:
    """A path inside the repository as one from its root; other arguments as they are."""
    path = Path(argument)
    return str(path.relative_to(REPOSITORY)) if path.is_absolute() and path.is_relative_to(REPOSITORY) else argument


def _gpu() -> tuple[str | None, int, str | None]:
    """Name of the first GPU, how many there are, and the driver's version."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    lines = _output(query).splitlines()
    name, _, driver = lines[0].partition(", ") if lines else ("", "", "")
    return name or None, len(lines), driver or None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(package: Path) -> str | None:
    """The commit that the package's folder is a checkout of, with a plus where the folder differs from it."""
    git = ["git", "-C", str(package)]
    commit = _output([*git, "rev-parse", "--short=12", "HEAD"]).strip()
    if not commit or not _output([*git, "ls-files", "--", "."]):  # no checkout, or a folder that it does not track
        return None
    return commit + ("+" if _output([*git, "status", "--porcelain", "--", "."]).strip() else "")


def _output(command: list[str]) -> str:
    """What the command prints; nothing if it fails or is not installed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
