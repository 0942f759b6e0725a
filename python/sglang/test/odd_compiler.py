"""A compiler of grammars, run by compile_process.py, that does as a grammar says: for tests of the process."""

import os
import time

from sglang.srt.constrained.compile_process import serve
from sglang.srt.constrained.grammar import GrammarError


def compile(kind: str, text: str) -> bytes:
    word, _, value = text.partition(" ")
    match word:
        case "say":
            return value.encode()
        case "long":
            return b"x" * int(value)
        case "sleep":
            time.sleep(float(value))
            return b"slept"
        case "burn":
            while True:
                pass
        case "kill":
            os.kill(os.getpid(), int(value))
        case "exit":
            os._exit(int(value))
        case "eat":
            return bytes(1 << 33)
        case "bad":
            raise GrammarError(f"{kind} cannot be compiled: bad at 3")
    raise ValueError(text)


if __name__ == "__main__":
    serve(lambda settings: (b"first", compile))
