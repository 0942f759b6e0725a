#!/usr/bin/env bash
# Start the server: `bash scripts/serve.sh [server flags]`. The first call installs what is needed into .venv.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment ""
exec "$PYTHON" -m sglang.launch_server "$@"
