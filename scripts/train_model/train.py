"""Trains the shipped model: transformers' Gemma4ForCausalLM on word problems that are made while it trains.

    python scripts/train_model/train.py --out run --max-seconds 540

Resumes by itself when `--out` holds a checkpoint; `--init-from` starts from an exported model's weights instead.
Writes to `--out`: log.jsonl, checkpoint.pt, and at the end the exported model and scores.json.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from data import Loader, Mixture
from evaluate import score
from evaluate_tools import score_tools
from export import export, load_weights
from fast_forward import FastForward
from model_config import CONFIG
from muon import Muon
from replies import Generated
from torch import nn
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer, Gemma4ForCausalLM

ASSETS = Path(__file__).parents[2] / "python/sglang/assets/gemma-4-mini-it"
BALANCE_WEIGHT = 0.01
MATRICES = ("_proj.weight", "experts.gate_up_proj", "experts.down_proj")


def build(device: str, seed: int = 0) -> Gemma4ForCausalLM:
    """A fresh fp32 model. Matrices keep the scale of what flows through them; q and k begin with scores of order 1."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**CONFIG)
    model = Gemma4ForCausalLM(config).float()
    for name, p in model.named_parameters():
        if name.endswith(MATRICES):
            nn.init.normal_(p, std=p.shape[-1] ** -0.5)
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            nn.init.constant_(p, p.numel() ** -0.25)  # the attention scale is 1.0, so the norms carry head_dim ** -0.5
        elif name.endswith("embed_tokens.weight"):
            nn.init.normal_(p, std=0.04)
        elif name.endswith("router.proj.weight"):
            nn.init.normal_(p, std=0.02)
    for block in model.model.layers:  # a buffer in transformers; trained here, saved under the same name
        scalar = block.layer_scalar.detach().clone()
        del block.layer_scalar
        block.layer_scalar = nn.Parameter(scalar)
    return model.to(device)


def optimizers(model, device: str) -> list[torch.optim.Optimizer]:
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if name.endswith(MATRICES) and "router" not in name]
    embedding = [p for name, p in named.items() if name.endswith("embed_tokens.weight")]
    taken = {id(p) for p in matrices + embedding}
    rest = [p for p in named.values() if id(p) not in taken]
    groups = [{"params": embedding, "lr": 3e-3}, {"params": rest, "lr": 2e-3}]
    return [
        Muon(matrices, lr=0.02),
        torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=device == "cuda"),
    ]


def rate(done: float, decay_from: float) -> float:
    """Warm up, stay, then fall in a straight line to zero. `done` runs from 0 to 1."""
    return min(1.0, done / 0.01, max(0.0, (1 - done) / (1 - decay_from)))


def batch_of(blocks: list, rows: int, device: str):
    """The next `rows` rows as ids, documents, targets and loss weights; `blocks` keeps what is left over."""
    taken, blocks[0] = blocks[0][:rows], blocks[0][rows:]
    block = torch.from_numpy(taken)
    block = (block.pin_memory() if device == "cuda" else block).to(device, non_blocking=True)
    ids, percent, doc = block[:, 0].long(), block[:, 1], block[:, 2]
    same = doc[:, 1:] == doc[:, :-1]
    weights = torch.where(same, percent[:, 1:].float() / 100, 0.0)
    # Constant shapes: the last place of a row has no target and weighs nothing.
    targets = torch.cat([ids[:, 1:], ids[:, :1] * 0], 1)
    return ids, doc, targets, torch.cat([weights, weights[:, :1] * 0], 1)


def refill(blocks: list, loader: Loader, rows: int) -> None:
    """Appends made rows until `batch_of` can take `rows` of them."""
    while len(blocks[0]) < rows:
        blocks[0] = np.concatenate([blocks[0], loader.next()])


def save(path: Path, step: int, model, opts) -> None:
    state = {"step": step, "model": model.state_dict(), "optimizers": [o.state_dict() for o in opts]}
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def resume(path: Path, model, opts, device: str) -> int:
    """The step to go on from, with model and optimizers as they were; 0 without a checkpoint."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device)
    model.load_state_dict(state["model"])
    for o, s in zip(opts, state["optimizers"], strict=True):
        o.load_state_dict(s)
    print(f"resumed at step {state['step']}")
    return state["step"]


def set_rates(opts, base_rates: list[list[float]], factor: float) -> None:
    """The learning rate of every parameter group of every optimizer."""
    for o, rates in zip(opts, base_rates, strict=True):
        for group, lr in zip(o.param_groups, rates, strict=True):
            group["lr"] = lr * factor


def add_schedule_flags(parser: argparse.ArgumentParser, decay_from: float, rows: int) -> None:
    """What the trainings of model and drafter share: length, rates, rows, data and log."""
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument(
        "--max-seconds", type=float, default=3600, help="the schedule ends here if the steps do not end it before"
    )
    parser.add_argument(
        "--decay-from", type=float, default=decay_from, help="part of the run after which the learning rate falls"
    )
    parser.add_argument("--lr-scale", type=float, default=1.0)
    parser.add_argument("--rows", type=int, default=rows, help="rows a step")
    parser.add_argument("--length", type=int, default=896, help="tokens a row")
    parser.add_argument("--talk-share", type=float, default=0.5, help="share of documents with tools or JSON")
    parser.add_argument("--chat-share", type=float, default=0.8, help="share of the others in chat form")
    parser.add_argument("--shots", type=int, default=6, help="most worked examples before a completion")
    parser.add_argument("--gsm-symbolic", type=Path, help="JSONL of gsm_symbolic problems to mix in")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--save-every", type=int, default=0)


def mixture(args) -> Mixture:
    return Mixture(args.talk_share, args.chat_share, args.shots, args.gsm_symbolic)


def train(args, model, device: str) -> None:
    opts = optimizers(model, device)
    base_rates = [[g["lr"] * args.lr_scale for g in o.param_groups] for o in opts]
    checkpoint = args.out / "checkpoint.pt"
    first = resume(checkpoint, model, opts, device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    fast = FastForward(model, CONFIG, dtype, compile=device == "cuda")
    loader = Loader(args.workers, args.tokenizer, args.seed + first, args.length, mixture(args))
    blocks, log, begin, recent = [loader.next()], (args.out / "log.jsonl").open("a"), time.time(), []
    bar = tqdm(range(first, args.steps), initial=first, total=args.steps, mininterval=5)
    last_logged = (first, begin)
    for step in bar:
        elapsed = time.time() - begin
        done = max(step / args.steps, elapsed / args.max_seconds)
        if done >= 1:
            break
        factor = rate(done, args.decay_from)
        set_rates(opts, base_rates, factor)
        refill(blocks, loader, args.rows)
        loss, answer_loss, balance = fast.loss(*batch_of(blocks, args.rows, device))
        (loss + BALANCE_WEIGHT * balance).backward()
        for o in opts:
            o.step()
            o.zero_grad(set_to_none=True)
        recent.append(torch.stack([loss.detach(), answer_loss.detach(), balance.detach()]))
        if (step + 1) % args.log_every == 0:
            values = torch.stack(recent).mean(0).tolist()
            recent, now = [], time.time()
            speed = (step + 1 - last_logged[0]) * args.rows * args.length / (now - last_logged[1])
            last_logged = (step + 1, now)
            row = dict(
                step=step + 1,
                tokens=(step + 1) * args.rows * args.length,
                seconds=round(now - begin, 1),
                rate=round(factor, 4),
                loss=values[0],
                answer_loss=values[1],
                balance=values[2],
                tokens_per_second=round(speed),
            )
            log.write(json.dumps(row) + "\n")
            log.flush()
            bar.set_postfix(loss=f"{values[1]:.4f}", balance=f"{values[2]:.2f}", tps=f"{speed / 1e6:.2f}M")
        if args.save_every and (step + 1) % args.save_every == 0:
            save(checkpoint, step + 1, model, opts)
    bar.close()
    loader.close()
    save(checkpoint, step + 1, model, opts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of this run")
    parser.add_argument("--tokenizer", type=Path, default=ASSETS, help="folder made by make_tokenizer.py")
    parser.add_argument("--init-from", type=Path, help="start from this exported model's weights")
    add_schedule_flags(parser, decay_from=0.5, rows=144)
    parser.add_argument("--eval-limit", type=int, default=500)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch._dynamo.config.recompile_limit = 64
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(device, args.seed)
    if args.init_from:
        load_weights(model, args.init_from)
    train(args, model, device)
    export(model, args.out / "model")
    served = Gemma4ForCausalLM.from_pretrained(args.out / "model", dtype=torch.bfloat16).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    report = score_tools(Generated(served, tokenizer), args.eval_limit) | score(served, tokenizer, args.eval_limit)
    (args.out / "scores.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "python"))
    main()
