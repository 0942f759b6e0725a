"""A pytest plugin: importing torch is an error in this process. The runner gives it to files of the unit suite."""

import sys

if "torch" in sys.modules:
    raise ImportError("a file of the unit suite imports torch")
sys.modules["torch"] = None  # what an import finds, and raises ImportError for
