"""SpeculationSettings: how far and how wide the drafts of a server go."""

from dataclasses import dataclass

# `n` tokens have KV when a draft is made; the newest token itself is number n. The rule says at which position all of a
# draft's tokens stand for the drafter: offsets from n.
POSITION_OFFSETS = {"n": 0, "n-1": -1}


@dataclass(frozen=True)
class SpeculationSettings:
    """`num_steps` tokens at most are drafted in a row, `topk` beside each other, `num_draft_tokens` are verified at a
    time, the request's newest token included. `position_offset` is one of POSITION_OFFSETS."""

    num_steps: int
    topk: int
    num_draft_tokens: int
    position_offset: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for numbers that do not fit together."""
        if self.topk == 1 and self.num_draft_tokens != self.num_steps + 1:
            raise ValueError(
                f"--speculative-num-draft-tokens {self.num_draft_tokens}: with --speculative-eagle-topk 1 a draft has "
                f"--speculative-num-steps + 1 = {self.num_steps + 1} tokens"
            )
        most = 1 + self.topk + (self.num_steps - 1) * self.topk**2
        if not self.num_steps < self.num_draft_tokens <= most:
            raise ValueError(
                f"--speculative-num-draft-tokens {self.num_draft_tokens}: {self.num_steps} steps of topk {self.topk} "
                f"give {self.num_steps + 1} to {most}"
            )


def fill_numbers(steps: int | None, topk: int | None, draft_tokens: int | None) -> tuple[int, int, int]:
    """The three numbers of a draft where some are None: 3, 1 and 4 if none was given, as upstream has it.

    Raises ValueError where what was given leaves one open.
    """
    if steps is None:
        if topk is not None or draft_tokens is not None:
            raise ValueError("--speculative-eagle-topk and --speculative-num-draft-tokens need --speculative-num-steps")
        steps = 3
    topk = 1 if topk is None else topk
    if draft_tokens is None:
        if topk > 1:
            raise ValueError(f"--speculative-eagle-topk {topk} needs --speculative-num-draft-tokens")
        draft_tokens = steps + 1
    return steps, topk, draft_tokens
