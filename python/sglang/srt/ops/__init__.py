"""Every kernel, and the ops around them: an op's file has its formula, reference, kernel, launcher and `can_use`.

Ops hold no parameters and no state of a step, and import nothing of srt but utils. An op asks ops/invariance whether a
row's bits may depend on its company.
"""
