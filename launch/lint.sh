#!/usr/bin/env bash
# Set up and run the linters and the type checker: bash launch/lint.sh
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh demo test lint docs
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/basedpyright --level error
