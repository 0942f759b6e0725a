"""Large chats are written beside the event loop, within a limit of time, and their processes leave nothing behind."""

import asyncio
import json
import sys
import time

import psutil
import pytest

from sglang.srt.entrypoints import chat_worker
from sglang.srt.entrypoints.chat_prompt import Turn, chat_prompt
from sglang.srt.entrypoints.chat_worker import INLINE_BYTES, INLINE_MESSAGES, KEPT_BYTES, ChatWriter
from sglang.srt.managers.generation import RequestError
from sglang.srt.utils.chat_template import ChatTemplate
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import children_of, wait_for

register_cpu_ci(est_time=40, suite="base-a-test-cpu")

# Looks from each message to the end, as published templates do: quadratic.
LOOKS_AHEAD = """
{{- bos_token -}}
{%- for message in messages -%}
  {%- set next = namespace(role=none) -%}
  {%- for k in range(loop.index0 + 1, messages | length) -%}
    {%- if next.role is none and messages[k].role != 'tool' -%}{%- set next.role = messages[k].role -%}{%- endif -%}
  {%- endfor -%}
  {{- message.role ~ ':' ~ message.content ~ ' (' ~ shout ~ next.role ~ ') ' -}}
{%- endfor -%}
{%- if messages | length == 999 -%}{{ messages[2000].x / 0 }}{%- endif -%}
{%- for tool in tools or [] -%}{{- tool | tojson -}}{%- endfor -%}
"""


def chat(count: int, text: str = "hi", **fields) -> Turn:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i in range(count)]
    return Turn(messages=messages, **fields)


TEMPLATE = ChatTemplate(LOOKS_AHEAD, {"bos_token": "<bos>"})


def with_writer(work, seconds: float = 30.0):
    """What `work(writer)` returns; afterwards no process of the writer may be left."""

    async def main():
        writer = ChatWriter(TEMPLATE, {"shout": "!"}, seconds=seconds)
        try:
            return await work(writer)
        finally:
            writer.close()

    result = asyncio.run(main())
    assert not children_of()
    return result


@pytest.mark.parametrize(
    "body",
    [
        chat(1),
        chat(INLINE_MESSAGES + 1),
        chat(3, "long " * INLINE_BYTES, chat_template_kwargs={"shout": "?"}),
        chat(3, "é€\U0001f600\n" * INLINE_BYTES, add_generation_prompt=False),
        chat(50, tools=[{"type": "function", "function": {"name": "f", "big": 10**30, "x": [None, 1.5, True]}}]),
    ],
)
def test_the_prompt_is_the_same_wherever_it_is_written(body):
    assert with_writer(lambda writer: writer.prompt(body)) == chat_prompt(body, TEMPLATE, {"shout": "!"})


def test_small_chats_start_no_process():
    async def work(writer):
        await writer.prompt(chat(INLINE_MESSAGES))
        assert not children_of()

    with_writer(work)


def test_the_event_loop_goes_on_and_small_chats_are_not_kept_waiting():
    """4,000 small messages stopped everything for 88 s."""

    async def work(writer):
        await writer.prompt(chat(40))  # the process is there
        large = asyncio.ensure_future(writer.prompt(chat(800)))
        longest, last = 0.0, time.monotonic()
        while not large.done():
            assert (await writer.prompt(chat(2))).startswith("<bos>user:hi (!assistant)")
            await asyncio.sleep(0.005)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        assert (await large).count("user:hi") == 400
        return longest

    assert with_writer(work) < 2.0


def test_a_chat_that_takes_too_long_is_refused_and_the_process_goes_on():
    async def work(writer):
        with pytest.raises(RequestError, match="takes too long over them: send fewer messages") as caught:
            await writer.prompt(chat(20_000))
        assert (caught.value.status, caught.value.param) == (400, "messages")
        (before,) = children_of()
        assert await writer.prompt(chat(100))
        assert children_of() == [before]

    with_writer(work, seconds=0.5)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (chat(999), "the chat template refuses these messages: .*messages.* has no element 2000|refuses"),
        (Turn(messages=[{"role": "me" * 10_000, "content": "x"}]), r"messages\[0\].role"),
        (chat(40, chat_template_kwargs={"tools": []}), "chat_template_kwargs must not hold 'tools'"),
    ],
)
def test_errors_come_back_with_their_field(body, says):
    async def work(writer):
        with pytest.raises(RequestError, match=says) as caught:
            await writer.prompt(body)
        assert caught.value.status == 400 and caught.value.param and len(caught.value.message) < 1000

    with_writer(work)


@pytest.mark.parametrize("depth", [100, 200, 300, 400])
def test_deep_but_legal_json_is_written_or_refused(depth):
    deep = json.loads('{"a":' * depth + "1" + "}" * depth)
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": deep}}]
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c", "content": "y"},
    ]

    async def work(writer):
        for body in (
            Turn(messages=messages, tools=[deep]),
            Turn(messages=messages, tools=[deep, {"pad": "x" * INLINE_BYTES}]),
        ):
            try:
                assert await writer.prompt(body)
            except RequestError as e:
                assert e.status == 400 and "deep" in e.message

    with_writer(work)


def test_a_caller_that_leaves_ends_the_work():
    async def work(writer):
        task = asyncio.ensure_future(writer.prompt(chat(20_000)))
        await asyncio.sleep(0.2)
        (process,) = children_of()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not process.is_running()
        assert (await writer.prompt(chat(40))).startswith("<bos>")

    with_writer(work)


def test_a_process_that_dies_fails_its_chat_alone():
    async def work(writer):
        await writer.prompt(chat(40))
        (process,) = children_of()
        task = asyncio.ensure_future(writer.prompt(chat(20_000)))
        await asyncio.sleep(0.1)
        process.kill()
        with pytest.raises(RequestError, match="has ended") as caught:
            await task
        assert caught.value.status == 500
        assert (await writer.prompt(chat(40))).startswith("<bos>")

    with_writer(work)


def test_after_a_very_large_chat_its_memory_is_given_back():
    async def work(writer):
        await writer.prompt(chat(1, "x" * (KEPT_BYTES + 1)))
        assert not children_of()

    with_writer(work)


def test_at_most_two_processes_write():
    async def work(writer):
        tasks = [asyncio.ensure_future(writer.prompt(chat(300))) for _ in range(5)]
        most = 0
        while not all(task.done() for task in tasks):
            most = max(most, len(children_of()))
            await asyncio.sleep(0.01)
        assert len({task.result() for task in tasks}) == 1
        return most

    assert with_writer(work) == chat_worker.PROCESSES


def test_the_process_ends_with_the_server():
    """Its input's end is the sign, whatever way the server went."""
    parent = psutil.Popen(
        [
            sys.executable, "-c",
            "import asyncio, os, test_chat_worker as t\n"
            "async def main():\n"
            "    writer = t.ChatWriter(t.TEMPLATE, {'shout': '!'})\n"
            "    await writer.prompt(t.chat(40))\n"
            "    print(writer._idle[0]._process.pid, flush=True)\n"
            "    os._exit(1)\n"
            "asyncio.run(main())\n",
        ],
        cwd=__file__.rpartition("/")[0],
        stdout=-1,
    )  # fmt: skip
    pid = int(parent.stdout.readline())
    parent.wait()
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
