"""The version, also read by pyproject.toml."""

__version__ = "0.6.0.dev0"
