#!/usr/bin/env bash
# Run the CPU suites: `bash scripts/test.sh [run_suite.py flags]`. The first call installs what is needed into .venv.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment dev
cd "$ROOT"
exec "$PYTHON" test/run_suite.py --hw cpu "$@"
