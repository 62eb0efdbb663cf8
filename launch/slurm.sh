#!/usr/bin/env bash
# One run on the GPUs of one or many nodes, as a SLURM batch script: one process a node.
#
#   sbatch --nodes=2 --gpus-per-node=8 --cpus-per-task=32 --mem=0 launch/slurm.sh -- \
#       --config=configs/qwen7b.py --workdir=runs/qwen7b
#   bash launch/slurm.sh --dry-run -- --config=configs/qwen7b.py --workdir=runs/qwen7b
#
# Partition, account and time are options of sbatch, too. Without --cpus-per-task (or --exclusive) a
# process gets one CPU, for its tools and all else; --mem=0 is all memory of a node. Submit from the
# repository's folder, on a file system that all nodes share. Flags after -- are passed to
# rapo_jax.main. Five minutes before the time limit (sbatch --signal=TERM@300) the processes get
# SIGTERM; the same command continues an interrupted run.
#
#   --extra=NAME  optional requirements: wandb or mcp; may be repeated
#   --dry-run     print the commands that the job runs, one per line, and run nothing
#   --help        this text
#
# XLA_FLAGS is appended to the flags set here, and wins. XLA_CLIENT_MEM_FRACTION, if unset, is 0.9.

#SBATCH --job-name=rapo_jax
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@300

set -euo pipefail
start=$PWD
here=$(dirname "${BASH_SOURCE[0]}")
if [ ! -f "$here/setup.sh" ]; then here=${SLURM_SUBMIT_DIR:-$PWD}/launch; fi # sbatch runs a copy
if [ ! -f "$here/setup.sh" ]; then
  echo "slurm: no $here/setup.sh; submit from the repository's folder: sbatch launch/slurm.sh -- FLAGS" >&2
  exit 2
fi
# shellcheck source=launch/commands.sh
source "$here/commands.sh"
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
if [ -z "${SLURM_JOB_ID:-}$dry_run" ]; then
  fail "not in a SLURM job; submit it: sbatch --nodes=2 --gpus-per-node=8 --cpus-per-task=32 --mem=0 launch/slurm.sh -- FLAGS"
fi
cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-}}
if [ "${cpus:-8}" -lt 8 ]; then
  echo "slurm: warning: a process has $cpus CPUs, also for its tools; ask for more: sbatch --cpus-per-task=32" >&2
fi

# shellcheck source=launch/setup.sh
source "$here/setup.sh" # once, on the first node
root=$PWD
cd "$start"
set_gpu_environment
step=(srun --ntasks-per-node=1 --kill-on-bad-exit=1)
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then # srun does not inherit it from sbatch
  step+=("--cpus-per-task=$SLURM_CPUS_PER_TASK")
fi
if [ -n "${SLURM_GPUS_ON_NODE:-}" ]; then # under SLURM, JAX would give each process one GPU
  gpu_environment+=("JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))")
fi
run_last "${step[@]}" env "${gpu_environment[@]}" "PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}" \
  "$root/.venv/bin/python" -m rapo_jax.main --config.distributed.mode=auto "$@"
