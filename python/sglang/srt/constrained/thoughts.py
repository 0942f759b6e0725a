"""Where an output stands among its thoughts, token by token: ThoughtTracker. No text, no grammar."""

from collections.abc import Sequence

import numpy as np

from sglang.srt.managers.io_struct import ThoughtMarks


class ThoughtTracker:
    """Follows an output behind `prompt_ids`, which may end inside of a thought."""

    def __init__(self, marks: ThoughtMarks, prompt_ids: Sequence[int] | np.ndarray):
        self._marks = marks
        self._others = frozenset(marks.others)
        self.tokens = 0  # of the output, in thoughts: marks and labels too
        self.length = 0  # the thoughts' own, without them
        self._followed = 0  # by count()
        begun = thought_start(marks, prompt_ids)
        self.inside = begun is not None
        self._label_at = 0  # how much of the label has come; all of it, once something else has
        self._on_new_line = False
        if begun is not None:
            for token in prompt_ids[begun:]:
                self._think(int(token))
            self.length = 0

    def follow(self, token: int) -> None:
        marks = self._marks
        if token == marks.begin:
            self.inside, self._label_at = True, 0
            self.tokens += 1
        elif self.inside and token == marks.end:
            self.inside = False
            self.tokens += 1
        elif self.inside and token in self._others:
            self.inside = False
        elif self.inside:
            self.tokens += 1
            self._think(token)

    def count(self, output_ids: list[int]) -> int:
        """Tokens of thoughts in an output that has grown: it begins with what was followed before."""
        for token in output_ids[self._followed :]:
            self.follow(token)
        self._followed = len(output_ids)
        return self.tokens

    def _think(self, token: int) -> None:
        label = self._marks.label
        if self._label_at < len(label) and token == label[self._label_at]:
            self._label_at += 1
            self._on_new_line = self._label_at == len(label)
            return
        if self._label_at < len(label):  # it is none
            self.length += self._label_at
            self._label_at = len(label)
        self.length += 1
        self._on_new_line = token == self._marks.newline

    @property
    def way_out(self) -> int:
        """The next token on the shortest way out of a thought that templates write: label, newline, mark."""
        marks = self._marks
        if self._label_at < len(marks.label):
            return marks.label[self._label_at]
        if marks.newline is not None and not self._on_new_line:
            return marks.newline
        return marks.end


def thought_start(marks: ThoughtMarks, prompt_ids: Sequence[int] | np.ndarray) -> int | None:
    """Where the thought begins that a prompt ends in, behind its mark; None if it ends in none: the last of the marks
    decides. It is near the end of a chat's prompt."""
    closing = {marks.end, *marks.others}
    for at in range(len(prompt_ids) - 1, -1, -1):
        if prompt_ids[at] == marks.begin:
            return at + 1
        if prompt_ids[at] in closing:
            return None
    return None
