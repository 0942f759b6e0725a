"""A turn of a conversation in, the events of its answers out, whatever API asked.

APIs translate: their requests into a Turn and a Prompt without text, events into their replies. No API is known here.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

from sglang.srt.constrained.grammar import GrammarError
from sglang.srt.entrypoints.chat_prompt import Turn, template_variables
from sglang.srt.entrypoints.chat_worker import ChatWriter
from sglang.srt.entrypoints.tool_choice import ToolChoice, read_tool_choice
from sglang.srt.managers.generation import Generation, GenerationGroup, Prompt, RequestError
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.parser.events import CallArguments, CallEnd, CallStart, Event, Text, Thought
from sglang.srt.parser.gemma4 import Gemma4Format
from sglang.srt.sampling.sampling_params import SamplingParams


@dataclass
class Call:
    id: str
    name: str
    arguments: str = ""  # JSON text
    complete: bool = False


@dataclass
class Message:
    """A whole answer."""

    text: str = ""
    thought: str = ""
    calls: list[Call] = field(default_factory=list)  # complete ones


class Answer:
    """One generation as events."""

    def __init__(self, generation: Generation, format: Gemma4Format | None, calls: bool, thoughts: bool):
        self.generation = generation
        self.calls: list[Call] = []  # so far
        self._format = format
        self._parser = format and format.parser(generation.prompt_ids, calls, thoughts)
        self._read = 0  # characters of the generation's text
        self._marks = 0
        self._thoughts = format and format.thoughts(generation.prompt_ids)

    def news(self) -> list[Event]:
        """Events since the last call."""
        g = self.generation
        text, marks = g.text[self._read :], g.marks[self._marks :]
        if self._parser is None:
            events: list[Event] = [Text(text)] if text else []
        else:
            pieces = self._format.pieces(text, [(at - self._read, token_id) for at, token_id in marks])
            events = self._parser.push(pieces, final=g.finish is not None)
        self._read, self._marks = len(g.text), len(g.marks)
        for event in events:
            self._note(event)
        return events

    def _note(self, event: Event) -> None:
        if isinstance(event, CallStart):
            self.calls.append(Call(event.id, event.name))
        elif isinstance(event, CallArguments):
            self.calls[event.index].arguments += event.text
        elif isinstance(event, CallEnd):
            self.calls[event.index].complete = True

    def message(self) -> Message:
        """All of an answer that has ended; it takes the place of news()."""
        events = self.news()
        return Message(
            "".join(e.text for e in events if isinstance(e, Text)),
            "".join(e.text for e in events if isinstance(e, Thought)),
            [call for call in self.calls if call.complete],
        )

    @property
    def finish_reason(self) -> str | None:
        """tool_calls when a turn has called something, whatever token ended it; else as the generation says."""
        finish = self.generation.finish
        if finish is None:
            return None
        called = finish.type == "stop" and any(call.complete for call in self.calls)
        return "tool_calls" if called else finish.type

    @property
    def thought_tokens(self) -> int:
        """So far."""
        return self._thoughts.count(self.generation.output_ids) if self._thoughts else 0


class AnswerGroup:
    """The answers to one turn, prompt.params.n of them."""

    def __init__(self, group: GenerationGroup, answers: list[Answer]):
        self.answers = answers
        self._group = group

    async def all(self) -> list[Answer]:
        """Wait until every answer has ended. Raises RequestError if one was refused."""
        await self._group.all()
        return self.answers

    async def news(self) -> AsyncGenerator[list[Answer], None]:
        """The answers that have something new, until all have ended. Raises RequestError for a refused one."""
        async for generations in self._group.news():
            yield [self.answers[g.index] for g in generations]


class Conversation:
    """`writer` None: the tokenizer has no chat template. `format` None: the model's output has no marks."""

    def __init__(self, manager: TokenizerManager, writer: ChatWriter | None, format: Gemma4Format | None):
        self.manager = manager
        self._writer = writer
        self._format = format
        self.reads_calls = format is not None and manager.args.tool_call_parser != "none"
        self.reads_thoughts = format is not None and manager.args.reasoning_parser != "none"

    async def render(self, turn: Turn) -> str:
        """The prompt's text. Raises RequestError."""
        if self._writer is None:
            try:
                self.manager.require_tokenizer().require_chat_template()
            except ValueError as e:
                raise RequestError(str(e), param="messages") from e
        return await self._writer.prompt(turn)

    def _thinks(self, turn: Turn) -> bool:
        variables = template_variables(turn, self.manager.args.default_chat_template_kwargs or {})
        return bool(variables.get("enable_thinking"))

    def _constrain_calls(self, choice: ToolChoice, params: SamplingParams, many: bool) -> None:
        """Give `params` the grammar of calls that `choice` asks for, if it does. Raises RequestError."""
        bound = choice.required or choice.narrowed or choice.strict
        if not self.reads_calls:
            if bound:
                raise RequestError(
                    "this server reads no calls (--tool-call-parser), so tool_choice can be auto or none, and no tool "
                    "strict",
                    param="tool_choice",
                )
            return
        form = params.grammar is not None
        if not bound and not form:
            return
        if params.min_new_tokens:
            raise RequestError(
                "min_tokens contradicts tool_choice and strict tools: a grammar says itself where the output may end",
                param="min_tokens",
            )
        if choice.required:  # then there is no answer that could have a form
            params.json_schema = params.regex = params.ebnf = params.structural_tag = None
        try:
            functions = choice.functions(all_strict=choice.required or form)
            params.tools = self._format.call_grammar(functions, many=many, free=not (choice.required or form))
        except GrammarError as e:
            raise RequestError(str(e), param="tools") from e

    @contextlib.asynccontextmanager
    async def start(
        self,
        turn: Turn,
        prompt: Prompt,
        thoughts: bool = True,
        parallel_calls: bool = True,
        schemas_at: str = "function.parameters",
    ) -> AsyncIterator[AnswerGroup]:
        """Send `prompt`, which gets its text here; the answers end with the context. `thoughts` false: they are part of
        the answer. `parallel_calls` false: a turn ends with its first call. `schemas_at`: where a tool of this API has
        its schema, for messages. Raises RequestError."""
        choice = read_tool_choice(turn, schemas_at)
        prompt.text, prompt.add_special_tokens = await self.render(turn), False
        calls = self.reads_calls and choice is not None
        thoughts = self.reads_thoughts and thoughts
        if choice is not None:
            # In a thread: hundreds of kilobytes of schemas take it most of a second, a piece at a time.
            await asyncio.to_thread(self._constrain_calls, choice, prompt.params, parallel_calls)
        if prompt.params.grammar is not None and self.reads_thoughts:
            prompt.thought_marks = self._format.thought_marks(self._thinks(turn))
        if self._format is not None:
            prompt.mark_ids = self._format.mark_ids
            if calls:  # a model goes on to make up the result, if its turn does not end here
                prompt.params.stop_token_ids = [
                    *prompt.params.stop_token_ids, *self._format.ends_of_calls(parallel_calls)
                ]  # fmt: skip
        async with self.manager.generate([prompt]) as group:
            yield AnswerGroup(group, [Answer(g, self._format, calls, thoughts) for g in group.generations])
