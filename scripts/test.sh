#!/usr/bin/env bash
# Installs on the first start, then runs the CPU suites: bash scripts/test.sh [flags of test/run_suite.py]
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$ROOT/scripts/lib_venv.sh"
asks_for_help "$@" && uninstalled "$ROOT/test/run_suite.py" --help
ensure_venv dev
exec "$ROOT/.venv/bin/python" "$ROOT/test/run_suite.py" --hw cpu --jobs 2 "$@"
