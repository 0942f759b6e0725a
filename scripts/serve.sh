#!/usr/bin/env bash
# Installs on the first start, then serves: bash scripts/serve.sh [flags of sglang.launch_server]
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$ROOT/scripts/lib_venv.sh"
asks_for_help "$@" && uninstalled -m sglang.launch_server --help
ensure_venv base
exec "$ROOT/.venv/bin/python" -m sglang.launch_server "$@" # exec: signals reach the server itself
