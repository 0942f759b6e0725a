# Sourced by serve.sh and test.sh, which set ROOT. Makes ROOT/.venv with the project in it, once:
# a stamp (hash of what decides the installation) lets later starts skip everything here.

say() { echo "[setup] $*" >&2; }

# Runs a command that is silent for long, with a line every 5 s.
patiently() {
  local code=0 ticker
  (waited=0; while sleep 5 && kill -0 $$ 2>/dev/null; do say "... $((waited += 5)) s"; done) 9>&- &
  ticker=$!
  "$@" || code=$?
  { kill "$ticker" && wait "$ticker"; } 2>/dev/null || true
  return "$code"
}

quietly() { "$@" 2>/dev/null; }

# Whether the command line "$@" asks for help alone, which must not wait for an installation.
asks_for_help() { case " $* " in *" -h "* | *" --help "*) ;; *) return 1 ;; esac; }

# Runs this checkout's code, as it is, with any Python that will do: enough for help.
uninstalled() {
  local python
  python="$(find_python)" || { say "$NO_PYTHON"; exit 1; }
  PYTHONPATH="$ROOT/python" exec "$python" "$@"
}

NO_PYTHON="no Python 3.11 or 3.12 with the venv module; install one, or set PYTHON=/path/to/it"

# Prints the first interpreter that runs, is 3.11 or 3.12 and can make virtual environments. A name on PATH may be
# a version manager's stub that only prints an error, so each candidate is run. With $1=torch, it must import torch.
find_python() {
  local candidate test_code='import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))'
  [ "${1:-}" = torch ] && test_code="import torch; $test_code"
  for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3 python \
    "${HOME:-}"/.pyenv/versions/3.12*/bin/python3 "${HOME:-}"/.pyenv/versions/3.11*/bin/python3 /usr/bin/python3.1[12]; do
    if "$candidate" -c "$test_code" >/dev/null 2>&1 </dev/null; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  return 1
}

has_gpu() { nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }

# What an installation depends on; $1 is gpu or cpu. The path is part of it: an editable install points to it.
fingerprint() {
  { cat "$ROOT/pyproject.toml" "$ROOT/scripts/constraints-cpu.txt" "$ROOT/scripts/lib_venv.sh"
    "$ROOT/.venv/bin/python" -VV 2>/dev/null
    echo "$ROOT $1"; } | sha256sum | cut -d' ' -f1
}

# $1: gpu or cpu, $2: base or dev. A dev installation serves for base too.
is_installed() {
  local want
  want="$(fingerprint "$1")"
  [ "$(cat "$ROOT/.venv/.installed-dev" 2>/dev/null)" = "$want" ] ||
    { [ "$2" = base ] && [ "$(cat "$ROOT/.venv/.installed-base" 2>/dev/null)" = "$want" ]; }
}

# The CPU build saves gigabytes of CUDA libraries. It is not on PyPI, hence three places to ask.
install_cpu_torch() {
  local version
  version="$(sed -n 's/^torch==//p' "$ROOT/scripts/constraints-cpu.txt")"
  if "$VENV_PIP" show torch 2>/dev/null | grep -q "^Version: $version"; then return; fi
  say "torch $version for CPU, from pip's configured sources"
  patiently quietly "$VENV_PIP" install -q "torch==$version+cpu" && return
  say "not there; from download.pytorch.org"
  patiently quietly "$VENV_PIP" install -q "torch==$version" --index-url https://download.pytorch.org/whl/cpu && return
  say "not there either; the default torch $version (a large download)"
  patiently "$VENV_PIP" install -q "torch==$version"
}

make_venv() {
  local python="$1" mode="$2"
  if [ "$mode" = gpu ]; then
    say "making .venv with $python; its installed packages, torch among them, stay visible"
    "$python" -m venv --clear --system-site-packages "$ROOT/.venv"
  else
    say "making .venv with $python"
    "$python" -m venv --clear "$ROOT/.venv"
  fi
}

# $1: base or dev. Safe to call from several processes at once; returns non-zero with a line on stderr on failure.
ensure_venv() {
  local kind="$1" mode=cpu
  has_gpu && mode=gpu
  is_installed "$mode" "$kind" && return
  (
    if command -v flock >/dev/null; then flock 9; fi
    is_installed "$mode" "$kind" && exit 0 # another process did it while we waited
    started=$SECONDS
    if ! "$ROOT/.venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
      >/dev/null 2>&1 || [ ! -e "$ROOT/.venv/.made-$mode" ]; then
      python="$([ "$mode" = gpu ] && find_python torch || find_python)" ||
        { say "$NO_PYTHON"; exit 1; }
      make_venv "$python" "$mode" || exit 1
      touch "$ROOT/.venv/.made-$mode"
    fi
    VENV_PIP="$ROOT/.venv/bin/pip"
    extras="" constraints=()
    [ "$kind" = dev ] && extras="[dev]"
    if [ "$mode" = cpu ]; then
      install_cpu_torch || { say "could not install torch"; exit 1; }
      constraints=(-c "$ROOT/scripts/constraints-cpu.txt")
    fi
    say "installing the project$extras and its dependencies"
    patiently "$VENV_PIP" install -q --disable-pip-version-check "${constraints[@]}" -e "$ROOT$extras" ||
      { say "pip failed; its message is above"; exit 1; }
    fingerprint "$mode" >"$ROOT/.venv/.installed-$kind"
    say "done in $((SECONDS - started)) s"
  ) 9>"$ROOT/.venv.lock"
}
