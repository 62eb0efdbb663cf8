#!/usr/bin/env bash
# Lists what a run of a config needs, and how to get it; exit status 1 if something is missing.
#   bash launch/prepare.sh configs/qwen7b.py --config.buffer.files="('traces.jsonl',)"
set -euo pipefail
start=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
root=$PWD
cd "$start" # paths are relative to the caller's folder

config=()
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then
  config=("--config=$1")
  shift
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$root/.venv/bin/python" "$root/launch/prepare.py" ${config[@]+"${config[@]}"} "$@"
