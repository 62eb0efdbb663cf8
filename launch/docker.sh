#!/usr/bin/env bash
# One run on this machine's NVIDIA GPUs in a container: builds the image of launch/Dockerfile, runs it.
#
#   bash launch/docker.sh [FLAG...] -- --config=configs/qwen7b.py --workdir=runs/qwen7b
#
# It needs Docker and the NVIDIA Container Toolkit. Flags after -- go to rapo_jax.main. The container
# shares runs/ of this repository: results stay, and the same command continues a killed run.
#
#   --image=NAME  name of the image; default rapo_jax
#   --gpus=WHICH  as in docker run: all (the default), a count, or device=0,1
#   --env=NAME    an environment variable of yours that the run gets, such as SERPER_API_KEY; its value
#                 is on no command line; may be repeated
#   --extra=NAME  optional requirements in the image: wandb or mcp; may be repeated
#   --mount=DIR   mounts a folder read-only under the same path (models, data); may be repeated
#   --dry-run     print the commands, one per line, and run nothing
#   --help        this text

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
image=rapo_jax gpus=all extras='' mounts=() variables=()
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) show_help "${BASH_SOURCE[0]}" && exit ;;
    --dry-run) dry_run=yes ;;
    --image=?*) image=${1#*=} ;;
    --gpus=?*) gpus=${1#*=} ;;
    --env=*) need_variable "${1#*=}" && variables+=("--env=${1#*=}") ;;
    --extra=*) need_extra "${1#*=}" && extras="${extras:+$extras }${1#*=}" ;;
    --mount=/*) mounts+=("--volume=${1#*=}:${1#*=}:ro") ;;
    --mount=*) fail "$1: give the whole path of the folder, starting with /" ;;
    --) shift && break ;;
    *) fail "$1: no such flag; see --help. Flags of the program come after --" ;;
  esac
  shift
done
need_flags "$@"
need_below config configs "$@"
need_below workdir runs "$@"

for variable in ${variables[@]+"${variables[@]}"}; do
  # the older name of what the image sets: jax refuses both
  if [ "$variable" = --env=XLA_PYTHON_CLIENT_MEM_FRACTION ]; then variables+=(--env=XLA_CLIENT_MEM_FRACTION=); fi
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
run docker build "--file=$root/launch/Dockerfile" "--tag=$image" \
  ${extras:+"--build-arg=EXTRAS=$extras"} "$root"
run mkdir -p "$root/runs"
# --init forwards signals; NCCL needs more shared memory than the default; the caller owns results
# `docker stop` waits for the step that is running and its checkpoint
run_last docker run --rm --init --stop-timeout=1800 "--gpus=$gpus" --shm-size=8g "--user=$(id -u):$(id -g)" \
  --env=HOME=/tmp --env=USER=rapo "--volume=$root/runs:/rapo_jax/runs" \
  ${variables[@]+"${variables[@]}"} ${mounts[@]+"${mounts[@]}"} "$image" "$@"
