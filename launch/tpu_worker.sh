#!/usr/bin/env bash
# The part of launch/tpu_pod.sh that runs on each worker of a TPU slice; not to be called by hand.
#
#   bash launch/tpu_worker.sh [--dry-run] setup [--extra=NAME...] [SERVER:/PATH]
#                                                                install .[tpu] and extras; share runs/
#   bash launch/tpu_worker.sh [--dry-run] start FLAG...          start rapo_jax.main, unless it runs
#   bash launch/tpu_worker.sh [--dry-run] state WORKDIR          print: worker K: running | ended STATUS | ...
#   bash launch/tpu_worker.sh [--dry-run] stop WORKDIR           end the run
#
#   --dry-run  print the commands, one per line, and run nothing (as worker 0 of 2)
#   --help     this text

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/commands.sh
case ${1:-} in
  --help | -h) show_help "launch/tpu_worker.sh" && exit ;;
  --dry-run) dry_run=yes && shift ;;
esac

# metadata NAME: prints an attribute of this machine.
metadata() {
  curl --silent --fail --retry 5 --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

# find_worker: sets `number` of this worker and `hosts`, the addresses of all workers in order.
find_worker() {
  if [ -n "$dry_run" ]; then
    number=0 hosts=(WORKER0 WORKER1)
    return
  fi
  number=$(metadata agent-worker-number)
  # shellcheck disable=SC2207 # addresses hold no spaces
  hosts=($(metadata worker-network-endpoints | tr ',' '\n' | cut -d: -f3))
}

# setup [--extra=NAME...] [EXPORT]: installs Python if needed and the packages, and shares runs/
# among the workers.
setup() {
  if ! python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
    ! command -v uv >/dev/null; then
    PATH=$HOME/.local/bin:$PATH
    command -v uv >/dev/null || run python3 -m pip install --quiet --user uv==0.13.9
  fi
  extras=tpu
  while [[ ${1:-} = --extra=* ]]; do
    extras+=" ${1#*=}"
    shift
  done
  source launch/setup.sh
  run mkdir -p runs
  if [ -n "${1:-}" ]; then
    mount_runs "$1"
  elif [ "${#hosts[@]}" -gt 1 ] && [ "$number" = 0 ]; then
    lend_runs
  elif [ "${#hosts[@]}" -gt 1 ]; then
    mount_runs "${hosts[0]}:$PWD/runs"
  fi
}

apt_install() {
  run sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
  run sudo apt-get -qq -o DPkg::Lock::Timeout=600 install -y "$1"
}

# lend_runs: exports runs/ of worker 0: all workers write into one checkpoint folder.
lend_runs() {
  local host
  command -v exportfs >/dev/null || apt_install nfs-kernel-server
  for host in "${hosts[@]:1}"; do
    run sudo exportfs -o "rw,no_subtree_check,all_squash,anonuid=$(id -u),anongid=$(id -g)" \
      "$host:$PWD/runs"
  done
}

mount_runs() {
  if mountpoint -q runs; then return; fi
  command -v mount.nfs >/dev/null || apt_install nfs-common
  for _ in $(seq 60); do # worker 0 may still be installing
    if run sudo mount -t nfs "$1" runs; then return; fi
    sleep 10
  done
  fail "$1 could not be mounted on runs"
}

# files_of WORKDIR: sets the files of this worker's log and of the run's exit status.
files_of() {
  log=$1/launch/worker-$number.log
  ended=$1/launch/worker-$number.exit
}

# The last run of this machine, in a folder that is not shared: its process, the start time of that
# (process numbers are reused), its workdir.
last=.run

# born PROCESS: prints a process's start time, which exec does not change; fails if it has ended.
born() {
  local stat
  { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return
  # shellcheck disable=SC2086 # fields from the third on, behind the name in brackets
  set -- ${stat##*) }
  if [ "$1" != Z ]; then echo "${20}"; else return 1; fi
}

# running: succeeds if the last run still runs; sets `process` and `workdir_there`.
running() {
  local begun now
  process=0 workdir_there=''
  if [ ! -f "$last" ]; then return 1; fi
  { read -r process && read -r begun && read -r workdir_there; } <"$last"
  now=$(born "$process") && [ "$now" = "$begun" ]
}

# take_keys: exports the variables that tpu_pod.sh has sent (--env), and removes their file.
take_keys() {
  local keys=../rapo_jax.env
  if [ -n "$dry_run" ]; then echo "# if $keys was sent:"; fi
  if [ -n "$dry_run" ] || [ -f "$keys" ]; then
    run source "$keys"
    run rm "$keys"
  fi
}

# start FLAG...: starts the run in a new session, so that it survives the connection.
start() {
  local workdir
  need_flags "$@"
  workdir=$(workdir_of "$@")
  take_keys
  if running; then
    if [ "$workdir_there" != "$workdir" ]; then fail "busy with $workdir_there"; fi
    echo "worker $number: runs already" && return
  fi
  files_of "$workdir"
  run mkdir -p "$workdir/launch"
  run rm -f "$ended"
  # the outer shell ignores SIGTERM, to write the exit status
  # shellcheck disable=SC2016 # the inner shell expands these
  set -- bash -c 'trap : TERM; "${@:2}"; status=$?; echo $status >"$1.new"; mv "$1.new" "$1"' \
    - "$PWD/$ended" env "PYTHONPATH=$PWD" PYTHONUNBUFFERED=1 \
    .venv/bin/python -m rapo_jax.main --config.distributed.mode=auto "$@"
  if [ -n "$dry_run" ]; then
    quoted setsid nohup "$@"
    return
  fi
  quoted "$@" >>"$log"
  setsid nohup "$@" </dev/null >>"$log" 2>&1 &
  printf '%s\n' "$!" "$(born "$!")" "$workdir" >"$last"
  echo "worker $number: started"
}

state() {
  files_of "$1"
  if running; then
    if [ "$workdir_there" != "$1" ]; then
      echo "worker $number: busy with $workdir_there"
    else
      echo "worker $number: running$(last_line)"
    fi
  elif [ -f "$ended" ]; then
    echo "worker $number: ended $(cat "$ended")$(last_line)"
  elif [ "$workdir_there" = "$1" ]; then
    echo "worker $number: ended 1 without an exit status: killed, or the machine was restarted"
  else
    echo "worker $number: idle"
  fi
}

last_line() {
  if [ "$number" = 0 ] || [ -f "$ended" ]; then tail -n 1 "$log" | sed 's/.*\r//; s/^/ | /'; fi
}

# stop: sends SIGTERM, which saves a checkpoint; after two minutes SIGKILL.
stop() {
  if ! running || [ "$workdir_there" != "$1" ]; then return; fi
  run pkill -TERM -P "$process" || true # it may just have ended. Only the program: it ends its tools itself
  for _ in $(seq 120); do
    if ! running; then return; fi
    sleep 1
  done
  run kill -KILL -- "-$process"
}

action=${1:-}
case $action in
  setup | start | state | stop) shift ;;
  *) fail "'$action': give setup, start, state or stop; see --help" ;;
esac
if [ "$action" != setup ] && [ -z "${1:-}" ]; then fail "$action: an argument is missing; see --help"; fi
find_worker
"$action" "$@"
