"""SpeculationSettings: how far and how wide the drafts of a server go."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SpeculationSettings:
    """`num_steps` tokens at most are drafted in a row, `topk` beside each other, `num_draft_tokens` are verified at a
    time, the request's newest token included. `position_offset`: where drafted tokens stand for the drafter, counted
    from the newest token's own position: 0, or -1 for the last position that has KV."""

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
