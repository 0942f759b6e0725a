"""Which variants of a kernel compile and are right: what benchmarks that look for the fastest one ask first."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor


def error_message(check: Callable[..., float], *args) -> str | None:
    """None if the kernel's error, which `check` returns, is that of bfloat16; else what is wrong with this variant."""
    sys.stdout = open(os.devnull, "w")  # the compiler prints whole programs where it fails
    try:
        error = check(*args)
    except Exception as failure:  # of any kind: it does not compile, is too large, or reads where it must not
        lines = [line for line in str(failure).splitlines() if line.strip()]
        return f"{type(failure).__name__}: {next((x for x in lines if 'fatal' in x), lines[0] if lines else '')[:160]}"
    return None if error < 0.02 else f"wrong: differs from the reference by {error}"


def usable(check: Callable[..., float], variants: list[tuple], jobs: int) -> list[tuple]:
    """The variants that compile and are right, a line printed for each other. Each is tried in a process of its own,
    `jobs` at a time: they compile side by side, and none can break the next one's device."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        messages = [pool.submit(error_message, check, *variant) for variant in variants]
        messages = [message.result() for message in messages]
    for variant, message in zip(variants, messages, strict=True):
        if message is not None:
            print(f"skipped {variant}: {message}")
    return [variant for variant, message in zip(variants, messages, strict=True) if message is None]
