"""A tokenizer of a few hundred tokens in Gemma's form, written to a folder, for tests that need no model.

Every printable ASCII character is a token, spaces are `▁`, a few words are merged; all other characters fall back to
bytes. Special tokens and the chat template look like Gemma's.
"""

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>"]
WORDS = ["▁the", "▁and", "stop", "▁apples", "ing"]
CHAT_TEMPLATE = """{{ bos_token }}{% for m in messages %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content | trim }}<turn|>
{% endfor %}{% if tools %}tools:{{ tools | tojson }}
{% endif %}{% if shout is defined %}{{ shout }}{% endif %}{% if add_generation_prompt %}<|turn>model
{% endif %}"""


def make_tokenizer() -> tokenizers.Tokenizer:
    pieces = [*SPECIAL, *(f"<0x{b:02X}>" for b in range(256)), "▁", *map(chr, range(0x21, 0x7F)), "\n"]
    merges = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if pair not in merges:
                merges.append(pair)
                pieces.append(word[:end])
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in SPECIAL])
    return tokenizer


def make_model_folder(folder: Path) -> str:
    """Write tokenizer and chat template; the folder's path, for --model-path."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return str(folder)
