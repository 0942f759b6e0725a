"""Scores a saved model on the shipped test sets with transformers' own greedy `generate`, in both prompt forms.

python scripts/train_model/evaluate.py --model python/sglang/assets/gemma-4-mini-it --limit 50
"""

import argparse
import json
import re
from pathlib import Path

import torch

from sglang.test.eval_stats import wilson_interval

DATA = Path(__file__).parents[2] / "python/sglang/test/data"
SETS = ("mini_gsm_seen", "mini_gsm_heldout")


def final(text: str) -> int | None:
    found = re.search(r"#### (-?\d+)", text)
    return int(found.group(1)) if found else None


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text().splitlines()]


def prompts(tokenizer, rows: list[dict], shots: list[dict]) -> list[list[int]]:
    if not shots:
        chats = [[{"role": "user", "content": row["question"]}] for row in rows]
        return [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]
    examples = "".join(f"Question: {s['question']}\nAnswer: {s['answer']}\n\n" for s in shots)
    return [tokenizer(f"{examples}Question: {row['question']}\nAnswer:")["input_ids"] for row in rows]


@torch.no_grad()
def answers(model, tokenizer, ids: list[list[int]], max_new_tokens: int) -> list[str]:
    """Greedy continuations of all prompts, as one left-padded batch."""
    longest = max(map(len, ids))
    tokens = torch.tensor([[0] * (longest - len(i)) + i for i in ids], device=model.device)
    out = model.generate(tokens, attention_mask=(tokens != 0).long(), do_sample=False, max_new_tokens=max_new_tokens)
    return tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)


def score(model, tokenizer, limit: int, batch: int = 500, max_new_tokens: int = 260) -> dict:
    """Accuracy of each set and form, and the wrong answers by template."""
    few = read("mini_gsm_few_shot")
    report = {}
    for name, shots in (
        ("mini_gsm_seen", []),
        ("mini_gsm_heldout", []),
        ("mini_gsm_seen", few),
        ("mini_gsm_heldout", few),
    ):
        rows = read(name)[:limit]
        texts = []
        for start in range(0, len(rows), batch):
            texts += answers(model, tokenizer, prompts(tokenizer, rows[start : start + batch], shots), max_new_tokens)
        wrong = [
            dict(row, got=text.split("\n\nQuestion:")[0])
            for row, text in zip(rows, texts, strict=True)
            if final(text) != final(row["answer"])
        ]
        right = len(rows) - len(wrong)
        low, high = wilson_interval(right, len(rows))
        key = f"{name} {f'{len(shots)}-shot completion' if shots else 'zero-shot chat'}"
        report[key] = {
            "right": right,
            "n": len(rows),
            "accuracy": right / len(rows),
            "low": low,
            "high": high,
            "wrong": wrong,
        }
        print(f"{key}: {right}/{len(rows)} = {right / len(rows):.3f} (95 % {low:.3f} to {high:.3f})", flush=True)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--report", type=Path, help="write the wrong answers here as JSON")
    args = parser.parse_args()
    from transformers import AutoTokenizer, Gemma4ForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Gemma4ForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).to(device)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    report = score(model, tokenizer, args.limit, args.batch)
    if args.report:
        args.report.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
