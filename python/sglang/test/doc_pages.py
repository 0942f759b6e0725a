"""The project's pages as tests read them: fenced blocks, the commands in them, and which of these a test is to run."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
RUNS = "<!-- a test runs this -->"  # on the line above a block
FENCE = re.compile(r"(?m)^(?P<mark><!--[^\n]*-->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL)
INLINE = re.compile(r"`((?:\.venv/bin/)?(?:python3?|bash|pip|source|sglang) [^`]+)`")


@dataclass(frozen=True)
class Block:
    page: str  # its path in the repository
    language: str
    text: str
    runs: bool
    shows: str | None  # the ```text block right below it: what it prints


def pages() -> list[Path]:
    """Every page of the checkout. Raises FileNotFoundError where the package is installed without one."""
    found = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("benchmark/**/README.md"))]
    found += [*sorted(ROOT.glob("scripts/**/README.md")), *sorted(ROOT.glob("python/sglang/assets/*/README.md"))]
    for page in found:
        page.stat()
    return found


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found, matches = [], list(FENCE.finditer(text))
    for match, after in zip(matches, [*matches[1:], None], strict=False):
        shows = None
        if after is not None and after["language"] == "text" and "```" not in text[match.end() : after.start()]:
            shows = after["text"]
        name = str(page.relative_to(ROOT))
        found.append(Block(name, match["language"], match["text"], (match["mark"] or "").strip() == RUNS, shows))
    return found


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a bash block, without comments."""
    found, open_text = [], ""
    for line in block.text.splitlines(keepends=True):
        open_text += line
        if line.endswith("\\\n"):
            continue
        try:
            words = shlex.split(open_text, comments=True)
        except ValueError:  # a quotation that ends on a later line
            continue
        if words:
            found.append(words)
        open_text = ""
    if open_text.strip():
        raise ValueError(f"{block.page}: an open quotation in {open_text!r}")
    return found


def inline_commands(page: Path) -> list[list[str]]:
    """Commands that stand in a sentence or a table; those with `...` in them are sketches."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [shlex.split(text.replace("\\|", "|")) for text in INLINE.findall(prose) if "..." not in text]
