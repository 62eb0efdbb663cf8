#!/usr/bin/env bash
# Plans a run for chips that are not here: bytes per chip, FLOPs, bytes sent, seconds per step.
# Makes an environment with libtpu or jax's CUDA plugin, which compile the run's programs for TPUs
# and GPUs that are not there.
#
#   bash launch/plan.sh [--dry-run] --config=configs/qwen7b.py --config.plan.topology=v5e:8x8
#   bash launch/plan.sh --config=configs/qwen7b.py --config.plan.topology=gpu,v5e,v5p
#   bash launch/plan.sh --check [--config.plan.topology=h100x4]
#
#   --check    compiles a tiny model for v5e:2x2 or the chips named (minutes), to test the compilers
#              with this code
#   --dry-run  print the commands, one per line, and run nothing
#   --help     this text
#
# Other flags are passed to rapo_jax.main, which runs only the stage plan; --workdir is not needed. Which
# compilers are installed depends on the flag --config.plan.topology. Without
# --config.plan.compile=False the programs are compiled (two minutes for 7 billion parameters and
# GPUs, ten for TPUs, on two cores); arithmetic alone takes seconds. PLAN_VENV is the folder of the
# environment, by default .venv-plan (6 GB with the CUDA plugin); PYTHON the Python (3.11 or newer)
# to make it with.

set -euo pipefail
start=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
flags=()
check=""
config=""
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) show_help "${BASH_SOURCE[0]}" && exit ;;
    --dry-run) dry_run=yes ;;
    --check) check=yes ;;
    --config=*) config=${1#*=} ;;
    --config)
      config=${2:-}
      if [ $# -gt 1 ]; then shift; fi
      ;;
    --) ;;
    *) flags+=("$1") ;;
  esac
  shift
done
if [ -n "$check" ]; then
  config=${config:-configs/default.py}
  flags=(--config.plan.topology=v5e:2x2
    --config.model.vocab=512 --config.model.width=256 --config.model.ffn=512
    --config.model.head_width=128 --config.model.dtype=bfloat16 --config.rollout.questions=4
    --config.rollout.group_size=2 --config.rollout.n_hybrid=1 --config.rollout.prompt_tokens=128
    --config.rollout.step_tokens=32 --config.rollout.observation_tokens=32
    --config.rollout.retrieved_tokens=32 --config.rollout.absorb_chunk=16
    --config.rollout.max_tokens=384
    --config.rl.micro_tokens=1536 "--config.rl.buckets=(384,)" ${flags[@]+"${flags[@]}"})
fi
if [ -z "$config" ]; then fail "--config is missing; see --help"; fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${PLAN_VENV:-$root/.venv-plan}
case $(flag_value config.plan.compile ${flags[@]+"${flags[@]}"}) in
  [Ff]alse) compilers=() ;;
  *)
    case $(flag_value config.plan.topology ${flags[@]+"${flags[@]}"}) in
      *v[0-9]*[hg]* | *[hg]*v[0-9]*) compilers=(-tpu -cuda) ;;
      *h[0-9]* | *gpu*) compilers=(-cuda) ;;
      *) compilers=(-tpu) ;;
    esac
    ;;
esac
if [ ! -x "$venv/bin/python" ]; then run "${PYTHON:-python3}" -m venv "$venv"; fi
for compiler in "" ${compilers[@]+"${compilers[@]}"}; do
  stamp=$venv/requirements$compiler.stamp
  wanted=$(cat "$root/requirements$compiler.txt" "$root"/requirements.lock | cksum)
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then continue; fi
  say "installing requirements$compiler.txt into $venv (minutes, once)"
  run "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -r "$root/requirements$compiler.txt" -c "$root/requirements.lock"
  if [ -z "$dry_run" ]; then printf '%s\n' "$wanted" >"$stamp"; fi
done

workdir=()
if [ -z "$(flag_value workdir ${flags[@]+"${flags[@]}"})" ]; then
  workdir=("--workdir=${TMPDIR:-/tmp}/rapo-plan")
fi
if [ -z "$check" ]; then cd "$start"; else cd "$root"; fi
# Without JAX_PLATFORMS jax would look for a TPU or a GPU here; without the others libtpu asks a
# cloud's metadata, and allows one process only.
run_last env JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 \
  TPU_STDERR_LOG_LEVEL=3 \
  "PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}" "$venv/bin/python" -m rapo_jax.main \
  "--config=$config" "--config.stages=('plan',)" --config.plan.compile=True \
  ${workdir[@]+"${workdir[@]}"} ${flags[@]+"${flags[@]}"}
