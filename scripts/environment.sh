# The project's virtual environment, shared by serve.sh and test.sh: `prepare_environment EXTRA` makes or updates .venv
# with the project and that extra ("" for none) and sets PYTHON. Nothing is installed twice: a stamp in .venv holds the
# hash of all that decides what would be.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV="$ROOT/.venv"
CONSTRAINTS="$ROOT/scripts/constraints-cpu.txt"
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

say() { printf '%s\n' "$*" >&2; }

# The first Python 3.11 or 3.12 that really runs: a version manager's shim may exist and fail.
find_python() {
  local candidate
  for candidate in ${SGLANG_PYTHON:-} python3.12 python3.11 python3 python; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null
    then
      command -v "$candidate"
      return
    fi
  done
  say "error: Python 3.11 or 3.12 with its venv module is needed (on Debian: apt install python3-venv)"
  return 2
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; }

install_cpu_torch() {
  local pip=("$VENV/bin/python" -m pip install --quiet --disable-pip-version-check) version
  version=$(sed -n 's/^torch==//p' "$CONSTRAINTS")
  "$VENV/bin/python" -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$version')" 2>/dev/null && return
  say "Installing torch $version for CPU"
  "${pip[@]}" "torch==$version+cpu" 2>/dev/null && return
  "${pip[@]}" --retries 1 --index-url "$TORCH_CPU_INDEX" "torch==$version" 2>/dev/null && return
  say "No CPU build found; taking the default build of torch $version, which is large"
  "${pip[@]}" "torch==$version"
}

prepare_environment() {
  local extra=$1 python stamp wanted constraint=() site=()
  python=$(find_python) || return
  mkdir -p "$VENV"
  exec 9>"$VENV/.lock"  # two starts at once must not install over each other
  flock 9
  stamp="$VENV/.stamp${extra:+-$extra}"
  wanted=$({ cat "$ROOT/pyproject.toml" "$CONSTRAINTS" "$ROOT/scripts/environment.sh"; "$python" -VV; has_gpu && echo gpu; echo "$ROOT"; } | sha256sum)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    say "Preparing $VENV with $("$python" -V) (once)"
    # Where there is a GPU, the machine's own torch fits its driver and is used; otherwise torch comes from the package
    # index. Without a GPU it is pinned to a CPU build, which is a tenth of the size.
    has_gpu && "$python" -c 'import torch' 2>/dev/null && site=(--system-site-packages)
    "$python" -m venv "${site[@]}" "$VENV" || return
    if ! has_gpu; then
      install_cpu_torch || return
      constraint=(--constraint "$CONSTRAINTS")
    fi
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "${constraint[@]}" \
      --editable "$ROOT${extra:+[$extra]}" || return
    printf '%s\n' "$wanted" >"$stamp"
  fi
  exec 9>&-
  PYTHON="$VENV/bin/python"
}
