#!/usr/bin/env bash
# One run on all NVIDIA GPUs of this machine. It needs the driver; CUDA comes with the packages.
#
#   bash launch/gpu.sh [--dry-run] -- --config=configs/qwen7b.py --workdir=runs/qwen7b
#
# Flags after -- are passed to rapo_jax.main; their paths are relative to the current folder. The same
# command continues a killed run.
#
#   --dry-run  print the commands, one per line, and run nothing
#   --help     this text
#
# XLA_FLAGS is appended to the flags set here, and wins. XLA_CLIENT_MEM_FRACTION, if unset, is 0.9.

set -euo pipefail
start=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) show_help "${BASH_SOURCE[0]}" && exit ;;
    --dry-run) dry_run=yes ;;
    --) shift && break ;;
    *) fail "$1: no such flag; see --help. Flags of the program come after --" ;;
  esac
  shift
done
need_flags "$@"

# shellcheck disable=SC2034 # read by setup.sh
extras=cuda
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
root=$PWD
cd "$start"
set_gpu_environment
run_last env "${gpu_environment[@]}" "PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}" \
  "$root/.venv/bin/python" -m rapo_jax.main "$@"
