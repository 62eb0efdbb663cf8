#!/usr/bin/env bash
# One run on a Cloud TPU slice: creates or reuses the slice, copies this repository, installs .[tpu],
# starts the same command on all workers, waits for its end, fetches the results.
#
#   bash launch/tpu_pod.sh --name=rapo --zone=us-west4-a --type=v5litepod-64 --shared=SERVER:/PATH \
#       [FLAG...] -- --config=configs/qwen7b.py --workdir=runs/qwen7b
#
# It needs the Google Cloud CLI, logged in. To reach several workers at once, gcloud wants its key in
# ssh-agent: ssh-add ~/.ssh/google_compute_engine. Flags after -- are passed to rapo_jax.main on every
# worker. The run does not depend on this terminal: after ctrl-C or a lost connection, the same command
# waits for it again. The same command also continues an interrupted run; on a new slice, from the
# results that were fetched before. The exit status is that of the run.
#
#   --name=NAME     of the slice                                       (or TPU_NAME)
#   --zone=ZONE     for example us-west4-a                             (or TPU_ZONE)
#   --type=TYPE     accelerator type: v5litepod-64, v5p-32, v6e-16     (or TPU_TYPE)
#   --project=ID    default: the one that gcloud is configured with    (or TPU_PROJECT)
#   --version=NAME  TPU software version; default: the one for --type  (or TPU_VERSION)
#   --create=FLAG   a further flag for creating the slice: --create=--network=NET; may be repeated
#   --ssh=FLAG      a further flag for each ssh and scp: --ssh=--internal-ip; may be repeated
#   --prepare=CMD   run on every worker before the start, in the repository: fetch a model, mount a disk
#   --env=NAME      an environment variable of yours that the run and --prepare get, such as
#                   SERPER_API_KEY; its value is on no command line; may be repeated
#   --extra=NAME    optional requirements: wandb or mcp; may be repeated
#   --shared=S:/P   NFS export to hold runs/; default: worker 0 exports its disk to the others, which is
#                   too small for checkpoints of a large model: three times 12 bytes a parameter
#   --poll=SECONDS  between two checks of the run; default 60
#   --delete        delete the slice once the run has ended or failed and its results are fetched
#   --dry-run       print the commands, one per line, and run nothing
#   --help          this text
#
# Without --delete the slice stays, and costs money. Results are on it alone until they are fetched;
# then an earlier local copy is kept as WORKDIR.before.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
source "$(dirname "${BASH_SOURCE[0]}")/tpu_keys.sh"
name=${TPU_NAME:-} zone=${TPU_ZONE:-} type=${TPU_TYPE:-} project=${TPU_PROJECT:-}
version=${TPU_VERSION:-} prepare='' shared='' poll=60 delete='' create=() ssh=() variables=() extras=()
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) show_help "${BASH_SOURCE[0]}" && exit ;;
    --dry-run) dry_run=yes ;;
    --delete) delete=yes ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --create=--*) create+=("${1#*=}") ;;
    --ssh=--*) ssh+=("${1#*=}") ;;
    --prepare=*) prepare=${1#*=} ;;
    --env=*) need_variable "${1#*=}" && variables+=("${1#*=}") ;;
    --extra=*) need_extra "${1#*=}" && extras+=("$1") ;;
    --shared=?*:/*) shared=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --) shift && break ;;
    *) fail "$1: no such flag or value; see --help. Flags of the program come after --" ;;
  esac
  shift
done
case $poll in '' | *[!0-9]*) fail "--poll=$poll: give whole seconds" ;; esac
for flag in name zone type; do
  if [ -z "${!flag}" ]; then fail "--$flag is missing; see --help"; fi
done
need_flags "$@"
need_below config configs "$@"
need_below workdir runs "$@"
workdir=$(workdir_of "$@")
if [ -z "$version" ]; then # cloud.google.com/tpu/docs/runtimes
  case $type in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
    *) fail "--type=$type: its software version is not known here; name it: --version=NAME" ;;
  esac
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# tpu COMMAND...: a command of gcloud for this zone and project.
tpu() {
  run gcloud compute tpus tpu-vm "$@" "--zone=$zone" ${project:+"--project=$project"} --quiet
}
remote() { tpu ssh "$name" "--worker=$1" "--command=$2" ${ssh[@]+"${ssh[@]}"}; }
worker() { remote all "bash rapo_jax/launch/tpu_worker.sh $(quoted "$@")"; }
copy() { tpu scp "$@" ${ssh[@]+"${ssh[@]}"}; }

# comment TEXT: in a dry run, prints a comment on the next command.
comment() { if [ -n "$dry_run" ]; then echo "# $*"; fi; }

list_slices() { tpu list '--format=csv[no-heading](name.basename(),state,acceleratorType)'; }

# slice_state: prints READY, CREATING ...; nothing if there is no such slice.
slice_state() {
  local line found
  found=$(list_slices) || exit
  while IFS=, read -r listed state kind; do
    if [ "$listed" != "$name" ]; then continue; fi
    if [ "$kind" != "$type" ]; then
      fail "--type=$type: the slice $name exists and is a $kind; give its type, or another --name"
    fi
    echo "$state"
  done <<<"$found"
}

# make_slice: creates the slice if it does not exist; then made=yes.
make_slice() {
  local state='' tries
  made=''
  if [ -n "$dry_run" ]; then
    list_slices
  else
    state=$(slice_state)
  fi
  case $state in
    READY) say "reusing the slice $name" && return ;;
    '') ;;
    *)
      say "the slice $name is $state; wait until it is READY, or delete it: $(delete_line)"
      exit 1
      ;;
  esac
  comment "if the slice does not exist:"
  need_ssh_key
  tpu create "$name" "--accelerator-type=$type" "--version=$version" ${create[@]+"${create[@]}"}
  made=yes
  comment "until it responds:"
  for tries in 1 2 3 4 5 6 7 8 9 10; do
    if remote all true; then return; fi
    say "the new slice does not respond yet (try $tries of 10)"
    sleep "$poll"
  done
  exit 1
}

delete_line() { dry_run=yes tpu delete "$name"; }

# install: copies this repository to every worker, installs its packages and shares runs/.
install() {
  local archive files
  archive=${TMPDIR:-/tmp}/rapo_jax-$name.tgz
  files=(rapo_jax configs launch pyproject.toml README.md LICENSE requirements.lock)
  files+=(requirements.txt requirements-tpu.txt requirements-cuda.txt requirements-mcp.txt)
  files+=(requirements-wandb.txt requirements-tests.txt)
  run tar -czf "$archive" --exclude=__pycache__ -C "$root" "${files[@]}"
  copy "$archive" "$name:rapo_jax.tgz" --worker=all
  run rm "$archive"
  remote all "mkdir -p rapo_jax && cd rapo_jax && rm -rf rapo_jax configs launch && tar -xzf ../rapo_jax.tgz"
  worker setup ${extras[@]+"${extras[@]}"} ${shared:+"$shared"}
}

# restore: copies the results that were fetched from an earlier slice to one that has none.
restore() {
  local there="rapo_jax/$workdir" answer=''
  if [ -z "$dry_run" ] && [ ! -d "$root/$workdir" ]; then return; fi
  comment "if $workdir was fetched from an earlier slice and is not on this one:"
  if [ -n "$dry_run" ]; then
    remote 0 "if [ -e $(quoted "$there") ]; then echo there; fi"
  else
    answer=$(remote 0 "if [ -e $(quoted "$there") ]; then echo there; fi")
  fi
  if [[ $answer == *there* ]]; then return; fi
  say "copying $workdir to the slice"
  remote 0 "$(quoted mkdir -p "$(dirname "$there")") && $(quoted rm -rf "$there.part")"
  copy --recurse "$root/$workdir" "$name:$there.part" --worker=0
  remote 0 "$(quoted mv "$there.part" "$there")"
}

# fetch: copies the results from worker 0; an earlier local copy becomes WORKDIR.before.
fetch() {
  local here="$root/$workdir"
  run mkdir -p "$(dirname "$here")"
  run rm -rf "$here.part"
  copy --recurse "$name:rapo_jax/$workdir" "$here.part" --worker=0 || return 1
  if [ -n "$dry_run" ] || [ -e "$here" ]; then
    comment "if there is an earlier $workdir here:"
    run rm -rf "$here.before"
    run mv "$here" "$here.before" || return 1
  fi
  comment "then:"
  run mv "$here.part" "$here"
}

# look: sets `states` to a line for each worker: worker K: running | ended STATUS | idle | busy ...
# In the order of their numbers: gcloud prints the answers as they come.
look() {
  local answer
  answer=$(remote all "$(state_line)") || return 1
  states=$(grep '^worker [0-9]*: ' <<<"$answer" | sort -V || true)
}

state_line() {
  echo "if [ -e rapo_jax/launch ]; then bash rapo_jax/launch/tpu_worker.sh state $(quoted "$workdir"); fi"
}

# wait_for_end: waits until no worker runs; sets `status` to that of the first failed worker, or 0.
wait_for_end() {
  local silent=0 failing=0 shown='' bad='' ended
  while :; do
    if ! look; then
      silent=$((silent + 1))
      if [ "$silent" -ge 10 ]; then
        say "the slice does not respond; its state: $(slice_state). Nothing was deleted; run the same command to wait again"
        exit 1
      fi
    else
      silent=0
      if [ "$states" != "$shown" ]; then echo "$states" && shown=$states; fi
      ended=$(sed -n 's/^worker [0-9]*: ended \([1-9][0-9]*\).*/\1/p' <<<"$states")
      bad=${bad:-${ended%%[!0-9]*}}
      if ! grep -q ': running' <<<"$states"; then break; fi
      if [ -n "$bad" ]; then failing=$((failing + 1)); fi
      if [ "$failing" -eq 5 ]; then # the others wait for the failed worker
        say "a worker ended with status $bad and others still run: ending them"
        worker stop "$workdir" || say "not all could be ended; waiting for them"
      fi
    fi
    sleep "$poll"
  done
  status=${bad:-0}
  if grep -qv ': ended' <<<"$states"; then status=${bad:-1}; fi # a worker without a run
}

make_slice
attached=''
if [ -n "$dry_run" ]; then
  comment "if the slice exists, checks whether the run is active; then only waits for its end:"
  remote all "$(state_line)"
elif [ -z "$made" ]; then
  look || { say "the slice $name does not respond; nothing was changed" && exit 1; }
  case $states in
    *': busy'*) fail "--workdir=$workdir: the slice runs another job: $(grep -m 1 busy <<<"$states")" ;;
    *': running'*) attached=yes && say "the run is active; waiting for its end" ;;
  esac
fi
if [ -z "$attached" ]; then
  install
  restore
  send_keys
  if [ -n "$prepare" ]; then remote all "cd rapo_jax && ${variables[*]:+. ../$keys && }$prepare"; fi
  worker start "$@"
  keys_taken
  say "started; logs are in $workdir/launch on the slice; ctrl-C here does not stop the run"
fi
status=0
if [ -n "$dry_run" ]; then
  comment "every $poll s until no worker runs; stop if one failed and others still run:"
  remote all "$(state_line)"
  worker stop "$workdir"
else
  wait_for_end
fi
say "the run ended with status $status; fetching $workdir"
if ! fetch; then
  say "the results were not fetched, and nothing is deleted; run the same command to try again"
  exit 1
fi
if [ -n "$delete" ]; then
  tpu delete "$name"
else
  say "the slice stays, and costs money; to delete it: $(delete_line)"
fi
exit "$status"
