"""ChatTemplate: a checkpoint's Jinja template, and what it makes of the forms that a message's content can have.

Templates are programs: which form one reads is seen by trying it once. No HTTP, no tokens. They are written for
transformers, whose settings, filters and globals of Jinja are repeated here: importing its renderer takes a second of a
processor, in the HTTP process and in each that writes large chats, and rendering itself is Jinja's.
"""

import functools
import json
from datetime import datetime
from typing import Any

from jinja2 import Template
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Two texts no template writes by itself, nor changes; what stands between them tells how it joined them.
FIRST, SECOND = "7480213965", "5306179428"
ASKED = {"role": "user", "content": "?"}


class ChatTemplate:
    """`source` is the template's text, `special_tokens` bos_token and its like, as templates use them; `tool_source` is
    the text for chats with tools, where the checkpoint has another one for them."""

    def __init__(self, source: str, special_tokens: dict[str, str], tool_source: str | None = None):
        self.source = source
        self.tool_source = tool_source
        self.special_tokens = special_tokens

    def render(
        self,
        messages: list[dict],
        tools: list[dict] | None = None,
        add_generation_prompt: bool = True,
        variables: dict[str, Any] | None = None,
    ) -> str:
        """Messages -> prompt text, special tokens written out. Raises ValueError with the template's own complaint."""
        source = self.source if tools is None or self.tool_source is None else self.tool_source
        given = {
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return compiled(source).render({**self.special_tokens, **(variables or {}), **given})
        except RecursionError as e:
            raise ValueError("the chat template refuses these messages: they or the tools are nested too deeply") from e
        except Exception as e:  # of any kind: templates are programs of the checkpoint, and these messages their input
            raise ValueError(f"the chat template refuses these messages: {e!s:.300}") from e

    @functools.cached_property
    def list_roles(self) -> frozenset[str]:
        """Roles whose content may be a list of text parts: the template walks it and writes the texts alone."""
        parts = [{"type": "text", "text": FIRST}, {"type": "text", "text": SECOND}]
        chats = {
            "system": [{"role": "system", "content": parts}, ASKED],
            "developer": [{"role": "developer", "content": parts}, ASKED],
            "user": [{"role": "user", "content": parts}],
            "assistant": [ASKED, {"role": "assistant", "content": parts}, ASKED],
        }
        return frozenset(role for role, chat in chats.items() if self._joins(chat))

    def _joins(self, chat: list[dict]) -> bool:
        _, first, rest = self._try(chat).partition(FIRST)
        between, second, _ = rest.partition(SECOND)
        return bool(first and second) and "text" not in between  # else the list was printed as it is

    @functools.cached_property
    def reads_mappings(self) -> bool:
        """A tool message's content may be a mapping: the template writes its keys and values, not Python's print."""
        text = self._try(self._tool_chat({FIRST: SECOND}))
        return FIRST in text and SECOND in text and str({FIRST: SECOND}) not in text

    @functools.cached_property
    def writes_content_after_results(self) -> bool:
        """What a message says beside its calls is written behind their results, as Gemma 4's template does."""
        text = self._try(self._tool_chat(SECOND, beside=FIRST))
        return 0 <= text.find(SECOND) < text.find(FIRST)

    @functools.cached_property
    def writes_whole_schemas(self) -> bool:
        """A tool's schema is written with all that is in it, not only with keys that the template knows."""
        schema = {"type": "object", "properties": {"a": {"anyOf": [{"type": "string", "title": FIRST}]}}}
        function = {"name": "probe", "description": "", "parameters": schema}
        return FIRST in self._try([ASKED], [{"type": "function", "function": function}])

    @staticmethod
    def _tool_chat(result: Any, beside: str = "") -> list[dict]:
        call = {"id": "call00001", "type": "function", "function": {"name": "probe", "arguments": {}}}
        return [
            ASKED,
            {"role": "assistant", "content": beside, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call00001", "name": "probe", "content": result},
        ]

    def _try(self, chat: list[dict], tools: list[dict] | None = None) -> str:
        try:
            return self.render(chat, tools)
        except ValueError:
            return ""


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks what trainers learn from; the text is written as it is."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> Scope:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


@functools.lru_cache(8)
def compiled(source: str) -> Template:
    """Raises jinja2.TemplateSyntaxError."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment.from_string(source)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Not Jinja's own, which escapes what HTML does not take."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> None:
    raise TemplateError(message)


def strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
