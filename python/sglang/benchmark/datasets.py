"""Prompts to measure with: which there are, their flags, and how each is made from a seed.

`get_dataset` gives the same rows for the same flags and tokenizer. Lengths are tokens. Servers are not known here.
"""

import argparse
import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sglang.benchmark.dataset_files import Conversation, CustomPrompt, read_records
from sglang.test.eval_data import SHIPPED_COUNT, few_shot_prompt, question_set

DEFAULT_NUM_PROMPTS = 1000
RE_ENCODINGS = 10  # tries to find a text of a wanted length
NO_FILE = ("random-ids", "generated-shared-prefix")
OPENAI_OUTPUT = 256  # tokens to ask for where a request of an openai file does not say; upstream's number
OF_THE_RUN = ("messages", "model", "max_tokens", "max_completion_tokens", "stream", "stream_options")
ROUTING_KEY = "X-SMG-Routing-Key"  # header of sglang-router's
MIN_TURN_TOKENS = 2  # shorter prompts and answers of a conversation are noise


@dataclass(frozen=True)
class DatasetRow:
    """One prompt, text or token ids. `prompt_len` counts its tokens, with the special ones that a server adds to text;
    `output_len` is how many tokens to ask for. A chat of several messages has them in `messages`, and what else its
    request says in `fields`."""

    prompt: str | list[int]
    prompt_len: int
    output_len: int
    messages: list[dict[str, Any]] | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


class PromptTokenizer(Protocol):
    """What is used of a tokenizer; sglang.srt.utils.tokenizer.Tokenizer is one."""

    size: int
    special_ids: set[int]
    special_tokens: dict[str, str]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str: ...

    def bytes_of(self, token_id: int) -> bytes | None: ...

    def render_chat(self, messages: list[dict]) -> str: ...


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("prompts")
    data.add_argument(
        "--dataset-name", default="sharegpt", metavar="NAME", help=f"one of {', '.join(SAMPLERS)} (sharegpt)"
    )
    data.add_argument(
        "--dataset-path", default="", metavar="FILE", help="file of random, sharegpt, custom, openai or gsm8k"
    )
    data.add_argument(
        "--num-prompts",
        type=int,
        metavar="N",
        help=f"default: {DEFAULT_NUM_PROMPTS}; of generated-shared-prefix groups x prompts per group; of gsm8k "
        f"without a file {SHIPPED_COUNT}",
    )
    data.add_argument("--seed", type=int, default=42, help="of prompts, lengths and arrivals (42)")
    data.add_argument("--tokenize-prompt", action="store_true", help="send token ids: prompt lengths are then exact")
    data.add_argument(
        "--apply-chat-template",
        action="store_true",
        help="put sharegpt, custom and gsm8k prompts through the tokenizer's chat template before sending",
    )
    data.add_argument("--prompt-suffix", default="", metavar="TEXT", help="sharegpt, custom: behind each prompt")
    data.add_argument("--random-input-len", type=int, default=1024, metavar="TOKENS", help="random, random-ids (1024)")
    data.add_argument("--random-output-len", type=int, default=1024, metavar="TOKENS", help="random, random-ids (1024)")
    data.add_argument(
        "--random-range-ratio",
        type=float,
        default=0.0,
        metavar="R",
        help="lengths are uniform from R x length to length; 1 makes all equal (0.0)",
    )
    data.add_argument(
        "--sharegpt-output-len",
        type=int,
        metavar="TOKENS",
        help="sharegpt, custom, openai: instead of the answer's own length",
    )
    data.add_argument(
        "--sharegpt-context-len", type=int, metavar="TOKENS", help="sharegpt, custom: leave longer conversations out"
    )
    gsp = parser.add_argument_group("generated-shared-prefix")
    gsp.add_argument("--gsp-num-groups", type=int, default=64, metavar="N", help="shared system prompts (64)")
    gsp.add_argument("--gsp-prompts-per-group", type=int, default=16, metavar="N", help="questions to each (16)")
    gsp.add_argument("--gsp-system-prompt-len", type=int, default=2048, metavar="TOKENS", help="(2048)")
    gsp.add_argument("--gsp-question-len", type=int, default=128, metavar="TOKENS", help="(128)")
    gsp.add_argument("--gsp-output-len", type=int, default=256, metavar="TOKENS", help="(256)")
    gsp.add_argument(
        "--gsp-range-ratio", type=float, default=1.0, metavar="R", help="lengths are uniform from R x length (1.0)"
    )
    gsp.add_argument("--gsp-ordered", action="store_true", help="group by group, not shuffled")
    gsp.add_argument(
        "--gsp-group-distribution", choices=("uniform", "zipf"), default="uniform",
        help="zipf: group of rank r is drawn with a probability as 1/r^alpha",
    )  # fmt: skip
    gsp.add_argument("--gsp-zipf-alpha", type=float, metavar="A", help="of zipf, above 0")
    gsp.add_argument(
        "--gsp-send-routing-key", action="store_true", help="a router's header, the same for the prompts of a group"
    )
    gsm8k = parser.add_argument_group("gsm8k (shipped problems, or a GSM8K file by --dataset-path)")
    gsm8k.add_argument(
        "--gsm8k-num-shots", type=int, default=5, metavar="N", help="worked examples first; none in a chat (5)"
    )
    gsm8k.add_argument("--gsm8k-output-len", type=int, default=256, metavar="TOKENS", help="(256)")


def check_dataset_arguments(args: argparse.Namespace) -> None:
    """Raises ValueError that names the flag, its value and what is possible."""
    if args.dataset_name in DATASETS_NOT_SERVED:
        raise ValueError(f"--dataset-name {args.dataset_name} {DATASETS_NOT_SERVED[args.dataset_name]}")
    if args.dataset_name not in SAMPLERS:
        raise ValueError(f"--dataset-name {args.dataset_name} is none of {', '.join(SAMPLERS)}")
    positive = (
        "num_prompts", "random_input_len", "random_output_len", "sharegpt_output_len", "sharegpt_context_len",
        "gsp_num_groups", "gsp_prompts_per_group", "gsp_system_prompt_len", "gsp_question_len", "gsp_output_len",
        "gsm8k_output_len",
    )  # fmt: skip
    for name in positive:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"{_flag(name)} is {value}; it must be at least 1")
    for name in ("gsm8k_num_shots", "seed"):
        if getattr(args, name) < 0:
            raise ValueError(f"{_flag(name)} is {getattr(args, name)}; it must be at least 0")
    if not 0 <= args.random_range_ratio <= 1:
        raise ValueError(f"--random-range-ratio is {args.random_range_ratio}; 0 to 1 are possible")
    if not 0 <= args.gsp_range_ratio <= 1:
        raise ValueError(f"--gsp-range-ratio is {args.gsp_range_ratio}; 0 to 1 are possible")
    alpha = args.gsp_zipf_alpha
    if (alpha is not None) != (args.gsp_group_distribution == "zipf"):
        raise ValueError("--gsp-group-distribution zipf and --gsp-zipf-alpha go together")
    if alpha is not None and not 0 < alpha < math.inf:
        raise ValueError(f"--gsp-zipf-alpha is {alpha}; it must be above 0")
    if args.prompt_suffix and args.dataset_name not in ("sharegpt", "custom"):
        raise ValueError(f"--prompt-suffix is for sharegpt and custom, not for --dataset-name {args.dataset_name}")
    if args.apply_chat_template and args.dataset_name not in ("sharegpt", "custom", "gsm8k"):
        raise ValueError(f"--apply-chat-template would change the lengths that --dataset-name {args.dataset_name} sets")
    out, context = args.sharegpt_output_len, args.sharegpt_context_len
    if out is not None and context is not None and out + MIN_TURN_TOKENS > context:
        raise ValueError(f"--sharegpt-output-len {out} leaves no room for a prompt in --sharegpt-context-len {context}")
    if args.dataset_path and args.dataset_name in NO_FILE:
        raise ValueError(f"--dataset-path: --dataset-name {args.dataset_name} reads no file")
    if args.num_prompts not in (None, count_prompts(args)):
        raise ValueError(
            f"--num-prompts {args.num_prompts} contradicts --gsp-num-groups {args.gsp_num_groups} x "
            f"--gsp-prompts-per-group {args.gsp_prompts_per_group} = {count_prompts(args)}; leave it out"
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def count_prompts(args: argparse.Namespace) -> int:
    if args.dataset_name == "generated-shared-prefix":
        return args.gsp_num_groups * args.gsp_prompts_per_group
    if args.dataset_name == "gsm8k" and not args.dataset_path:
        return args.num_prompts or SHIPPED_COUNT
    return args.num_prompts or DEFAULT_NUM_PROMPTS


def needs_tokenizer(args: argparse.Namespace) -> bool:
    """Whether the prompts can only be made with a tokenizer; else the vocabulary's size is enough."""
    return not (args.tokenize_prompt and args.dataset_name in NO_FILE)


def get_dataset(
    args: argparse.Namespace, tokenizer: PromptTokenizer | None, vocab_size: int | None = None, chat: bool = False
) -> list[DatasetRow]:
    """The rows that the flags ask for, in the order in which they are to be sent.

    `vocab_size` is the model's, for prompts of mere ids; `chat`: the server will put each prompt into a chat by itself.
    Raises ValueError for what the flags, the file and the tokenizer cannot give.
    """
    check_dataset_arguments(args)
    if tokenizer is None and needs_tokenizer(args):
        raise ValueError(
            f"--dataset-name {args.dataset_name}{'' if args.tokenize_prompt else ' without --tokenize-prompt'} needs a "
            "tokenizer: give a folder that holds tokenizer.json with --tokenizer"
        )
    if tokenizer is None and not vocab_size:
        raise ValueError("the vocabulary's size is not known: give a tokenizer's folder with --tokenizer")
    rng = np.random.default_rng(args.seed)
    return SAMPLERS[args.dataset_name](Source(args, rng, tokenizer, vocab_size, chat))


@dataclass(frozen=True)
class Source:
    """What samplers draw from."""

    args: argparse.Namespace
    rng: np.random.Generator
    tokenizer: PromptTokenizer | None
    vocab_size: int | None
    chat: bool

    @property
    def num_prompts(self) -> int:
        return count_prompts(self.args)

    def ordinary_ids(self) -> np.ndarray:
        """The ids that random prompts are made of. Of text only those that have a text of their own: no special ones
        and no parts of characters."""
        if self.args.tokenize_prompt:
            return np.arange(self.vocab_size or self.tokenizer.size)
        special = self.tokenizer.special_ids
        bytes_of = self.tokenizer.bytes_of
        return np.array([i for i in range(self.tokenizer.size) if i not in special and is_text(bytes_of(i))])

    def length(self, longest: int, ratio: float | None = None) -> int:
        """Uniform from `ratio`, or --random-range-ratio, times the longest."""
        shortest = max(1, int(longest * (self.args.random_range_ratio if ratio is None else ratio)))
        return int(self.rng.integers(shortest, longest, endpoint=True))

    def row(self, ids: list[int], length: int, output_len: int) -> DatasetRow:
        """A prompt of `length` tokens; `ids` holds at least twice as many, so that text can be made up to length."""
        if self.args.tokenize_prompt:
            return DatasetRow(ids[:length], length, output_len)
        text, length = text_of_length(ids, length, self.tokenizer)
        return DatasetRow(text, length, output_len)

    def text_row(self, text: str, output_len: int) -> DatasetRow:
        tokenizer, templated = self.tokenizer, self.args.apply_chat_template
        if templated:
            text = tokenizer.render_chat([{"role": "user", "content": text}])
            text = text.removeprefix(tokenizer.special_tokens.get("bos_token", ""))  # the server adds its own
        ids = tokenizer.encode(text)
        return DatasetRow(ids if self.args.tokenize_prompt else text, len(ids), output_len)


def is_text(data: bytes | None) -> bool:
    """Whether a token's bytes are whole characters; None stands for one that is no bytes."""
    try:
        return data is None or bool(data.decode())
    except UnicodeDecodeError:
        return False


def text_of_length(ids: list[int], length: int, tokenizer: PromptTokenizer, special: bool = True) -> tuple[str, int]:
    """Text that begins like `ids` and encodes to `length` tokens, special ones included, and its true length: decoding
    and encoding again may join or split tokens, and some lengths are never met."""
    wanted = max(1, length - (len(tokenizer.encode("")) if special else 0))
    spare = iter(ids[wanted:])
    ids = ids[:wanted]
    for _ in range(RE_ENCODINGS):
        text = tokenizer.decode(ids).replace("\ufffd", "")  # what is left of a character that the length cut
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == wanted:
            break
        ids = ids[:wanted] + list(itertools.islice(spare, max(0, wanted - len(ids))))
    return text, len(tokenizer.encode(text, add_special_tokens=special))


# ---- the datasets -------------------------------------------------------------------------------------------------


def sample_random_ids(source: Source) -> list[DatasetRow]:
    """Consecutive ids from a random place of the vocabulary on: no file, and prompts hardly share beginnings."""
    args, allowed = source.args, source.ordinary_ids()
    rows = []
    for i in range(source.num_prompts):
        length, output_len = source.length(args.random_input_len), source.length(args.random_output_len)
        offset = int(source.rng.integers(len(allowed)))
        ids = allowed[(offset + i + np.arange(2 * length)) % len(allowed)].tolist()
        rows.append(source.row(ids, length, output_len))
    return rows


def sample_random(source: Source) -> list[DatasetRow]:
    """First turns of ShareGPT conversations, repeated or cut to the wanted lengths."""
    args = source.args
    texts = [c.turns[0].text for c in read_records(args.dataset_path, Conversation) if c.turns]
    source.rng.shuffle(texts)
    token_lists = (source.tokenizer.encode(text, add_special_tokens=False) for text in itertools.cycle(texts))
    rows = []
    for _ in range(source.num_prompts):
        length, output_len = source.length(args.random_input_len), source.length(args.random_output_len)
        ids = next((ids for ids in itertools.islice(token_lists, len(texts)) if ids), None)
        if ids is None:
            raise ValueError(f"--dataset-path {args.dataset_path}: no conversation has any text")
        rows.append(source.row(list(itertools.islice(itertools.cycle(ids), 2 * length)), length, output_len))
    return rows


def sample_sharegpt(source: Source) -> list[DatasetRow]:
    """First turns with the length of the turn that answers them."""
    return _conversation_rows(source, read_records(source.args.dataset_path, Conversation))


def sample_custom(source: Source) -> list[DatasetRow]:
    """Prompts of one's own, in the file's order: conversations, or {"prompt": text or ids, "output_len": tokens}."""
    args = source.args
    records = read_records(args.dataset_path, CustomPrompt)
    if all(record.prompt is None for record in records):
        return _conversation_rows(source, records)
    rows = []
    for number, record in enumerate(records[: source.num_prompts], 1):
        output_len = args.sharegpt_output_len or record.output_len
        where = f"--dataset-path {args.dataset_path}: record {number}"
        if not record.prompt or output_len is None or output_len < 1:
            raise ValueError(f'{where} needs a "prompt" and an "output_len" of at least 1 (or --sharegpt-output-len)')
        if isinstance(record.prompt, str):
            rows.append(source.text_row(record.prompt + args.prompt_suffix, output_len))
        elif source.chat or args.apply_chat_template:
            raise ValueError(f"{where} has token ids, which cannot be put into a chat")
        elif min(record.prompt) < 0:
            raise ValueError(f"{where} has a negative token id, {min(record.prompt)}")
        else:
            rows.append(DatasetRow(record.prompt, len(record.prompt), output_len))
    return _enough(rows, source)


def _conversation_rows(source: Source, records: list[Conversation]) -> list[DatasetRow]:
    args, rows = source.args, []
    conversations = [record.turns for record in records if len(record.turns) >= 2]
    source.rng.shuffle(conversations)
    for prompt, answer, *_ in conversations:
        if len(rows) == source.num_prompts:
            break
        answer_ids = source.tokenizer.encode(answer.text, add_special_tokens=False)
        row = source.text_row(prompt.text + args.prompt_suffix, args.sharegpt_output_len or len(answer_ids))
        too_short = min(row.prompt_len, len(answer_ids)) < MIN_TURN_TOKENS
        too_long = args.sharegpt_context_len and row.prompt_len + row.output_len > args.sharegpt_context_len
        if not too_short and not too_long:
            rows.append(row)
    return _enough(rows, source)


def _enough(rows: list[DatasetRow], source: Source) -> list[DatasetRow]:
    if len(rows) < source.num_prompts:
        origin = f"--dataset-path {source.args.dataset_path}" if source.args.dataset_path else "the shipped file"
        raise ValueError(f"{origin} gives {len(rows)} usable prompts, --num-prompts asks for {source.num_prompts}")
    return rows


def sample_shared_prefix(source: Source) -> list[DatasetRow]:
    """Groups of prompts that share a long beginning, shuffled unless --gsp-ordered. Which group a prompt is of does not
    change its question."""
    args, allowed, ratio = source.args, source.ordinary_ids(), source.args.gsp_range_ratio

    def text(longest: int) -> str | list[int]:
        length = source.length(longest, ratio)
        ids = source.rng.choice(allowed, 2 * length).tolist()
        if args.tokenize_prompt:
            return ids[:length]
        return text_of_length(ids, length, source.tokenizer, special=False)[0]

    heads = [text(args.gsp_system_prompt_len) for _ in range(args.gsp_num_groups)]
    rows = []
    for group in groups_of_prompts(args):
        tail, output_len = text(args.gsp_question_len), source.length(args.gsp_output_len, ratio)
        if args.tokenize_prompt:
            ids = heads[group] + tail
            row = DatasetRow(ids, len(ids), output_len)
        else:
            row = source.text_row(f"{heads[group]}\n\n{tail}", output_len)
        if args.gsp_send_routing_key:
            row = dataclasses.replace(row, headers={ROUTING_KEY: f"{args.seed}_{group}"})
        rows.append(row)
    if not args.gsp_ordered:
        source.rng.shuffle(rows)
    return rows


def groups_of_prompts(args: argparse.Namespace) -> list[int]:
    """The group of each prompt: as many in each, or drawn by Zipf's law from a generator of its own."""
    groups, count = np.arange(args.gsp_num_groups), count_prompts(args)
    if args.gsp_group_distribution == "uniform":
        return np.repeat(groups, args.gsp_prompts_per_group).tolist()
    weights = (groups + 1.0) ** -args.gsp_zipf_alpha
    return np.random.default_rng(args.seed).choice(groups, count, p=weights / weights.sum()).tolist()


def sample_openai(source: Source) -> list[DatasetRow]:
    """Chats of a file, each line the body of a request: its messages, max_tokens, and whatever else it says."""
    args = source.args
    if not source.chat:
        raise ValueError("--dataset-name openai holds chats: it needs --backend sglang-oai-chat or vllm-chat")
    rows = []
    for number, record in enumerate(read_records(args.dataset_path, dict[str, Any])[: source.num_prompts], 1):
        where = f"--dataset-path {args.dataset_path}: record {number}"
        messages = record.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise ValueError(f'{where} needs "messages", a list of objects')
        asked = record.get("max_completion_tokens", record.get("max_tokens"))
        output_len = args.sharegpt_output_len or (OPENAI_OUTPUT if asked is None else asked)
        if type(output_len) is not int or output_len < 1:
            raise ValueError(f"{where}: max_tokens must be an integer of at least 1, got {output_len!r}")
        try:
            prompt = source.tokenizer.render_chat(messages)
        except ValueError:  # the server is asked all the same: this only counts its tokens beforehand
            prompt = "\n".join(str(message.get("content")) for message in messages)
        fields = {k: v for k, v in record.items() if k not in OF_THE_RUN}
        rows.append(DatasetRow(prompt, len(source.tokenizer.encode(prompt, False)), output_len, messages, fields))
    return _enough(rows, source)


def sample_gsm8k(source: Source) -> list[DatasetRow]:
    """Grade-school word problems: in a chat alone, else after worked examples."""
    args = source.args
    alone = source.chat or args.apply_chat_template
    shots = 0 if alone else args.gsm8k_num_shots
    path, seed = args.dataset_path or None, None if args.dataset_path else args.seed
    try:
        found = question_set(path, None, seed, shots, source.num_prompts)
    except OSError as e:
        raise ValueError(f"--dataset-path {path}: {e.strerror}; nothing is downloaded") from e
    texts = [q.question if alone else few_shot_prompt(found.shots, q) for q in found.questions]
    return _enough([source.text_row(text, args.gsm8k_output_len) for text in texts], source)


SAMPLERS: dict[str, Callable[[Source], list[DatasetRow]]] = {
    "sharegpt": sample_sharegpt,
    "custom": sample_custom,
    "random": sample_random,
    "random-ids": sample_random_ids,
    "generated-shared-prefix": sample_shared_prefix,
    "openai": sample_openai,
    "gsm8k": sample_gsm8k,
}
IN_A_FILE = "needs the hub, and nothing is downloaded: put its prompts into a file of --dataset-name custom or openai"
DATASETS_NOT_SERVED = {
    "image": "is not served: only text is measured",
    "mmmu": "is not served: only text is measured",
    "mooncake": "is not served: its traces name blocks of hidden texts",
    "longbench_v2": IN_A_FILE,
    "agentic-trace": IN_A_FILE,
    "speed-bench": IN_A_FILE,
}
