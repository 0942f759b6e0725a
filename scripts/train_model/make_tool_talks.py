"""Writes the test sets of tools and JSON: names, parameters and descriptions that training never sees.

    python scripts/train_model/make_tool_talks.py --split calls --count 200 --seed 1 --out mini_tool_calls.jsonl

`calls` and `loops`: {question, tools, thinking, steps: [{calls: [{name, arguments}], results: [text]}], says: [text]},
where an answer must hold all of `says`; `steps` is empty where no call is right. `forms`: {question, thinking, schema,
value}.
"""

import argparse
import json
from itertools import islice
from pathlib import Path

from tool_talks import test_calls, test_forms, test_loops


def talk_row(talk, jobs) -> dict:
    (turn,) = talk.turns
    steps = [
        {"calls": [{"name": n, "arguments": a} for n, a in step.calls], "results": step.results} for step in turn.steps
    ]
    # The last call's outcome; all of them where they were made at once.
    last = jobs[-len(turn.steps[-1].calls) :] if turn.steps else []
    return {
        "question": turn.question,
        "tools": [tool.declaration()["function"] for tool in talk.tools],
        "thinking": talk.thinking,
        "steps": steps,
        "says": [text for job in last for text in job.shown],
    }


def form_row(talk, form) -> dict:
    return {"question": form.question, "thinking": talk.thinking, "schema": form.schema, "value": form.value}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=("calls", "loops", "forms"), required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    stream = {"calls": test_calls, "loops": test_loops, "forms": test_forms}[args.split](args.seed)
    row = form_row if args.split == "forms" else talk_row
    with args.out.open("w", encoding="utf-8") as out:
        for item in islice(stream, args.count):
            out.write(json.dumps(row(*item), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
