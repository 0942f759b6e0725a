"""Which variants of a kernel compile and are right: what benchmarks that look for the fastest one ask first."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch

MOST_OF_A_PROCESS = 8  # variants, one of which is tried faster than a process starts


def error_message(check: Callable[..., float], *args) -> str | None:
    """None if the kernel's error, which `check` returns, is that of bfloat16; else what is wrong with this variant."""
    try:
        error = check(*args)
    except Exception as failure:  # of any kind: it does not compile, is too large, or reads where it must not
        lines = [line for line in str(failure).splitlines() if line.strip()]
        return f"{type(failure).__name__}: {next((x for x in lines if 'fatal' in x), lines[0] if lines else '')[:160]}"
    return None if error < 0.02 else f"wrong: differs from the reference by {error}"


def device_works() -> bool:
    """False once a kernel of this process has read where it must not: the device refuses it everything from then on."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def error_messages(check: Callable[..., float], variants: list[tuple]) -> list[str | None]:
    """error_message of each of `variants`, up to the first that breaks this process's device."""
    sys.stdout = open(os.devnull, "w")  # the compiler prints whole programs where it fails
    messages = []
    for variant in variants:
        messages.append(error_message(check, *variant))
        if not device_works():
            break
    return messages


def usable(check: Callable[..., float], variants: list[tuple], jobs: int) -> list[tuple]:
    """The variants that compile and are right, a line printed for each other. They are tried in processes of their own,
    `jobs` at a time: they compile side by side, and none can break the device for the next ones."""
    messages: list[str | None] = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        size = max(1, min(MOST_OF_A_PROCESS, len(variants) // jobs))
        parts = [variants[i : i + size] for i in range(0, len(variants), size)]
        for part, task in [(part, pool.submit(error_messages, check, part)) for part in parts]:
            found = task.result()
            while len(found) < len(part):
                found += pool.submit(error_messages, check, part[len(found) :]).result()
            messages += found
    for variant, message in zip(variants, messages, strict=True):
        if message is not None:
            print(f"skipped {variant}: {message}")
    return [variant for variant, message in zip(variants, messages, strict=True) if message is None]
