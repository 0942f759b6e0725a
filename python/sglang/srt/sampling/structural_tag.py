"""structural_tag: forms for parts of an output, in upstream's two ways of saying so, made one: the newer."""

from typing import Any

TOKEN_FIELDS = ("token", "exclude_tokens", "trigger_tokens")


def with_format(tag: dict[str, Any]) -> dict[str, Any]:
    """`tag` with a `format`, whichever way it was given. Raises ValueError for what has neither, and for tokens that
    are not named by their ids."""
    if "format" in tag:
        form = tag["format"]
    elif isinstance(tag.get("structures"), list) and isinstance(tag.get("triggers"), list):
        form = {
            "type": "triggered_tags",
            "triggers": tag["triggers"],
            "tags": [_tag(entry, f"structures[{i}]") for i, entry in enumerate(tag["structures"])],
        }
    else:
        raise ValueError("has neither a format, nor structures and triggers")
    _check(form)
    return {"type": "structural_tag", "format": form}


def _tag(entry: Any, place: str) -> dict[str, Any]:
    if not isinstance(entry, dict) or not {"begin", "schema", "end"} <= entry.keys():
        raise ValueError(f"has in {place} no begin, schema and end")
    content = {"type": "json_schema", "json_schema": entry["schema"]}
    return {"type": "tag", "begin": entry["begin"], "content": content, "end": entry["end"]}


def _check(node: Any) -> None:
    if isinstance(node, list):
        for part in node:
            _check(part)
    if not isinstance(node, dict) or node.get("type") == "json_schema":  # in that is a schema, no format
        return
    for field in TOKEN_FIELDS:
        tokens = node.get(field, [])
        if any(isinstance(token, str) for token in (tokens if isinstance(tokens, list) else [tokens])):
            raise ValueError(f"names in {field} a token by its text; give its id, as /tokenize tells it")
    for part in node.values():
        _check(part)
