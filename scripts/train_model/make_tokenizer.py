"""Makes the shipped model's tokenizer: a byte-fallback BPE with Gemma's special tokens at their real ids.

    python scripts/train_model/make_tokenizer.py --out python/sglang/assets/gemma-4-mini-it

The corpus is a sample of our own training problems plus the pleasantries, so the vocabulary fits what the model reads.
Text goes in as in Gemma: a space becomes U+2581, nothing is put before the first word, unknown characters fall
back to bytes. Two rules of ours: a digit is always a token of its own, and ` + ` between numbers is one token.
"""

import argparse
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent
VOCAB_SIZE = 2048
NEWLINE_ID = 107
GEMMA_IDS = {
    "<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4,
    "<|tool>": 46, "<tool|>": 47, "<|tool_call>": 48, "<tool_call|>": 49,
    "<|tool_response>": 50, "<tool_response|>": 51, '<|"|>': 52,
    "<|think|>": 98, "<|channel>": 100, "<channel|>": 101, "<|turn>": 105, "<turn|>": 106,
}  # fmt: skip
# A word with its space; one digit; newlines one by one; an operator with both spaces; other signs; leftover spaces.
PIECES = r"▁?\p{L}+|\p{N}|\n|▁[-+*/=]▁|▁?[^\p{L}\p{N}▁\n]+|▁+"


def reserved_tokens() -> list[str]:
    """Ids 0..107: Gemma's special tokens, `<unusedN>` in the gaps, and the newline last."""
    by_id = {i: token for token, i in GEMMA_IDS.items()}
    return [by_id.get(i, f"<unused{i}>") for i in range(NEWLINE_ID)] + ["\n"]


def train(lines: list[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    reserved, byte_tokens = reserved_tokens(), [f"<0x{b:02X}>" for b in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    ascii_letters = [chr(c) for c in range(33, 127)] + ["▁"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=reserved + byte_tokens,
        initial_alphabet=ascii_letters,
        limit_alphabet=len(ascii_letters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    # The trainer wants newline and bytes as special tokens to give them their ids; in use they are plain vocabulary.
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in reserved[:NEWLINE_ID]])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", GEMMA_IDS["<bos>"])]
    )
    return tokenizer


def tokenizer_config(max_length: int) -> dict:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>",
        "add_bos_token": True, "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "model_max_length": max_length,
    }  # fmt: skip


def corpus(problems: int) -> list[str]:
    from data import pleasantries, problem_stream

    stream = problem_stream(seed=1)
    lines = [text for _ in range(problems) for text in (lambda p: (p.question, p.answer))(next(stream))]
    chats = [text for pair in pleasantries() for text in pair] * 20
    return lines + chats + ["Question: ", "Answer: ", "user\n", "model\n", "system\n", "thought\n"] * 3000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=60_000)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train(corpus(args.problems))
    tokenizer.save(str(args.out / "tokenizer.json"))
    (args.out / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(4096), indent=2) + "\n")
    (args.out / "chat_template.jinja").write_text((HERE / "chat_template.jinja").read_text())
    print(f"{tokenizer.get_vocab_size()} tokens -> {args.out}")


if __name__ == "__main__":
    main()
