"""--enable-deterministic-inference on the shipped model: every token and every log-probability of a request is the same
bits as when it is alone, whatever its company, chunks, cached prefix, retractions and the scheduler's settings.

A setting is server arguments (they make the runner) and harness arguments (they make the scheduler); whatever else must
not change a bit becomes one more row of SETTINGS.
"""

import random
import sys
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch

from sglang.assets import shipped_model_path
from sglang.srt.utils.tokenizer import Tokenizer
from sglang.test.ci.ci_register import is_weekly, register_cpu_ci, register_cuda_ci
from sglang.test.engine_harness import DEVICE, LoadedModel, load
from sglang.test.eval_data import SHIPPED
from sglang.test.eval_data import load as load_questions
from sglang.test.scheduler_harness import Harness

register_cpu_ci(est_time=38, suite="base-a-test-cpu")
register_cpu_ci(est_time=45, suite="weekly-test-cpu")
register_cuda_ci(est_time=300, stage="base-b", runner_config="1-gpu-large")

torch.set_num_threads(1)
COUNT, NEW_TOKENS = (64, 64) if DEVICE == "cuda" else (13, 8)
WINDOW, LONGEST = 128, 400  # tokens: of the shipped model's sliding layers, of a prompt
CRAMPED = WINDOW + NEW_TOKENS + 10  # tokens: one request of up to a window fits, two do not

SAMPLING = [
    {"top_k": 1},
    {"temperature": 0.8, "top_p": 0.9, "frequency_penalty": 0.4, "repetition_penalty": 1.1},
    {"temperature": 1.3, "top_k": 40, "min_p": 0.02},
    {"top_k": 1, "presence_penalty": 0.5, "logit_bias": {"300": 2.0}, "min_new_tokens": 4},
]


@dataclass
class Setting:
    """`rounds` > 1 sends all requests again to the warm cache. Prompts of up to `longest` tokens take part."""

    server: dict = field(default_factory=dict)
    harness: dict = field(default_factory=dict)
    rounds: int = 1
    longest: int = LONGEST


def drafting(steps: int, topk: int, tokens: int) -> dict:
    """The shipped drafter's settings."""
    numbers = {"num_steps": steps, "eagle_topk": topk, "num_draft_tokens": tokens}
    return {"speculative_algorithm": "NEXTN"} | {f"speculative_{name}": number for name, number in numbers.items()}


SETTINGS = {
    "one_at_a_time": Setting(harness={"rows": 1, "chunk": 48}),
    "all_at_once": Setting(),
    "warm": Setting(harness={"chunk": 64}, rounds=2),
    "small_chunks": Setting(harness={"chunk": 16, "rows": 24}),
    "plain_loop": Setting(harness={"overlap": False, "mixed": False, "chunk": 100}),
    "pressure": Setting(
        harness={"full_size": CRAMPED + 20, "max_len": CRAMPED, "conservativeness": 0.05}, longest=WINDOW
    ),
    "line_of_drafts": Setting(drafting(5, 1, 6), rounds=2),
    "tree_of_drafts": Setting(drafting(5, 3, 12), rounds=2),
}
if DEVICE == "cuda" or is_weekly():
    SETTINGS["no_overlap"] = Setting(harness={"overlap": False, "chunk": 100})
    SETTINGS["unmixed"] = Setting(harness={"mixed": False, "chunk": 64})
if DEVICE == "cuda":
    SETTINGS["no_graphs"] = Setting(server={"disable_cuda_graph": True})
    SETTINGS["prefills_launched"] = Setting(server={"enable_piecewise_cuda_graph": False})


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    params: dict
    wanted: dict  # log-probabilities


@cache
def model(**server) -> LoadedModel:
    return load(shipped_model_path(), enable_deterministic_inference=True, max_total_tokens=30_000, **server)


@cache
def requests() -> list[Request]:
    """Word problems of one token to beyond the window; every fourth begins as the one before it does."""
    rng = random.Random(5)
    lengths = [1, 7, 31, 32, 33, 64, 90, WINDOW - 1, WINDOW, WINDOW + 1, 170, 260, LONGEST]
    encode = Tokenizer(str(shipped_model_path())).encode
    texts = [f"Question: {q.question}\nAnswer: {q.answer}\n\n" for q in load_questions(SHIPPED["seen"])]
    made: list[Request] = []
    for i in range(COUNT):
        if i % len(lengths) == 0:
            rng.shuffle(lengths)
        ids = encode("".join(rng.choices(texts, k=8)))[: lengths[i % len(lengths)]]
        if i % 4 == 3:
            ids = (made[-1].prompt[: len(made[-1].prompt) * 3 // 4] + ids[1:])[:LONGEST]
        wanted = {"return_logprob": True, "top_logprobs_num": i % 3, "token_ids_logprob": [5, 900] if i % 2 else None}
        if i % 5 == 0:
            wanted["logprob_start_len"] = len(ids) // 2
        made.append(Request(ids, SAMPLING[i % 4] | {"sampling_seed": i}, wanted))
    return made


def send(h: Harness, rid: str, request: Request) -> None:
    h.add(rid, request.prompt, NEW_TOKENS, params=request.params, **request.wanted)


def answer(h: Harness, rid: str) -> tuple:
    """Everything that came back: ids, their log-probabilities, the best and selected ones, the prompt's."""
    got = h.received[rid]
    assert len(got.ids) == len(got.logprobs) == NEW_TOKENS and len(got.finals) == 1
    return got.ids, got.logprobs, got.top, got.selected, got.prompt_logprobs


def one_by_one(loaded: LoadedModel, some: list[Request]) -> list[tuple]:
    """Each alone, its prompt in one chunk, nothing cached."""
    h = loaded.harness(cache=False, chunk=512)
    for i, request in enumerate(some):
        send(h, f"r{i}", request)
        h.run()
    return [answer(h, f"r{i}") for i in range(len(some))]


@cache
def alone() -> list[tuple]:
    return one_by_one(model(), requests())


def together(h: Harness, some: list[Request], rounds: int = 1, seed: int = 0) -> list[list[tuple]]:
    """All of them, in another order each round, arriving while others run."""
    rng = random.Random(seed)
    answers = []
    for turn in range(rounds):
        for i in rng.sample(range(len(some)), len(some)):
            send(h, f"{turn}-{i}", some[i])
            for _ in range(rng.choice([0, 0, 0, 1, 2])):
                h.step()
        h.run()
        answers.append([answer(h, f"{turn}-{i}") for i in range(len(some))])
    return answers


def check_equal(got: list[tuple], want: list[tuple]) -> None:
    for i, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        assert mine[0] == theirs[0], f"tokens of request {i}"
        assert mine[1:] == theirs[1:], f"log-probabilities of request {i}"


@pytest.mark.parametrize("name", SETTINGS)
def test_the_bits_of_a_request_alone(name: str):
    setting = SETTINGS[name]
    h = model(**setting.server).harness(**setting.harness)
    some = [i for i, request in enumerate(requests()) if len(request.prompt) <= setting.longest]
    for answers in together(h, [requests()[i] for i in some], setting.rounds):
        check_equal(answers, [alone()[i] for i in some])
    if name == "pressure":
        assert h.scheduler.stats.retractions > 0
    if "speculative_algorithm" in setting.server:
        assert h.scheduler.stats.accepted_tokens > 1.5 * h.scheduler.stats.verified
    if setting.rounds > 1:
        cached = [h.received[f"1-{i}"].finals[0].report.cached_tokens for i in range(COUNT)]
        assert sum(cached) > sum(len(r.prompt) for r in requests()) / 2
    h.kv.check_idle()


def test_a_conversation_goes_on_from_generated_tokens():
    """The cached prefix holds answers, whose tokens were computed one at a time."""
    h = model().harness(chunk=64)
    first = requests()[: COUNT // 2]
    turns = [
        Request([*r.prompt, *a[0], *r.prompt[:9]], r.params, r.wanted) for r, a in zip(first, alone(), strict=False)
    ]
    want = one_by_one(model(), turns)
    together(h, first)
    for i, turn in enumerate(turns):
        send(h, f"second-{i}", turn)
    h.run()
    check_equal([answer(h, f"second-{i}") for i in range(len(turns))], want)
    reused = [h.received[f"second-{i}"].finals[0].report.cached_tokens > len(r.prompt) for i, r in enumerate(first)]
    assert sum(reused) > len(first) // 2


def test_without_the_flag_the_company_shows():
    """What the tests above would miss, they would miss here too."""
    loaded = load(shipped_model_path(), max_total_tokens=30_000)
    try:
        some = requests()[: COUNT // 2]
        want = one_by_one(loaded, some)
        (got,) = together(loaded.harness(), some)
        assert got != want
    finally:
        model.cache_clear()  # the mode is the process's


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
