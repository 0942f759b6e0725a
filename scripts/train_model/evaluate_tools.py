"""Scores a saved model on tools, thoughts and JSON with transformers' own greedy `generate`.

    python scripts/train_model/evaluate_tools.py --model python/sglang/assets/gemma-4-mini-it --limit 50

A call is right when name and arguments are those wanted; the tool then returns what the test set says. A loop is
solved when all its calls are right and the answer holds what the last ones returned. JSON is right when the object is
equal to the one wanted; with `--grammar` (needs xgrammar) each item's own schema holds the output as well.
"""

import argparse
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from evaluate import interval, read
from tool_talks.talk import QUOTE, Call, call_text

STOPS = {1, 106, 50}
MAX_NEW_TOKENS = 200
THOUGHT = re.compile(r"\A(?:<\|channel>thought\n)?(.*?)\n?<channel\|>", re.DOTALL)
CALLS = re.compile(r"(?:<\|tool_call>call:[^{}]+\{.*?\}<tool_call\|>)+", re.DOTALL)
CALL = re.compile(r"<\|tool_call>call:([^{}]+)(\{.*?\})<tool_call\|>", re.DOTALL)


@dataclass(frozen=True)
class Output:
    """One reply in parts."""

    thought: str | None
    calls: list[Call]
    content: str


def value_of(text: str, at: int) -> tuple[object, int]:
    """The value that begins at `at`, in the strict grammar of the chat template, and where it ends."""
    if text.startswith(QUOTE, at):
        end = text.index(QUOTE, at + len(QUOTE))
        return text[at + len(QUOTE) : end], end + len(QUOTE)
    if text[at] == "{":
        out, at = {}, at + 1
        while text[at] != "}":
            key, at = text[at : (colon := text.index(":", at))], colon + 1
            out[key], at = value_of(text, at)
            at += text[at] == ","
        return out, at + 1
    if text[at] == "[":
        items, at = [], at + 1
        while text[at] != "]":
            item, at = value_of(text, at)
            items.append(item)
            at += text[at] == ","
        return items, at + 1
    bare = re.compile(r"[^,}\]]+").match(text, at)
    return json.loads(bare.group()), bare.end()


def parse(text: str, open_thought: bool) -> Output:
    """Text with its marks, up to the token that ended it. A call that breaks the grammar is none."""
    thought = THOUGHT.match(text) if open_thought or text.startswith("<|channel>") else None
    rest = text[thought.end() :] if thought else text
    calls = []
    if CALLS.fullmatch(rest):
        for name, arguments in CALL.findall(rest):
            try:
                value, end = value_of(arguments, 0)
            except (ValueError, IndexError, AttributeError):
                return Output(thought and thought.group(1), [], rest)
            if end == len(arguments):
                calls.append((name, value))
    return Output(thought and thought.group(1), calls, "" if calls else rest)


def is_valid(call: Call, tools: list[dict]) -> bool:
    """A declared tool, its own parameters, all the required ones."""
    for tool in tools:
        if tool["name"] == call[0]:
            parameters = tool["parameters"]
            return set(parameters["required"]) <= set(call[1]) <= set(parameters["properties"])
    return False


@torch.no_grad()
def replies(model, tokenizer, prompts: list[list[int]], batch: int, processors=None) -> list[str]:
    """Greedy replies with their marks, without the token that ended them."""
    out = []
    for start in range(0, len(prompts), batch):
        ids = prompts[start : start + batch]
        longest = max(map(len, ids))
        tokens = torch.tensor([[0] * (longest - len(i)) + i for i in ids], device=model.device)
        extra = {"logits_processor": processors(start, longest)} if processors else {}
        made = model.generate(
            tokens, attention_mask=(tokens != 0).long(), do_sample=False, max_new_tokens=MAX_NEW_TOKENS, **extra
        )
        for row in made[:, longest:].tolist():
            end = next((i for i, token in enumerate(row) if token in STOPS), len(row))
            out.append(tokenizer.decode(row[:end], skip_special_tokens=False))
    return out


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


def play(model, tokenizer, rows: list[dict], batch: int) -> list[Play]:
    plays = [Play(row, [{"role": "user", "content": row["question"]}]) for row in rows]
    for _ in range(1 + max(len(row["steps"]) for row in rows)):
        open_plays = [p for p in plays if not p.over]
        prompts = [
            tokenizer.apply_chat_template(
                p.messages, tools=p.row["tools"], add_generation_prompt=True, enable_thinking=p.row["thinking"]
            )["input_ids"]
            for p in open_plays
        ]
        for p, text in zip(open_plays, replies(model, tokenizer, prompts, batch), strict=True):
            p.take(parse(text, open_thought=p.row["thinking"] and p.right > 0))
    return plays


def grammar_processors(tokenizer, model, rows: list[dict]):
    """Logits processors that hold each row of a batch to its schema, behind its thought. Needs xgrammar."""
    import xgrammar

    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=model.config.vocab_size)
    compiler = xgrammar.GrammarCompiler(info)
    channel_end = tokenizer.convert_tokens_to_ids("<channel|>")

    def processors(start: int, prompt_length: int):
        some = rows[start:]
        matchers = [
            xgrammar.GrammarMatcher(compiler.compile_json_schema(json.dumps(r["schema"]), any_whitespace=False))
            for r in some
        ]
        begun = [not r["thinking"] for r in some]
        bitmask = xgrammar.allocate_token_bitmask(1, model.config.vocab_size)

        def hold(ids, scores):
            for i, row in enumerate(ids.tolist()):
                fresh = len(row) > prompt_length
                if begun[i] and fresh and not matchers[i].is_terminated():
                    assert row[-1] == channel_end or matchers[i].accept_token(row[-1]), "the mask let a token through"
                begun[i] = begun[i] or (fresh and row[-1] == channel_end)
                if begun[i] and not matchers[i].is_terminated():
                    matchers[i].fill_next_token_bitmask(bitmask)
                    xgrammar.apply_token_bitmask_inplace(scores[i : i + 1], bitmask)
            return scores

        return [hold]

    return processors


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
    low, high = interval(right, n) if n else (0.0, 1.0)
    return {"right": right, "n": n, "share": right / max(n, 1), "low": low, "high": high}


def score_tools(model, tokenizer, limit: int, batch: int = 500, grammar: bool = False) -> dict:
    """Every share with its n and interval, and what went wrong."""
    calls, loops = read("mini_tool_calls")[:limit], read("mini_tool_loops")[:limit]
    plays = play(model, tokenizer, calls + loops, batch)
    single, looped = plays[: len(calls)], plays[len(calls) :]
    called, without = [p for p in single if p.row["steps"]], [p for p in single if not p.row["steps"]]
    forms = read("mini_forms")[:limit]
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": r["question"]}], add_generation_prompt=True, enable_thinking=r["thinking"]
        )["input_ids"]
        for r in forms
    ]
    processors = grammar_processors(tokenizer, model, forms) if grammar else None
    outputs = [parse(text, False) for text in replies(model, tokenizer, prompts, batch, processors)]
    filled = [loaded(output.content) for output in outputs]
    report = {
        "calls: valid": proportion(sum(p.valid for p in called), len(called)),
        "calls: right name and arguments": proportion(sum(p.right == len(p.row["steps"]) for p in called), len(called)),
        "calls: result used in the answer": proportion(sum(p.solved for p in called), len(called)),
        "no call where none is right": proportion(sum(p.calls_right for p in without), len(without)),
        "loops: both calls right": proportion(sum(p.calls_right for p in looped), len(looped)),
        "loops: solved": proportion(sum(p.solved for p in looped), len(looped)),
        "thoughts exactly where asked for": proportion(sum(p.thought_rightly for p in plays), len(plays)),
        "JSON: fits the schema": proportion(
            sum(fits(v, r["schema"]) for v, r in zip(filled, forms, strict=True)), len(forms)
        ),
        "JSON: right": proportion(sum(v == r["value"] for v, r in zip(filled, forms, strict=True)), len(forms)),
        "JSON: thoughts exactly where asked for": proportion(
            sum((o.thought is not None) == r["thinking"] for o, r in zip(outputs, forms, strict=True)), len(forms)
        ),
    }
    for name, p in report.items():
        print(f"{name}: {p['right']}/{p['n']} = {p['share']:.3f} (95 % {p['low']:.3f} to {p['high']:.3f})", flush=True)
    report["wrong"] = [
        {
            "question": p.row["question"],
            "steps": p.row["steps"],
            "says": p.row["says"],
            "got": [vars(o) for o in p.outputs],
        }
        for p in plays
        if not p.solved
    ] + [
        {"question": r["question"], "value": r["value"], "got": vars(o)}
        for r, o, v in zip(forms, outputs, filled, strict=True)
        if v != r["value"]
    ]
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=500, help="items of each set")
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--grammar", action="store_true", help="hold JSON to its schema while it is written")
    parser.add_argument("--report", type=Path, help="write the shares and the wrong items here as JSON")
    args = parser.parse_args()
    from transformers import AutoTokenizer, Gemma4ForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Gemma4ForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    report = score_tools(model, tokenizer, args.limit, args.batch, args.grammar)
    if args.report:
        args.report.write_text(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
