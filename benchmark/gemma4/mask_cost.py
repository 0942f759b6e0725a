"""What answers in a given form cost: milliseconds of a decode step in which every request has a grammar, or none.

    python benchmark/gemma4/mask_cost.py --model-path benchmark/gemma4/configs/26b-a4b --load-format dummy \\
        [--batch-size 1 8 64] [--input-len 1000] [--steps 60] [--library xgrammar llguidance]

Takes the server's flags, speculation among them. The scheduler runs as in a server, in this process: masks are made
while the GPU computes, and what a step takes is the time between two. The grammars are lists of an ordinary object with
a schema, and of any objects; a model with random weights stays inside of their texts, where masks are dear. The
vocabulary is made up: bytes, words and characters of many scripts, as many as the model has columns. Graphs are
captured for --batch-size alone. Medians over --steps, a row for each grammar:

free ms     steps of requests without a grammar, which write what they like
ms          with the grammar
same ms     without it, the same tokens dictated: other tokens go to other experts, and to more or fewer of them, which
            changes a step far more than masks do. Not with drafts, which would be accepted otherwise
cost        of ms over same ms (with drafts over free ms)
masks ms    in which the host makes the masks
late        steps whose forward had ended when the host had launched their sampling: the device waited for the host
"""

import argparse
import dataclasses
import functools
import json
import random
import statistics
import sys
import time
from concurrent.futures import Future
from types import SimpleNamespace

import torch

from sglang.benchmark.static_bench import Bench, Case
from sglang.srt.arg_fields import OneLineParser
from sglang.srt.constrained import llguidance_compile, xgrammar_compile
from sglang.srt.constrained.compile_process import CompilerSettings
from sglang.srt.constrained.grammar import Compiled
from sglang.srt.constrained.llguidance_backend import LLGuidanceCompiled
from sglang.srt.constrained.xgrammar_backend import XGrammarCompiled
from sglang.srt.managers.grammar_manager import GrammarManager
from sglang.srt.managers.io_struct import AbortReq, Message, TokenizedGenerateReq
from sglang.srt.managers.schedule_policy import SchedulePolicy
from sglang.srt.managers.scheduler import Scheduler, SchedulerLimits
from sglang.srt.managers.scheduler_stats import SchedulerStats
from sglang.srt.model_executor import model_runner
from sglang.srt.model_executor.step_io import HeldStep, PendingStep, StepInput, TokenMasks
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import parse_with_server_args
from sglang.srt.utils.child import setup_logging, startup_errors
from sglang.srt.utils.flag_types import at_least

WARM_UP = 10  # steps after the prompts
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "kinds": {"type": "array", "items": {"enum": ["apple", "pear", "plum"]}},
        "address": {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}},
    },
    "required": ["name", "age", "kinds", "address"],
    "additionalProperties": False,
}
# Of lists so long that no answer ends while it is timed.
GRAMMARS = {
    name: json.dumps({"type": "array", "items": schema, "minItems": 500})
    for name, schema in {"schema": SCHEMA, "object": {"type": "object"}}.items()
}


def made_up_vocabulary(size: int, eos_token_ids: list[int]) -> list[bytes]:
    """So many different texts, none for the tokens that end an answer."""
    rng = random.Random(0)
    texts = [bytes([i]) for i in range(256)]
    seen = set(texts)
    while len(texts) < size:
        length = min(12, max(1, int(rng.gammavariate(3, 1.7))))
        kind = rng.random()
        if kind < 0.6:
            text = rng.choice(["", " "]) + "".join(rng.choices("etaoinshrdlucmfwypvbgkqjxz", k=length))
        elif kind < 0.8:
            text = "".join(chr(rng.randrange(0x400, 0x9FFF)) for _ in range(min(length, 4)))
        else:
            text = "".join(chr(rng.randrange(32, 127)) for _ in range(length))
        if (data := text.encode()) not in seen:
            seen.add(data)
            texts.append(data)
    return [b"" if i in eos_token_ids else text for i, text in enumerate(texts[:size])]


class Library:
    """A GrammarBackend over a made-up vocabulary that compiles at once, in this process."""

    def __init__(self, name: str, vocab_size: int, eos_token_ids: list[int]):
        self._name = name
        self._compiled: dict[str, tuple[Compiled, bytes]] = {}
        self._settings = CompilerSettings("", vocab_size, sorted(i for i in eos_token_ids if i < vocab_size), 1 << 30)

    @functools.cached_property
    def _tokens(self):
        settings = self._settings
        texts = made_up_vocabulary(settings.vocab_size, settings.eos_token_ids)
        if self._name == "xgrammar":
            import xgrammar

            return xgrammar.TokenizerInfo(
                texts, xgrammar.VocabType.RAW, vocab_size=len(texts), stop_token_ids=settings.eos_token_ids
            )
        import llguidance

        eos = settings.eos_token_ids
        vocabulary = SimpleNamespace(eos_token_id=eos[0], bos_token_id=None, tokens=texts, special_token_ids=eos)
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary), n_vocab=len(texts), eos_token=eos)

    def compile(self, kind: str, text: str) -> Future:
        if text not in self._compiled:
            self._compiled[text] = self._compile(kind, text)
        done: Future = Future()
        done.set_result(self._compiled[text])
        return done

    def _compile(self, kind: str, text: str) -> tuple[Compiled, bytes]:
        settings = self._settings
        if self._name == "xgrammar":
            import xgrammar

            compiler = xgrammar.GrammarCompiler(self._tokens)
            data = xgrammar_compile.compile_grammar(compiler, settings, kind, text)
            compiled = xgrammar.CompiledGrammar.deserialize_json(data.decode(), self._tokens)
            return XGrammarCompiled(compiled, settings.eos_token_ids), data
        import llguidance

        data = llguidance_compile.check_grammar(self._tokens, kind, text)
        matcher = llguidance.LLMatcher(self._tokens, data.decode(), log_level=0)
        return LLGuidanceCompiled(matcher, self._tokens), data


class Watched:
    """The bench's worker. Counts the held steps whose forward has ended by the time that their sampling is launched,
    and dictates tokens."""

    def __init__(self, bench: Bench):
        self._worker, self._runner = bench.worker, bench.worker.runner
        self._on_gpu = bench.args.device == "cuda"
        self._sample = self._runner.sampling.sample
        self._texts: list[list[int]] = []  # of requests to come
        self.late = 0

    def submit(self, step: StepInput) -> PendingStep:
        for admission in step.admissions if self._texts else ():
            text = self._texts.pop(0)
            text += text[-1:] * (self._table.shape[1] - len(text))
            self._table[admission.row] = torch.tensor(text)
        pending = self._worker.submit(step)
        if not isinstance(pending, HeldStep):
            return pending
        forwarded = torch.cuda.Event() if self._on_gpu else None
        if forwarded:
            forwarded.record()

        def sample(masks: TokenMasks) -> PendingStep:
            pending.sample(masks)
            self.late += forwarded is None or forwarded.query()
            return pending

        return HeldStep(sample, pending.settle, pending.drafts)

    def dictate(self, texts: list[list[int]], input_len: int) -> None:
        """What the next requests write, in their order; until free()."""
        length, state = max(map(len, texts)), self._runner.sampling
        self._texts = [list(text) for text in texts]
        self._table = torch.zeros(len(state.ints), length, dtype=torch.int64, device=state.device)

        def sample(logits, rows, positions, flags, masks=None):
            _, reported = self._sample(logits, rows, positions, flags, masks)
            return self._table[rows, (positions - input_len).clamp(max=length - 1)], reported

        state.sample = sample

    def free(self) -> None:
        self._runner.sampling.sample = self._sample


@dataclasses.dataclass(frozen=True)
class Steps:
    """Medians of some steps in ms, how many of them were late, and what the requests have written."""

    ms: float
    masks_ms: float
    late: int
    texts: list[list[int]]


class Loop:
    """A scheduler over the bench's model that is fed by hand."""

    def __init__(self, bench: Bench):
        args, self.inbox, self.serial = bench.args, [], 0
        self.bench, self.worker = bench, Watched(bench)
        policy = SchedulePolicy(args.schedule_policy, args.chunked_prefill_size, args.max_prefill_tokens)
        limits = SchedulerLimits(
            bench.max_len, bench.config.vocab_size, frozenset(), overlap=not args.disable_overlap_schedule
        )
        self.scheduler = Scheduler(
            self.worker, bench.kv, policy, limits, self._receive, lambda message: None, SchedulerStats()
        )
        self.mask_seconds = 0.0
        make = self.scheduler.masks.make

        def timed(*args):
            start = time.perf_counter()
            masks = make(*args)
            self.mask_seconds += time.perf_counter() - start
            return masks

        self.scheduler.masks.make = timed

    def _receive(self, block: bool | float) -> list[Message]:
        messages, self.inbox = self.inbox, []
        return messages

    def use(self, library: Library) -> None:
        self.scheduler.grammars = GrammarManager(library, lambda message: self.inbox.append(message))

    def steps(self, case: Case, steps: int, grammar: str | None = None) -> Steps:
        """Decode steps of requests that all have `grammar`."""
        fields = {"temperature": 0, "ignore_eos": True, "max_new_tokens": case.output_len}
        if grammar is not None:
            fields["json_schema"] = grammar
        params = SamplingParams.from_request(fields)
        for prompt in self.bench.prompts(case):
            self.serial += 1
            self.inbox.append(TokenizedGenerateReq(self.serial, prompt.tolist(), params))
        scheduler = self.scheduler
        scheduler.step()
        while len(scheduler.running) < case.batch_size or any(req.is_prefilling for req in scheduler.running):
            scheduler.step()
        times, masks = [], []
        for step in range(WARM_UP + steps):
            if step == WARM_UP:
                self.worker.late = 0
            self.mask_seconds, start = 0.0, time.perf_counter()
            scheduler.step()
            times.append(time.perf_counter() - start)
            masks.append(self.mask_seconds)
            assert len(scheduler.running) == case.batch_size, "an answer has ended by itself"
        texts = [req.output_ids for req in sorted(scheduler.running, key=lambda req: req.serial)]
        self.inbox.append(AbortReq(abort_all=True))
        while not scheduler.is_idle or self.inbox:
            scheduler.step()
        ms, masks_ms = (1e3 * statistics.median(seconds[WARM_UP:]) for seconds in (times, masks))
        return Steps(ms, masks_ms, self.worker.late, texts)


def measure(bench: Bench, own: argparse.Namespace) -> None:
    loop = Loop(bench)
    print("| batch | grammar | free ms | ms | same ms | cost | masks ms | late |\n" + "|---" * 8 + "|", flush=True)
    libraries = {name: Library(name, bench.config.vocab_size, list(bench.config.eos_token_ids)) for name in own.library}
    for batch_size in own.batch_size:
        chunk = bench.args.chunked_prefill_size
        before = 2 + (batch_size * own.input_len // chunk if chunk > 0 else batch_size)  # steps beside others' prompts
        case = Case(batch_size, own.input_len, (before + WARM_UP + own.steps) * bench.kv.decode_tokens)
        bench.check(case)
        free = loop.steps(case, own.steps).ms
        for library, name in ((library, name) for library in own.library for name in GRAMMARS):
            loop.use(libraries[library])
            masked = loop.steps(case, own.steps, GRAMMARS[name])
            same = None
            if bench.kv.decode_tokens == 1:
                loop.worker.dictate(masked.texts, own.input_len)
                dictated = loop.steps(case, own.steps)
                loop.worker.free()
                same, texts = dictated.ms, zip(dictated.texts, masked.texts, strict=True)
                assert all(a[: len(b)] == b[: len(a)] for a, b in texts), "other tokens than those dictated"
            cost = 100 * (masked.ms / (same or free) - 1)
            cells = [f"{batch_size}", f"{library} {name}", f"{free:.3f}", f"{masked.ms:.3f}"]
            cells += [f"{same:.3f}" if same else "-", f"{cost:+.1f} %", f"{masked.masks_ms:.3f}"]
            print(f"| {' | '.join(cells)} | {masked.late}/{own.steps} |", flush=True)
    bench.kv.check_idle()


def add_flags(parser: OneLineParser) -> None:
    parser.set_defaults(log_level="warning", random_seed="0")
    group = parser.add_argument_group("benchmark")
    group.add_argument(
        "--batch-size", type=at_least(1), nargs="+", default=[1, 8, 64], metavar="N", help="requests at a time"
    )
    group.add_argument("--input-len", type=at_least(1), default=1000, metavar="N", help="tokens of each prompt")
    group.add_argument("--steps", type=at_least(1), default=60, metavar="N", help="timed steps of each kind")
    group.add_argument(
        "--library", nargs="+", choices=("xgrammar", "llguidance"), default=["xgrammar"], help="which make the masks"
    )


def main(argv: list[str]) -> int:
    description = "Time decode steps with and without grammars."
    typed, own = parse_with_server_args(argv, "python benchmark/gemma4/mask_cost.py", description, add_flags)
    setup_logging(typed.log_level, "bench")
    model_runner.capture_sizes = lambda most: sorted({min(size, most) for size in own.batch_size})
    with startup_errors():
        measure(Bench(dataclasses.replace(typed, disable_radix_cache=True)), own)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
