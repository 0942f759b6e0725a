"""Batch-invariant mode: a token's row comes out with the same bits whatever stands beside it in the step.

The switch (mode.py) and what ops need to keep the promise. Outside the mode products and sums are torch's own, but for
our kernels; what does not ask is row by row already. docs/numerics.md says what the mode promises and why each op keeps
it.
"""
