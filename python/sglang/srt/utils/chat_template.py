"""ChatTemplate: a checkpoint's Jinja template, and what it makes of the forms that a message's content can have.

Templates are programs: which form one reads is seen by trying it once. No HTTP, no tokens.
"""

import functools
from collections.abc import Callable
from typing import Any

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
        render_jinja_template = load_renderer()
        try:
            rendered, _ = render_jinja_template(
                conversations=[messages],
                tools=tools,
                chat_template=self.source if tools is None or self.tool_source is None else self.tool_source,
                add_generation_prompt=add_generation_prompt,
                **{**self.special_tokens, **(variables or {})},
            )
        except RecursionError as e:
            raise ValueError("the chat template refuses these messages: they or the tools are nested too deeply") from e
        except Exception as e:  # of any kind: templates are programs of the checkpoint, and these messages their input
            raise ValueError(f"the chat template refuses these messages: {e!s:.300}") from e
        return rendered[0]

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


def load_renderer() -> Callable:
    """transformers' renderer. The import takes most of a second: the server does it while the model loads."""
    from transformers.utils.chat_template_utils import render_jinja_template

    return render_jinja_template
