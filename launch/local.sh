#!/usr/bin/env bash
# n processes on this machine, as one job; the lines of process 1 start with [1].
#   bash launch/local.sh -n 4 [--restarts 3] -- train --config configs/quickstart.py --workdir runs/four
# The first process that dies ends the others; --restarts goes on from the last save (never after bad input, code 2).
set -um  # -m: a process group each, so that Ctrl-C reaches the processes once, through this script
n=2 restarts=0
while [ $# -gt 0 ]; do
  case $1 in
    -n) n=${2:-}; shift; shift || true ;;
    --restarts) restarts=${2:-}; shift; shift || true ;;
    --) shift && break ;;
    *) break ;;
  esac
done
if ! [[ $n =~ ^[1-9][0-9]*$ && $restarts =~ ^[0-9]+$ && $# -gt 0 ]]; then
  echo "usage: bash launch/local.sh -n N [--restarts N] -- train --config FILE --workdir FOLDER" >&2
  exit 2
fi
xmodal=${XMODAL:-$(dirname "$0")/../.venv/bin/xmodal}
[ -x "$xmodal" ] || xmodal=xmodal

exec 3>&2
say() { echo "local.sh: $*" >&3; }
free_port() {
  while port=$((20000 + RANDOM % 12000)) && (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do :; done
  echo "$port"
}
stopped=""
pass_on() { stopped=$1 && kill "-$1" "${running[@]}" 2> /dev/null; }
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

declare -A number  # of the process with this id
running=()
start_all() {
  local port i
  port=$(free_port)
  running=() number=()
  for ((i = 0; i < n; i++)); do
    # On a machine with GPUs, process i has GPU i.
    JAX_LOCAL_DEVICE_IDS=${JAX_LOCAL_DEVICE_IDS:-$i} "$xmodal" "$@" --coordinator "127.0.0.1:$port" \
      --processes "$n" --process "$i" > >(exec sed -u "s/^/[$i] /") 2>&1 &
    running+=($!) number[$!]=$i
  done
}
end_all() {  # they are given 5 s to say what they saw
  for _ in {1..50}; do kill -0 "${running[@]}" 2> /dev/null && sleep 0.1; done
  kill -KILL "${running[@]}" 2> /dev/null
  wait "${running[@]}" 2> /dev/null
}
run_once() {  # the exit code of the process that failed first, else 0
  local id code left failed="" worst=0 how
  SECONDS=0
  start_all "$@"
  while [ ${#running[@]} -gt 0 ] && [ $worst -eq 0 ]; do
    sleep 0.1
    left=()
    for id in "${running[@]}"; do
      if kill -0 "$id" 2> /dev/null; then left+=("$id") && continue; fi
      wait "$id"
      code=$?
      # Of those that ended together, 75 and 134 are what the death of another one causes.
      case $worst in 0 | 75 | 134) [ $code -eq 0 ] || { worst=$code failed=$id; } ;; esac
    done
    running=("${left[@]}")
  done
  [ $worst -ne 0 ] || return 0
  how="code $worst"
  [ $worst -le 128 ] || how="signal $((worst - 128))"
  [ -n "$stopped" ] || say "process ${number[$failed]} of $n ended with $how after $SECONDS s; ending the others"
  end_all
  return $worst
} 2> /dev/null  # Bash's own lines about ended jobs

for ((again = 0; ; again++)); do
  run_once "$@"
  code=$?
  if [ $code -eq 0 ] || [ $code -eq 2 ] || [ -n "$stopped" ] || [ $again -ge "$restarts" ]; then exit $code; fi
  say "starting again from the last save ($((again + 1)) of $restarts)"
done
