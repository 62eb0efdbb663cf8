#!/usr/bin/env bash
# The main job on a laptop: cold start, Step-Trace Buffer, RL with RAPO, evaluation, report.html.
# Further flags are passed on and win: bash launch/local.sh --config.seed=1 --workdir=runs/seed1
set -euo pipefail
start=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
root=$PWD
cd "$start" # paths in the flags are relative to the caller's folder

flags=()
case " $* " in *" --config="* | *" --config "*) ;; *) flags+=("--config=$root/configs/tiny.py") ;; esac
case " $* " in *" --workdir="* | *" --workdir "*) ;; *) flags+=("--workdir=$root/runs/tiny") ;; esac

export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$root/.venv/bin/python" -m rapo_jax.main ${flags[@]+"${flags[@]}"} "$@"
