"""The YAML file of --config: a mapping of flags, without their dashes, to values."""

from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 20  # such a file is some lines; this only keeps a wrong one from filling memory


def read_flags(path: str) -> dict[str, Any]:
    """Names (with underscores) and values. Raises ValueError for a file that is no mapping of texts or has a key twice,
    OSError for one that can't be read."""
    import yaml  # late: a start without --config and --help need no package

    if (size := Path(path).stat().st_size) > MAX_BYTES:
        raise ValueError(f"it has {size} bytes, which is no file of flags (limit {MAX_BYTES})")
    try:
        text = Path(path).read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        entries = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as e:
        raise ValueError(f"not valid YAML: {' '.join(str(e).split())}") from None
    if root is None:
        return {}
    if not isinstance(entries, dict):
        raise ValueError("`flag: value` in each line is expected")
    lines: dict[str, int] = {}
    for key, _ in root.value:
        name, line = str(key.value).replace("-", "_"), key.start_mark.line + 1
        if name in lines:
            raise ValueError(f"line {line}: {key.value} stands there already, in line {lines[name]}")
        lines[name] = line
    return {str(key).replace("-", "_"): value for key, value in entries.items()}
