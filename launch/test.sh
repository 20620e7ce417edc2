#!/usr/bin/env bash
# Set up and run the tests: bash launch/test.sh [pytest arguments]
# Once on one host device and once on eight: tests/conftest.py says which files, tests/README.md why.
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh demo test
export JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1
NOTHING=5 # pytest's exit code where no test was selected, as of one file, which has one number of devices
ended=$NOTHING
for devices in 1 8; do
  code=0
  .venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --devices "$devices" "$@" || code=$?
  if [ "$ended" -eq "$NOTHING" ] || { [ "$code" -ne 0 ] && [ "$code" -ne "$NOTHING" ]; }; then ended=$code; fi
done
exit "$ended"
