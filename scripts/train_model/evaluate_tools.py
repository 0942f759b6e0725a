"""Scores a model on tools, thoughts and JSON: a folder with transformers' greedy `generate`, or what a server serves.

    python scripts/train_model/evaluate_tools.py --model python/sglang/assets/gemma-4-mini-it --limit 50
    python scripts/train_model/evaluate_tools.py --base-url http://127.0.0.1:30000

A call is right when name and arguments are those wanted; the tool then returns what the test set says. A loop is
solved when all its calls are right and the answer holds what the last ones returned. JSON is right when the object is
equal to the one wanted; with `--grammar` (needs xgrammar) each item's own schema holds the output as well. Every share
comes with its n and Wilson's 95 % interval.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from evaluate import read
from replies import Ask, Generated, Output, Served
from tool_talks.talk import Call, call_text

from sglang.test.eval_stats import wilson_interval

Replies = Callable[[list[Ask]], list[Output]]


def is_valid(call: Call, tools: list[dict]) -> bool:
    """A declared tool, its own parameters, all the required ones."""
    for tool in tools:
        if tool["name"] == call[0]:
            parameters = tool["parameters"]
            return set(parameters["required"]) <= set(call[1]) <= set(parameters["properties"])
    return False


@dataclass
class Play:
    """One item while it is played."""

    row: dict
    messages: list[dict] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    valid: bool = True  # all calls so far
    right: int = 0  # steps right so far
    over: bool = False

    def take(self, output: Output) -> None:
        self.outputs.append(output)
        steps = self.row["steps"]
        self.valid = self.valid and all(is_valid(call, self.row["tools"]) for call in output.calls)
        wanted = [(c["name"], c["arguments"]) for c in steps[self.right]["calls"]] if self.right < len(steps) else []
        if not wanted or list(map(call_text, wanted)) != list(map(call_text, output.calls)):
            self.valid = self.valid and bool(output.calls or not wanted)
            self.over = True
            return
        results = steps[self.right]["results"]
        calls = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in output.calls]
        self.messages.append(
            {"role": "assistant", "content": "", "tool_calls": calls, "reasoning_content": output.thought}
        )
        self.messages += [
            {"role": "tool", "name": call[0], "content": text} for call, text in zip(wanted, results, strict=True)
        ]
        self.right += 1

    @property
    def calls_right(self) -> bool:
        last = self.outputs[-1]
        return self.right == len(self.row["steps"]) and not last.calls

    @property
    def solved(self) -> bool:
        return self.calls_right and all(text in self.outputs[-1].content for text in self.row["says"])

    @property
    def thought_rightly(self) -> bool:
        return all((output.thought is not None) == self.row["thinking"] for output in self.outputs)


def play(replies: Replies, rows: list[dict]) -> list[Play]:
    plays = [Play(row, [{"role": "user", "content": row["question"]}]) for row in rows]
    while open_plays := [p for p in plays if not p.over]:
        outputs = replies([Ask(p.messages, p.row["tools"], p.row["thinking"]) for p in open_plays])
        for p, output in zip(open_plays, outputs, strict=True):
            p.take(output)
    return plays


def fits(value, schema: dict) -> bool:
    """Whether the value is an object with the schema's keys and types."""
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list}
    if not isinstance(value, dict) or set(value) != set(schema["properties"]):
        return False
    for key, own in schema["properties"].items():
        if not isinstance(value[key], kinds[own["type"]]) or (
            own["type"] != "boolean" and isinstance(value[key], bool)
        ):
            return False
        if own["type"] == "array" and not all(isinstance(v, kinds[own["items"]["type"]]) for v in value[key]):
            return False
        if "enum" in own and value[key] not in own["enum"]:
            return False
    return True


def loaded(text: str):
    try:
        return json.loads(text)
    except ValueError:
        return None


def proportion(right: int, n: int) -> dict:
    low, high = wilson_interval(right, n) if n else (0.0, 1.0)
    return {"right": right, "n": n, "share": right / max(n, 1), "low": low, "high": high}


def score_talks(replies: Replies, limit: int) -> dict:
    """Calls and loops: every share, and what went wrong."""
    calls, loops = read("mini_tool_calls")[:limit], read("mini_tool_loops")[:limit]
    plays = play(replies, calls + loops)
    single, looped = plays[: len(calls)], plays[len(calls) :]
    called, without = [p for p in single if p.row["steps"]], [p for p in single if not p.row["steps"]]
    return {
        "calls: valid": proportion(sum(p.valid for p in called), len(called)),
        "calls: right name and arguments": proportion(sum(p.right == len(p.row["steps"]) for p in called), len(called)),
        "calls: result used in the answer": proportion(sum(p.solved for p in called), len(called)),
        "no call where none is right": proportion(sum(p.calls_right for p in without), len(without)),
        "loops: both calls right": proportion(sum(p.calls_right for p in looped), len(looped)),
        "loops: solved": proportion(sum(p.solved for p in looped), len(looped)),
        "thoughts exactly where asked for": proportion(sum(p.thought_rightly for p in plays), len(plays)),
        "wrong talks": [
            {
                "question": p.row["question"],
                "steps": p.row["steps"],
                "says": p.row["says"],
                "got": [vars(o) for o in p.outputs],
            }
            for p in plays
            if not p.solved
        ],
    }


def score_forms(replies: Replies, limit: int, grammar: bool) -> dict:
    """JSON that is asked for: every share, and what went wrong."""
    forms = read("mini_forms")[:limit]
    asks = [
        Ask([{"role": "user", "content": r["question"]}], None, r["thinking"], r["schema"] if grammar else None)
        for r in forms
    ]
    answers = [(row, output, loaded(output.content)) for row, output in zip(forms, replies(asks), strict=True)]
    n = len(forms)
    return {
        "JSON: fits the schema": proportion(sum(fits(value, row["schema"]) for row, _, value in answers), n),
        "JSON: right": proportion(sum(value == row["value"] for row, _, value in answers), n),
        "JSON: thoughts exactly where asked for": proportion(
            sum((output.thought is not None) == row["thinking"] for row, output, _ in answers), n
        ),
        "wrong forms": [
            {"question": row["question"], "value": row["value"], "got": vars(output)}
            for row, output, value in answers
            if value != row["value"]
        ],
    }


def score_tools(replies: Replies, limit: int, grammar: bool = False) -> dict:
    """Every share with its n and interval, shown too, and what went wrong."""
    report = score_talks(replies, limit) | score_forms(replies, limit, grammar)
    for name, p in report.items():
        if isinstance(p, dict):
            print(
                f"{name}: {p['right']}/{p['n']} = {p['share']:.3f} (95 % {p['low']:.3f} to {p['high']:.3f})", flush=True
            )
    return report


def generated(folder: Path, batch: int) -> Generated:
    import torch
    from transformers import AutoTokenizer, Gemma4ForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Gemma4ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    return Generated(model, AutoTokenizer.from_pretrained(folder), batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="folder, for transformers")
    source.add_argument("--base-url", help="of a server that runs")
    parser.add_argument("--limit", type=int, default=500, help="items of each set")
    parser.add_argument("--batch", type=int, default=500, help="items at once in transformers")
    parser.add_argument("--grammar", action="store_true", help="hold JSON to its schema while it is written")
    parser.add_argument("--report", type=Path, help="write the shares and the wrong items here as JSON")
    args = parser.parse_args()
    replies = generated(args.model, args.batch) if args.model else Served(args.base_url)
    report = score_tools(replies, args.limit, args.grammar)
    if args.report:
        args.report.write_text(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
