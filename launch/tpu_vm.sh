#!/usr/bin/env bash
# All hosts of a TPU VM: copies this folder, installs, trains. After a preemption run the same command again.
#   bash launch/tpu_vm.sh NAME ZONE --config configs/quickstart.py --workdir /mnt/shared/runs/big
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: bash launch/tpu_vm.sh NAME ZONE --config FILE --workdir FOLDER_THAT_ALL_HOSTS_SHARE" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
cd "$(dirname "$0")/.."
on=(--zone="$zone" --worker=all)
tar -cz --exclude=./.venv --exclude=./.git --exclude=./.cache --exclude=./data --exclude=./runs . > /tmp/xmodal.tgz
gcloud compute tpus tpu-vm scp /tmp/xmodal.tgz "$name:" "${on[@]}"
gcloud compute tpus tpu-vm ssh "$name" "${on[@]}" --command="
  set -e; mkdir -p xmodal; tar -xzf xmodal.tgz -C xmodal; cd xmodal
  bash launch/setup.sh demo; .venv/bin/pip install --quiet 'jax[tpu]'
  exec .venv/bin/xmodal train $(printf '%q ' "$@") --distributed"
