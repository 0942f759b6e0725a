"""Speed on a CPU beside transformers' own generate(): the same model, prompts and cores, taking turns A B A.

    python benchmark/gemma4/beside_transformers.py                                   # the shipped model
    python benchmark/gemma4/beside_transformers.py --model-path 0.35b                # random weights of a config here
    python benchmark/gemma4/beside_transformers.py --input-len 1000 --output-len 1   # the first token of a long prompt

Each is a process of its own; A, our Engine, runs before and after B in every round, and the ratio of a round is B's
time over the mean of A's two: above 1 ours is faster, and what else the machine does meets both. Prompts are random
ids, new ones in every round, and answers greedy and of one length. The last column is the share of answers with equal
tokens: 1 in float32; in bfloat16 near ties fall either way.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sglang.srt.utils.flag_types import at_least

CONFIGS = Path(__file__).resolve().parent / "configs"


class Reply(NamedTuple):
    seconds: float
    ids: list[list[int]]


class Turn(NamedTuple):
    """A round at one batch size: tokens a second of both, and how many times faster ours is."""

    ours: float
    theirs: float
    ratio: float
    equal: float


class Theirs:
    """transformers in a child, which serve_transformers() is the other side of: a line of JSON in, one out."""

    def __init__(self, folder: str, dtype: str):
        command = [sys.executable, __file__, "--serve-transformers", "--model-path", folder, "--dtype", dtype]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def _read(self) -> dict:
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"transformers' process ended with exit code {self._child.wait()}")
        return json.loads(line)

    def generate(self, prompts: list[list[int]], tokens: int) -> Reply:
        self._child.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
        self._child.stdin.flush()
        return Reply(**self._read())

    def __enter__(self) -> "Theirs":
        return self

    def __exit__(self, *_: object) -> None:
        self._child.stdin.close()
        self._child.wait()


class Ours:
    def __init__(self, folder: str, dtype: str):
        import sglang

        self._engine = sglang.Engine(
            model_path=folder, dtype=dtype, device="cpu", skip_tokenizer_init=True, disable_radix_cache=True
        )
        self.info = self._engine.get_server_info()

    def generate(self, prompts: list[list[int]], tokens: int) -> Reply:
        start = time.perf_counter()
        params = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
        replies = self._engine.generate(input_ids=prompts, sampling_params=params)
        return Reply(time.perf_counter() - start, [reply["output_ids"] for reply in replies])

    def __enter__(self) -> "Ours":
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.shutdown()


def serve_transformers(folder: str, dtype: str) -> None:
    """Answer lines of standard input until it ends."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None  # lengths are exact
    print(json.dumps({"threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        ids = torch.tensor(asked["prompts"])
        start = time.perf_counter()
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=asked["tokens"], pad_token_id=0
        )
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "ids": out[:, ids.shape[1] :].tolist()}), flush=True)


@contextmanager
def checkpoint(path: str | None, dtype: str) -> Iterator[str]:
    """The folder of a checkpoint: the shipped model's, `path`, or where `path` names a config in configs/, random
    weights of it, which are gone afterwards."""
    if path is None:
        from sglang.assets import shipped_model_path

        yield str(shipped_model_path())
    elif (CONFIGS / path / "config.json").is_file():
        import torch
        import transformers

        config = transformers.AutoConfig.from_pretrained(CONFIGS / path)
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)
            yield folder
    else:
        yield path


def one_turn(ours: Ours, theirs: Theirs, prompts: list[list[int]], tokens: int) -> Turn:
    first = ours.generate(prompts, tokens)
    other = theirs.generate(prompts, tokens)
    again = ours.generate(prompts, tokens)
    seconds = (first.seconds + again.seconds) / 2
    made = len(prompts) * tokens
    equal = sum(a == b for a, b in zip(first.ids, other.ids, strict=True)) / len(prompts)
    return Turn(made / seconds, made / other.seconds, other.seconds / seconds, equal)


def measure(args: argparse.Namespace) -> list[dict]:
    rng = random.Random(0)
    records = []
    with (
        checkpoint(args.model_path, args.dtype) as folder,
        Ours(folder, args.dtype) as ours,
        Theirs(folder, args.dtype) as theirs,
    ):
        vocab, threads = ours.info["vocab_size"], ours.info["cpu_threads"]
        print(f"{threads} threads of ours, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; tokens a second:")
        for batch in args.batch_size:
            turns = []
            for number in range(args.rounds + 1):
                prompts = [[rng.randrange(4, vocab) for _ in range(args.input_len)] for _ in range(batch)]
                turn = one_turn(ours, theirs, prompts, args.output_len)
                if number:  # the first warms both up
                    turns.append(turn)
            middle = Turn(*(statistics.median(values) for values in zip(*turns, strict=True)))
            low, high = min(turn.ratio for turn in turns), max(turn.ratio for turn in turns)
            print(
                f"batch {batch:3d}: ours {middle.ours:8.1f}, transformers {middle.theirs:8.1f}, "
                f"ratio {middle.ratio:.2f} ({low:.2f} to {high:.2f}), equal {middle.equal:.2f}",
                flush=True,
            )
            records.append({"batch_size": batch, **middle._asdict()})
    return records


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ", ".join(sorted(p.parent.name for p in CONFIGS.glob("*/config.json")))
    parser.add_argument("--model-path", metavar="FOLDER", help=f"or one of {names} (the shipped model)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="(bfloat16)")
    parser.add_argument("--batch-size", type=at_least(1), nargs="+", default=[1, 8, 32], metavar="N", help="(1 8 32)")
    parser.add_argument("--input-len", type=at_least(1), default=33, metavar="N", help="prompt tokens (33)")
    parser.add_argument("--output-len", type=at_least(1), default=64, metavar="N", help="tokens of each answer (64)")
    parser.add_argument("--rounds", type=at_least(1), default=5, metavar="N", help="A B A each; medians are shown (5)")
    parser.add_argument("--serve-transformers", action="store_true", help=argparse.SUPPRESS)
    return parser


def main(argv: list[str]) -> int:
    args = make_parser().parse_args(argv)
    if args.serve_transformers:
        serve_transformers(args.model_path, args.dtype)
        return 0
    try:
        measure(args)
    except (RuntimeError, ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
