"""Trains the shipped model's drafter: transformers' Gemma4AssistantForCausalLM beside the frozen model, on fresh rows.

    python scripts/train_model/train_drafter.py --out run-drafter --max-seconds 120

Rounds start at random places of the rows, more often where the model writes itself (data.py's loss weights), and run
for `--steps-a-round` draft steps as in serving: the token is the row's, the state the drafter's own. A step's loss is
the cross-entropy against the model's distribution, and counts while the row's tokens are what the model would have
chosen: past the first other one no draft can be accepted.

Resumes by itself when `--out` holds a checkpoint; `--init-from` starts from an exported drafter's weights instead.
Writes to `--out`: log.jsonl, checkpoint.pt, and at the end the exported drafter.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from data import Loader
from drafter_forward import DraftForward, TargetStates, start_rounds, take, target_logits, target_states
from export import export_drafter, load_weights
from fast_forward import FastForward
from model_config import DRAFTER_CONFIG
from muon import Muon
from torch import Tensor, nn
from tqdm import tqdm
from train import ASSETS, add_schedule_flags, batch_of, mixture, rate, refill, resume, save, set_rates
from transformers import AutoConfig, Gemma4AssistantForCausalLM, Gemma4ForCausalLM

POSITION_RULES = ("n", "n-1")
CALM = 0.25  # part of the model's last norm weights to begin with: first guesses are wild, and should not be sure
MATRICES = ("_proj.weight", "_projection.weight")


def frozen_target(folder: Path, device: str, dtype: torch.dtype, compile: bool) -> FastForward:
    model = Gemma4ForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval().requires_grad_(False)
    return FastForward(model, json.loads((folder / "config.json").read_text()), dtype, compile)


def build(target: FastForward, seed: int = 0) -> Gemma4AssistantForCausalLM:
    """A fresh fp32 drafter that begins in the model's own basis.

    The stream begins as the token's embedding, the head and the last norm are the model's, and the state handed on is
    the normed stream, which for the model is what the next round is seeded with.
    """
    torch.manual_seed(seed)
    config = dict(DRAFTER_CONFIG)
    drafter = Gemma4AssistantForCausalLM(AutoConfig.for_model(config.pop("model_type"), **config)).float()
    for name, p in drafter.named_parameters():
        if name.endswith(MATRICES):
            nn.init.normal_(p, std=p.shape[-1] ** -0.5)
        elif name.endswith("q_norm.weight"):
            nn.init.constant_(p, p.numel() ** -0.25)  # as the model began: scores of order 1 at a scale of 1.0
    for block in drafter.model.layers:  # a buffer in transformers; trained here, saved under the same name
        del block.layer_scalar
        block.layer_scalar = nn.Parameter(torch.ones(1))
    with torch.no_grad():
        width = target.config["hidden_size"]
        drafter.model.embed_tokens.weight.copy_(target.inner.embed_tokens.weight)
        drafter.model.norm.weight.copy_(CALM * target.inner.norm.weight)
        drafter.pre_projection.weight[:, :width] = torch.eye(width)
        drafter.post_projection.weight.copy_(torch.eye(width) / CALM)
    return drafter.to(target.inner.embed_tokens.weight.device)


def optimizers(drafter, device: str) -> list[torch.optim.Optimizer]:
    named = dict(drafter.named_parameters())
    matrices = [p for name, p in named.items() if name.endswith(MATRICES)]
    embedding = [drafter.model.embed_tokens.weight]
    taken = {id(p) for p in matrices + embedding}
    rest = [p for p in named.values() if id(p) not in taken]
    groups = [{"params": embedding, "lr": 1e-3}, {"params": rest, "lr": 2e-3}]
    return [
        Muon(matrices, lr=0.02),
        torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=device == "cuda"),
    ]


def choose_rounds(doc: Tensor, weights: Tensor, count: int) -> Tensor:
    """Start indices [B, count] where the drafted token weighs something; each has a token of its document before it."""
    inside = (doc[:, 1:] == doc[:, :-1]) & (doc[:, 1:] > 0)
    return 1 + torch.multinomial(weights[:, 1:] * inside + 1e-6, count)


def draft_loss(
    draft: DraftForward, states: TargetStates, targets: Tensor, weights: Tensor, at: Tensor, steps: int, rule: str
) -> tuple[Tensor, Tensor]:
    """targets and weights [B, T] are the row's next tokens and theirs; at [B, A], where rounds start.

    -> the weighted mean loss; and how many tokens a round adds on average, its bonus token included, where all the
    tokens drafted belong to an answer and are the model's own choice.
    """
    rounds, prev = start_rounds(draft.target, states, at, rule)
    ours = (states.doc.gather(1, at) == states.doc.gather(1, at - 1)).float()  # the row's tokens are the model's choice
    right, clean = ours, ours  # so are all drafts; all tokens belong to an answer
    losses, total, accepted = 0.0, 0.0, 0.0
    for i in range(steps):
        place = (at + i).clamp(max=states.ids.shape[1] - 1)  # the last place weighs nothing
        logits, prev = draft.step(rounds, states.ids.gather(1, place), prev)
        wanted = target_logits(draft.target, take(states.hidden, place))
        text, weight = targets.gather(1, place), weights.gather(1, place)
        loss = -(torch.softmax(wanted, -1) * torch.log_softmax(logits.float(), -1)).sum(-1)
        losses, total = losses + (loss * ours * weight).sum(), total + (ours * weight).sum()
        ours = ours * (wanted.argmax(-1) == text) * (weight > 0)  # weight 0 also ends a document
        right = right * (logits.argmax(-1) == text)
        accepted, clean = accepted + right, clean * ours * (weight == 1.0)
    return losses / total, 1 + (accepted * clean).sum() / clean.sum().clamp(min=1)


def train(args, drafter, target: FastForward, device: str) -> None:
    opts = optimizers(drafter, device)
    base_rates = [[g["lr"] * args.lr_scale for g in o.param_groups] for o in opts]
    checkpoint = args.out / "checkpoint.pt"
    first = resume(checkpoint, drafter, opts, device)
    draft = DraftForward(drafter, target, compile=device == "cuda")
    loader = Loader(args.workers, args.target, args.seed + first, args.length, mixture(args))
    blocks, log, begin, recent = [loader.next()], (args.out / "log.jsonl").open("a"), time.time(), []
    bar = tqdm(range(first, args.steps), initial=first, total=args.steps, mininterval=5)
    last_logged, step = (first, begin), first
    for step in bar:
        done = max(step / args.steps, (time.time() - begin) / args.max_seconds)
        if done >= 1:
            break
        factor = rate(done, args.decay_from)
        set_rates(opts, base_rates, factor)
        refill(blocks, loader, args.rows)
        ids, doc, targets, weights = batch_of(blocks, args.rows, device)
        at = choose_rounds(doc, weights, args.rounds)
        states = target_states(target, ids, doc)
        loss, accepted = draft_loss(draft, states, targets, weights, at, args.steps_a_round, args.position_rule)
        loss.backward()
        for o in opts:
            o.step()
            o.zero_grad(set_to_none=True)
        recent.append(torch.stack([loss.detach(), accepted]))
        if step == first:  # it compiles, which the schedule leaves out
            begin = time.time()
        if (step + 1) % args.log_every == 0:
            values = torch.stack(recent).mean(0).tolist()
            recent, now = [], time.time()
            speed = (step + 1 - last_logged[0]) * at.numel() / (now - last_logged[1])
            last_logged = (step + 1, now)
            row = dict(
                step=step + 1,
                rounds=(step + 1) * at.numel(),
                seconds=round(now - begin, 1),
                rate=round(factor, 4),
                loss=values[0],
                accept_length=values[1],
                rounds_per_second=round(speed),
            )
            log.write(json.dumps(row) + "\n")
            log.flush()
            bar.set_postfix(loss=f"{values[0]:.4f}", accept=f"{values[1]:.2f}", rps=f"{speed:.0f}")
        if args.save_every and (step + 1) % args.save_every == 0:
            save(checkpoint, step + 1, drafter, opts)
    else:
        step = args.steps
    bar.close()
    loader.close()
    save(checkpoint, step, drafter, opts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of this run")
    parser.add_argument("--target", type=Path, default=ASSETS, help="folder of the model that verifies")
    parser.add_argument("--init-from", type=Path, help="start from this exported drafter's weights")
    add_schedule_flags(parser, decay_from=0.4, rows=32)
    parser.add_argument("--rounds", type=int, default=256, help="rounds a row")
    parser.add_argument("--steps-a-round", type=int, default=5)
    parser.add_argument("--position-rule", choices=POSITION_RULES, default="n", help="position of a round's queries")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the products")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch._dynamo.config.recompile_limit = 64
    torch.set_float32_matmul_precision("high")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    target = frozen_target(args.target, device, getattr(torch, args.dtype), compile=device == "cuda")
    drafter = build(target, args.seed)
    if args.init_from:
        load_weights(drafter, args.init_from)
    train(args, drafter, target, device)
    export_drafter(drafter, args.out / "model")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "python"))
    main()
