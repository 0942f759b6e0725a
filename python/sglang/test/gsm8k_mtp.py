"""The registered GSM8K test of Gemma 4 with its MTP drafter, as one function: a server, 200 problems, what came of it.

The numbers are those of upstream's test_gemma4_mtp_26b_a4b_extra: 5 steps, topk 1 or 3, 6 or 12 draft tokens, 5 worked
examples, 128 questions at a time, 512 tokens.
"""

from dataclasses import dataclass

from sglang.test.eval_data import Question
from sglang.test.gsm8k_eval import Result, evaluate
from sglang.test.server_process import ServerProcess

NUM_STEPS = 5
DRAFT_TOKENS = {1: 6, 3: 12}  # by topk
NUM_SHOTS = 5
NUM_QUESTIONS = 200
CONCURRENCY = 128
MAX_TOKENS = 512
SERVER_FLAGS = (
    "--dtype", "bfloat16", "--max-running-requests", "16", "--context-length", "2048", "--max-total-tokens", "32768",
    "--skip-server-warmup",
)  # fmt: skip
DETERMINISTIC = ("--enable-deterministic-inference",)  # how upstream's test serves


@dataclass(frozen=True)
class MTPRun:
    result: Result
    server_info: dict  # after the last question

    @property
    def accept_length(self) -> float:
        return self.server_info["internal_states"][0]["avg_spec_accept_length"]

    def __str__(self) -> str:
        drafts = f", accept length {self.accept_length:.3f}" if self.server_info["speculative_eagle_topk"] else ""
        return f"topk {self.server_info['speculative_eagle_topk']}: {self.result}{drafts}"


def draft_flags(topk: int, drafter: str | None = None) -> list[str]:
    """The flags of speculation; without a path those of the shipped model's drafter."""
    flags = ["--speculative-algorithm", "NEXTN", "--speculative-num-steps", str(NUM_STEPS)]
    flags += ["--speculative-eagle-topk", str(topk), "--speculative-num-draft-tokens", str(DRAFT_TOKENS[topk])]
    return flags if drafter is None else [*flags, "--speculative-draft-model-path", drafter]


def run(
    flags: list[str], shots: list[Question], questions: list[Question], timeout: float, output_file: str | None = None
) -> MTPRun:
    """Start a server with SERVER_FLAGS and `flags` (ready within `timeout` seconds), ask the questions, stop it. Raises
    RuntimeError when the server does not start or end well, EvalError when a request fails."""
    with ServerProcess("sglang.launch_server", *SERVER_FLAGS, *flags, timeout=timeout) as server:
        server.client.get("/flush_cache").raise_for_status()
        result = evaluate(server.url, questions, "completion", shots, CONCURRENCY, MAX_TOKENS, output_file)
        info = server.client.get("/server_info").json()
        if code := server.stop():
            raise RuntimeError(f"the server ended with exit code {code}:\n{server.output()}")
    return MTPRun(result, info)
