"""Does another way of routing change what a model does? `python -m sglang.debug.routing_drift --a eager --b fused`

Runs two variants of the expert router on one model in one process. Free-running: both answer the same prompts greedily;
where do the answers part, does the score change, and, with a drafter, its accept length? Teacher-forced: both read the
same tokens; how many tokens get other experts, another order, other weights, in each layer? A variant is `eager` (the
reference), `fused` (the kernels, interpreted where there is no GPU: seconds a token), `transformers`, `float32-logits`,
or NORM,CHOICE with functions of your own as FILE.py:FUNCTION. Exit codes: 0; 1 with --fail-if-changed when anything
differs; 2 wrong flags.
"""

import argparse
import random
import sys
from pathlib import Path

from sglang.benchmark import INSTALL, INSTALL_DEV
from sglang.srt.utils.flag_types import at_least


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sglang.debug.routing_drift",
        description="Compare two variants of the expert router on one model.",
    )
    variant = "eager, fused, transformers, float32-logits, or NORM,CHOICE with a name or FILE.py:FUNCTION each"
    parser.add_argument("--a", default="eager", metavar="VARIANT", help=f"{variant} (eager)")
    parser.add_argument("--b", default="fused", metavar="VARIANT", help="the same; what is held against A (fused)")
    parser.add_argument("--model-path", help="folder of a checkpoint (the model in the package)")
    parser.add_argument("--load-format", choices=("auto", "safetensors", "dummy"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--data-path", help="questions as JSONL in GSM8K's form (shipped problems)")
    parser.add_argument("--split", help="of the shipped problems: seen or held-out (seen)")
    parser.add_argument("--random-input-len", type=at_least(1), metavar="N", help="prompts of N random ids, no score")
    parser.add_argument("--num-prompts", type=at_least(1), default=16, metavar="N", help="(16)")
    parser.add_argument("--max-new-tokens", type=at_least(1), default=128, metavar="N", help="of an answer (128)")
    parser.add_argument("--batch-size", type=at_least(1), default=16, metavar="N", help="answers made together (16)")
    parser.add_argument(
        "--speculative-draft-model-path", metavar="FOLDER", help="a drafter, whose accept length is compared too"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="the result as JSON")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="a PNG of it, layer by layer (needs matplotlib)")
    parser.add_argument("--fail-if-changed", action="store_true", help="exit code 1 when anything at all differs")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        drift = measure(args)
    except (ValueError, OSError) as e:
        parser.exit(2, f"error: {e}\n")
    from sglang.debug import drift_report

    print(drift_report.to_text(drift))
    if args.output:
        args.output.write_text(drift_report.to_json(drift), encoding="utf-8")
    if args.chart:
        drift_report.draw(drift, args.chart)
    sys.exit(1 if args.fail_if_changed and drift.changed else 0)


def measure(args: argparse.Namespace):
    """A Drift. Raises ValueError and OSError for flags that can't be."""
    device = _prepare_device(args)
    from sglang.debug import drift_report, drift_runs, router_variants
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_loader.loader import load_model

    a, b = (router_variants.parse_variant(text) for text in (args.a, args.b))
    for path in filter(None, (args.output, args.chart)):
        if not path.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}")
    if args.chart and not drift_report.can_draw():
        raise ValueError(f"--chart needs matplotlib: {INSTALL}")
    folder = args.model_path or _shipped()
    config = ModelConfig.load(folder, dtype=args.dtype)
    prompts = make_prompts(args, folder, config.vocab_size)
    longest = max(len(ids) for ids in prompts.ids) + args.max_new_tokens
    if longest > config.context_len:
        raise ValueError(f"prompts and answers of {longest} tokens: the model takes {config.context_len}")
    loaded = drift_runs.LoadedModel(load_model(config, args.load_format, device), config, device.type)
    router_variants.routers(loaded.model)
    answers = [drift_runs.generate(loaded, v, prompts.ids, args.max_new_tokens, args.batch_size) for v in (a, b)]
    pairs = list(zip(*answers, strict=True))
    accepted = None
    if args.speculative_draft_model_path:
        accepted = drift_runs.accept_lengths(
            folder, args.speculative_draft_model_path, (a, b), prompts.ids, args.max_new_tokens,
            load_format=args.load_format, dtype=args.dtype,
        )  # fmt: skip
    texts = [prompt + answer for prompt, (answer, _) in zip(prompts.ids, pairs, strict=True)]
    layers = drift_runs.teacher_forced(loaded, a, b, texts)
    return drift_report.Drift(
        a=a.name,
        b=b.name,
        model=Path(folder).name,
        prompts=len(pairs),
        output_tokens=sum(len(answer) for answer, _ in pairs),
        first_differences=sorted(i for pair in pairs if (i := drift_runs.first_difference(*pair)) is not None),
        layers=layers,
        scores=prompts.compare(*answers, args.max_new_tokens),
        accept_lengths=accepted,
    )


def _shipped() -> str:
    from sglang.assets import shipped_model_path

    return str(shipped_model_path())


def _prepare_device(args: argparse.Namespace):
    """The torch device. The interpreter must be there before anything imports Triton."""
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU")
    device = torch.device("cuda" if torch.cuda.is_available() and args.device != "cpu" else "cpu")
    if device.type == "cpu" and any("fused" in variant.split(",") for variant in (args.a, args.b)):
        try:
            import sglang.test.triton_testing  # noqa: F401
        except ImportError as e:
            raise ValueError(f"fused on a CPU needs Triton's interpreter ({e}): {INSTALL_DEV}") from None
    return device


class Prompts:
    """Token ids to begin with, and where the prompts are questions, what their answers are worth."""

    def __init__(self, ids: list[list[int]], questions: list | None = None, tokenizer=None):
        self.ids, self.questions, self.tokenizer = ids, questions, tokenizer

    def compare(self, a: list[list[int]], b: list[list[int]], max_new: int):
        """Both runs' answers question by question, a Comparison; None without questions."""
        if self.questions is None:
            return None
        from sglang.test.compare_runs import compare
        from sglang.test.eval_data import grade

        def graded(answers: list[list[int]]) -> list:
            return [
                grade(i, question, self.tokenizer.decode(ids), len(ids), "length" if len(ids) == max_new else "stop")
                for i, (question, ids) in enumerate(zip(self.questions, answers, strict=True))
            ]

        return compare(graded(a), graded(b))


def make_prompts(args: argparse.Namespace, folder: str, vocab_size: int) -> Prompts:
    """Questions as chats, as gsm8k_eval asks them; or random ids, the same each time."""
    if args.random_input_len:
        if args.data_path or args.split:
            raise ValueError(
                "--random-input-len makes prompts that are no questions: leave out --data-path and --split"
            )
        rng = random.Random(0)
        return Prompts([rng.choices(range(vocab_size), k=args.random_input_len) for _ in range(args.num_prompts)])
    from sglang.srt.utils.tokenizer import Tokenizer
    from sglang.test.eval_data import SHIPPED, question_set

    if args.split not in (None, *SHIPPED):
        raise ValueError(f"--split {args.split}: give one of {', '.join(SHIPPED)}")
    tokenizer = Tokenizer(folder)
    questions = question_set(args.data_path, args.split, None, 0, args.num_prompts).questions
    chats = [tokenizer.render_chat([{"role": "user", "content": question.question}]) for question in questions]
    return Prompts([tokenizer.encode(chat, add_special_tokens=False) for chat in chats], questions, tokenizer)


if __name__ == "__main__":
    main()
