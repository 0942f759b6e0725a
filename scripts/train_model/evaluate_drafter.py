"""How many tokens a round of speculation adds, in plain torch: greedy, on the shipped word problems.

    python scripts/train_model/evaluate_drafter.py --limit 48

Greedy verification keeps the model's own output, whatever is drafted. So the model first continues each prompt alone;
then rounds are walked along that output: a round accepts drafts up to the first that differs and adds the model's own
token after them (the bonus); the next round starts there. Accept length = tokens after the first of an output (which
prefill gives) over rounds, the bonus included; an output's last round adds no more than what is left of it.
"""

import argparse
from pathlib import Path

import torch
from drafter_forward import DraftForward, start_rounds, target_states
from evaluate import prompts, read
from torch import Tensor
from train_drafter import ASSETS, POSITION_RULES, frozen_target
from transformers import AutoTokenizer, Gemma4AssistantForCausalLM

DRAFTER = ASSETS.with_name("gemma-4-mini-it-assistant")


@torch.no_grad()
def continuations(model, ids: list[list[int]], max_new_tokens: int, batch: int = 64) -> list[list[int]]:
    """The model's greedy tokens after each prompt, up to and with the first end token."""
    ends, outputs = set(model.generation_config.eos_token_id), []
    for start in range(0, len(ids), batch):
        part = ids[start : start + batch]
        longest = max(map(len, part))
        tokens = torch.tensor([[0] * (longest - len(i)) + i for i in part], device=model.device)
        mask = (tokens != 0).long()
        out = model.generate(tokens, attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens)
        for row in out[:, longest:].tolist():
            end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            outputs.append(row[:end])
    return outputs


def without_next_question(tokenizer, output: list[int]) -> list[int]:
    """A completion goes on with questions of its own; callers stop it there."""
    for end in range(1, len(output) + 1):
        if "\n\nQuestion:" in tokenizer.decode(output[:end]):
            return output[:end]
    return output


@torch.no_grad()
def accepted_drafts(
    draft: DraftForward, prompt: list[int], output: list[int], steps: int, position_rule: str, seed_state: str
) -> Tensor:
    """For each token of `output` as a round's bonus token: how many of the drafts after it are right, [len(output)]."""
    device = draft.drafter.device
    ids = torch.tensor([prompt + output], device=device)
    states = target_states(draft.target, ids, torch.ones_like(ids))
    at = torch.arange(len(prompt), ids.shape[1], device=device)[None]
    rounds, seed = start_rounds(draft.target, states, at, position_rule)
    seed = torch.zeros_like(seed) if seed_state == "zero" else seed
    drafts = draft.draft(rounds, ids.gather(1, at), seed, steps)[0]
    after = torch.cat([ids[0], ids.new_full((steps,), -1)])  # no draft past the end is right
    want = after[at[0, :, None] + 1 + torch.arange(steps, device=device)]
    return (drafts == want).long().cumprod(-1).sum(-1)


def walk(accepted: list[int]) -> list[tuple[int, int]]:
    """(drafts accepted, tokens added) of each round, from the first output token to the last."""
    rounds, at, last = [], 0, len(accepted) - 1
    while at < last:
        added = min(accepted[at] + 1, last - at)
        rounds.append((accepted[at], added))
        at += added
    return rounds


def score(draft: DraftForward, model, tokenizer, args) -> dict[str, list[tuple[int, int]]]:
    """All rounds of each set and form."""
    report = {}
    few = read("mini_gsm_few_shot")
    for name in args.sets:
        for form, shots in (("chat", []), ("5-shot completion", few)):
            ids = prompts(tokenizer, read(name)[: args.limit], shots)
            outputs = continuations(model, ids, args.max_new_tokens)
            if shots:
                outputs = [without_next_question(tokenizer, output) for output in outputs]
            report[f"{name} {form}"] = [
                r
                for prompt, output in zip(ids, outputs, strict=True)
                for r in walk(
                    accepted_drafts(draft, prompt, output, args.steps, args.position_rule, args.seed_state).tolist()
                )
            ]
    return report


def show(report: dict[str, list[tuple[int, int]]], steps: int) -> None:
    print(f"{'':40} rounds  accept length   drafts accepted at step 1 .. {steps}")
    for name, rounds in report.items():
        length = sum(added for _, added in rounds) / len(rounds)
        reached = [sum(accepted > i for accepted, _ in rounds) / len(rounds) for i in range(steps)]
        print(f"{name:40} {len(rounds):6}  {length:13.2f}   {'  '.join(f'{r:.3f}' for r in reached)}")


def load(target_folder: Path, drafter_folder: Path, device: str) -> DraftForward:
    target = frozen_target(target_folder, device, torch.float32, compile=False)
    drafter = Gemma4AssistantForCausalLM.from_pretrained(drafter_folder, dtype=torch.float32).to(device).eval()
    return DraftForward(drafter, target, compile=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, default=ASSETS)
    parser.add_argument("--drafter", type=Path, default=DRAFTER)
    parser.add_argument(
        "--sets", nargs="+", default=["mini_gsm_heldout"], choices=["mini_gsm_heldout", "mini_gsm_seen"]
    )
    parser.add_argument("--limit", type=int, default=500, help="problems of each set")
    parser.add_argument("--steps", type=int, default=5, help="drafts a round")
    parser.add_argument("--position-rule", choices=POSITION_RULES, default="n")
    parser.add_argument(
        "--seed-state", choices=("hidden", "zero"), default="hidden", help="zero: rounds without the model's state"
    )
    parser.add_argument("--max-new-tokens", type=int, default=260)
    args = parser.parse_args()
    draft = load(args.target, args.drafter, "cuda" if torch.cuda.is_available() else "cpu")
    # The frozen target is transformers' own module, so it also makes the outputs.
    report = score(draft, draft.target.model, AutoTokenizer.from_pretrained(args.target), args)
    show(report, args.steps)


if __name__ == "__main__":
    main()
