#!/usr/bin/env bash
# Installs on the first start, then serves: bash scripts/serve.sh [MODEL] [flags of sglang serve]
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$ROOT/scripts/lib_venv.sh"
asks_for_help "$@" && uninstalled -m sglang serve --help
ensure_venv base
exec "$ROOT/.venv/bin/python" -m sglang serve "$@" # exec: signals reach the server itself
