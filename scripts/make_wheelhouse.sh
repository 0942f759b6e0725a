#!/usr/bin/env bash
# Collects the wheels that a host without network needs, the project's own among them:
#   bash scripts/make_wheelhouse.sh --output wheelhouse [--python 3.12] [--platform manylinux_2_28_x86_64]
#        [--extras cuda,bench] [--exclude torch,transformers,...] [--constraint FILE]
# --exclude names packages that are on the host already; what only they need is left out as well.
# There: python3 -m pip install --no-index --find-links wheelhouse sglang
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
output="" python_version="3.12" platform="manylinux_2_28_x86_64" extras="" exclude="" constraint=()

usage() { sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
while [ $# -gt 0 ]; do
  case "$1" in
    --output | --python | --platform | --extras | --exclude | --constraint)
      [ $# -ge 2 ] || { echo "error: $1 needs a value" >&2; exit 2; } ;;&
    --output) output="$2" ;;
    --python) python_version="$2" ;;
    --platform) platform="$2" ;;
    --extras) extras="[$2]" ;;
    --exclude) exclude="$2" ;;
    --constraint) constraint=(-c "$2") ;;
    -h | --help) usage; exit 0 ;;
    *) { echo "error: unknown argument $1"; usage; } >&2; exit 2 ;;
  esac
  shift 2
done
[ -n "$output" ] || { { echo "error: --output is missing"; usage; } >&2; exit 2; }
case "$python_version" in 3.11 | 3.12) ;; *) echo "error: --python must be 3.11 or 3.12" >&2; exit 2 ;; esac

python="${PYTHON:-$([ -x "$ROOT/.venv/bin/python" ] && echo "$ROOT/.venv/bin/python" || echo python3)}"
pip() { "$python" -m pip --disable-pip-version-check "$@"; }
# A wheel for an older glibc runs on a newer one, but pip matches only the tags it is given.
tags=(--platform "$platform")
if [[ "$platform" =~ ^manylinux_2_([0-9]+)_(.*)$ ]]; then
  for ((minor = BASH_REMATCH[1] - 1; minor >= 5; minor--)); do tags+=(--platform "manylinux_2_${minor}_${BASH_REMATCH[2]}"); done
  tags+=(--platform "manylinux2014_${BASH_REMATCH[2]}" --platform "manylinux1_${BASH_REMATCH[2]}")
fi
target=(--only-binary=:all: --implementation cp --python-version "$python_version" "${tags[@]}")

mkdir -p "$output"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
pip wheel -q --no-deps -w "$work" "$ROOT"
own="$(ls "$work"/sglang-*.whl)"
echo "resolving for Python $python_version on $platform" >&2
pip install -q --dry-run --ignore-installed --report "$work/report.json" --target "$work/none" "${target[@]}" \
  "${constraint[@]}" "$own$extras"
# From the project along requirements, never through an excluded package.
"$python" - "$work/report.json" "$exclude" "${extras//[\[\]]/}" >"$work/wanted.txt" <<'PY'
import json
import sys

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name


def names(text: str) -> set[str]:
    return {canonicalize_name(name) for name in text.split(",") if name}


items = {canonicalize_name(i["metadata"]["name"]): i for i in json.load(open(sys.argv[1]))["install"]}
excluded = names(sys.argv[2])
if unknown := excluded - items.keys():
    print(f"note: not needed anyway: {', '.join(sorted(unknown))}", file=sys.stderr)
seen, todo = set(), [("sglang", extra) for extra in ("", *names(sys.argv[3]))]
while todo:
    name, extra = todo.pop()
    if (name, extra) in seen or name in excluded or name not in items:
        continue
    seen.add((name, extra))
    for text in items[name]["metadata"].get("requires_dist", ()):
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": extra}):
            todo += [(canonicalize_name(needed.name), wanted) for wanted in ("", *needed.extras)]
for name in sorted({name for name, _ in seen} - {"sglang"}):
    print(f"{name}=={items[name]['metadata']['version']}")
PY
if [ -s "$work/wanted.txt" ]; then
  pip download -q --no-deps "${target[@]}" -d "$output" -r "$work/wanted.txt"
fi
cp "$own" "$output/"
echo "$(ls "$output"/*.whl | wc -l) wheels, $(du -sh "$output" | cut -f1), in $output" >&2
