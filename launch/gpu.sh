#!/usr/bin/env bash
# One run on all NVIDIA GPUs of this machine. It needs the driver; CUDA comes with the packages.
#
#   bash launch/gpu.sh [FLAG...] -- --config=configs/qwen7b.py --workdir=runs/qwen7b
#
# Flags after -- are passed to rapo_jax.main; their paths are relative to the current folder. The same
# command continues a killed run.
#
#   --extra=NAME  optional requirements: wandb or mcp; may be repeated
#   --dry-run     print the commands, one per line, and run nothing
#   --help        this text
#
# XLA_FLAGS is appended to the flags set here, and wins. XLA_CLIENT_MEM_FRACTION, if unset, is 0.9.

set -euo pipefail
start=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
extras=cuda
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) show_help "${BASH_SOURCE[0]}" && exit ;;
    --dry-run) dry_run=yes ;;
    --extra=*) need_extra "${1#*=}" && extras+=" ${1#*=}" ;;
    --) shift && break ;;
    *) fail "$1: no such flag; see --help. Flags of the program come after --" ;;
  esac
  shift
done
need_flags "$@"

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
root=$PWD
cd "$start"
set_gpu_environment
run_last env "${gpu_environment[@]}" "PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}" \
  "$root/.venv/bin/python" -m rapo_jax.main "$@"
