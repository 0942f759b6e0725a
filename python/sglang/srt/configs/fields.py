"""Typed reads from a config.json: every complaint is one line that names the field, its value and what was expected."""

from typing import Any

MAX_LAYERS = 4096


def integer(raw: dict, name: str, default: int | None = None, minimum: int = 1) -> int:
    """An integer field of at least `minimum`; absent or null means `default`, an error if there is none."""
    value = raw.get(name)
    if value is None:
        value = default
    if value is None:
        raise ValueError(f"config.json: field {name!r} is missing")
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"config.json: {name} must be an integer of at least {minimum}, got {value!r}")
    return value


def layer_count(raw: dict) -> int:
    """num_hidden_layers, bounded: what describes each layer is made before any tensor is looked at."""
    count = integer(raw, "num_hidden_layers")
    if count > MAX_LAYERS:
        raise ValueError(f"config.json: num_hidden_layers must be at most {MAX_LAYERS}, got {count}")
    return count


def number(raw: dict, name: str, default: float | None = None) -> float:
    """A positive number, absent or null means `default`, an error if there is none."""
    value = raw.get(name)
    if value is None:
        value = default
    if value is None:
        raise ValueError(f"config.json: field {name!r} is missing")
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ValueError(f"config.json: {name} must be a positive number, got {value!r}")
    return float(value)


def boolean(raw: dict, name: str, default: bool) -> bool:
    value = raw.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ValueError(f"config.json: {name} must be true or false, got {value!r}")
    return value


def one_of(raw: dict, name: str, default: Any, allowed: tuple) -> Any:
    """A field with few values; `allowed` names null as None."""
    value = raw.get(name, default)
    if value not in allowed:
        choice = ", ".join("null" if one is None else repr(one) for one in allowed)
        rule = choice if allowed == (None,) else f"one of {choice}"
        raise ValueError(f"config.json: {name} must be {rule}, got {value!r}")
    return value


def mapping(raw: dict, name: str) -> dict:
    """A JSON object; absent or null means empty."""
    value = raw.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"config.json: {name} must be an object, got {value!r}")
    return value


def layer_types(raw: dict, num_layers: int, default: tuple[str, ...]) -> tuple[str, ...]:
    """Kind of attention of each layer: "sliding_attention" or "full_attention"."""
    value = raw.get("layer_types")
    if value is None:
        return default
    kinds = ("sliding_attention", "full_attention")
    if not isinstance(value, list) or len(value) != num_layers or any(kind not in kinds for kind in value):
        raise ValueError(f"config.json: layer_types must list {num_layers} of {' or '.join(kinds)}, got {value!r}")
    return tuple(value)
