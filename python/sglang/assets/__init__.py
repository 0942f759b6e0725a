"""Files that ship inside the package."""

from importlib.resources import files
from pathlib import Path

SHIPPED_MODEL_NAME = "gemma-4-mini-it"


def shipped_model_path() -> Path:
    """Folder of the small Gemma 4 that the package serves when no model is named."""
    return Path(str(files(__name__).joinpath(SHIPPED_MODEL_NAME)))


SHIPPED_DRAFTER_NAME = "gemma-4-mini-it-assistant"


def shipped_drafter_path() -> Path:
    """Folder of the drafter of the shipped model."""
    return Path(str(files(__name__).joinpath(SHIPPED_DRAFTER_NAME)))
