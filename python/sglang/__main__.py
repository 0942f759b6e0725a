"""`python -m sglang COMMAND` is the command `sglang`, where its script is not on the path."""

import sys

from sglang.cli import main

if __name__ == "__main__":
    sys.exit(main())
