# shellcheck shell=bash
# Sourced by the launchers: commands that a dry run prints instead, messages, the program's flags.

dry_run=${dry_run:-} # yes: print, and run nothing

# quoted WORD...: the words as one line that a shell reads back as they are.
quoted() {
  local word mark="'" escaped="'\"'\"'" line=''
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_@%+=:,./-]*) word="'${word//$mark/$escaped}'" ;;
    esac
    line="$line $word"
  done
  printf '%s\n' "${line# }"
}

# run COMMAND...: runs it; a dry run prints it.
run() {
  if [ -n "$dry_run" ]; then quoted "$@"; else "$@"; fi
}

# run_last COMMAND...: the same for the last one: this shell becomes the command.
run_last() {
  if [ -n "$dry_run" ]; then
    quoted "$@"
    exit
  fi
  exec "$@"
}

# say MESSAGE: tells how far it is; a dry run gets nowhere.
say() {
  if [ -z "$dry_run" ]; then echo "$(basename "$0" .sh): $*" >&2; fi
}

# fail MESSAGE: ends with the status of a wrong call.
fail() {
  echo "$(basename "$0" .sh): $*" >&2
  exit 2
}

# show_help FILE: prints the comment at the file's top.
show_help() { sed -n '2,/^$/s/^# \{0,1\}//p' "$1"; }

# flag_value NAME FLAG...: the value of --NAME=VALUE or --NAME VALUE, the last one; '' without any.
flag_value() {
  local name=$1 value=''
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      "--$name="*) value=${1#*=} ;;
      "--$name") value=${2:-} ;;
    esac
    shift
  done
  printf '%s\n' "$value"
}

# need_flags FLAG...: refuses flags without a config or a workdir.
need_flags() {
  local name
  for name in config workdir; do
    if [ -z "$(flag_value "$name" "$@")" ]; then
      fail "--$name is missing; give the program's flags after --, as in -- --config=configs/qwen7b.py --workdir=runs/qwen7b"
    fi
  done
}

# need_below NAME FOLDER FLAG...: refuses a value of --NAME that is not a path below FOLDER.
need_below() {
  local name=$1 folder=$2 value
  shift 2
  value=$(flag_value "$name" "$@")
  case /$value/ in
    */../* | //* | */./*) ;;
    /"$folder"/?*) return ;;
  esac
  fail "--$name=$value: only $folder/ of this repository goes there; give a path below $folder/, relative to the repository"
}

# set_gpu_environment: fills gpu_environment with NAME=VALUE words. What the caller has set wins.
# The flag lets collectives overlap with compute (docs.jax.dev, "GPU performance tips"); JAX would
# take 75 % of a GPU's memory ("GPU memory allocation").
set_gpu_environment() {
  local flags="--xla_gpu_enable_latency_hiding_scheduler=true${XLA_FLAGS:+ $XLA_FLAGS}"
  gpu_environment=("XLA_FLAGS=$flags")
  if [ -z "${XLA_CLIENT_MEM_FRACTION:-}${XLA_PYTHON_CLIENT_MEM_FRACTION:-}" ]; then
    gpu_environment+=("XLA_CLIENT_MEM_FRACTION=0.9")
  fi
}
