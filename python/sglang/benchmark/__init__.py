"""What the benchmark commands share: prompts to send, the load on a server, and the numbers that come of it."""

# What an error says where a library is missing. Never by the project's name alone: on a package index that is another
# project's.
INSTALL = ".venv/bin/pip install -e '.[bench]' in the checkout"
INSTALL_DEV = ".venv/bin/pip install -e '.[dev]' in the checkout"
