#!/usr/bin/env bash
# Set up and run the tests: bash launch/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh demo test
export JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1
exec .venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder "$@"
