# shellcheck shell=bash
# Sourced by the launchers: functions for dry runs, messages and the flags of the program.

dry_run=${dry_run:-} # yes: print, and run nothing

# quoted WORD...: prints the words as one line, quoted for a shell.
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

# run COMMAND...: runs it; in a dry run, prints it.
run() {
  if [ -n "$dry_run" ]; then quoted "$@"; else "$@"; fi
}

# run_last COMMAND...: the same, and ends the script: the shell is replaced by the command.
run_last() {
  if [ -n "$dry_run" ]; then
    quoted "$@"
    exit
  fi
  exec "$@"
}

# say MESSAGE: prints progress; nothing in a dry run.
say() {
  if [ -z "$dry_run" ]; then echo "$(basename "$0" .sh): $*" >&2; fi
}

# fail MESSAGE: prints an error and ends with status 2.
fail() {
  echo "$(basename "$0" .sh): $*" >&2
  exit 2
}

# show_help FILE: prints the comment at the file's top.
show_help() { sed -n '2,/^$/s/^# \{0,1\}//p' "$1"; }

# flag_value NAME FLAG...: prints the last value of --NAME=VALUE or --NAME VALUE, or an empty line.
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

# workdir_of FLAG...: prints the value of --workdir without slashes at its end.
workdir_of() {
  local value
  value=$(flag_value workdir "$@")
  while [ "$value" != "${value%/}" ]; do value=${value%/}; done
  printf '%s\n' "$value"
}

# need_flags FLAG...: fails if --config or --workdir is missing.
need_flags() {
  local name
  for name in config workdir; do
    if [ -z "$(flag_value "$name" "$@")" ]; then
      fail "--$name is missing; give the program's flags after --, as in -- --config=configs/qwen7b.py --workdir=runs/qwen7b"
    fi
  done
}

# need_below NAME FOLDER FLAG...: fails if the value of --NAME is not a path below FOLDER.
need_below() {
  local name=$1 folder=$2 value
  shift 2
  value=$(flag_value "$name" "$@")
  while [ "$value" != "${value%/}" ]; do value=${value%/}; done
  case /$value/ in
    */../* | //* | */./*) ;;
    /"$folder"/?*) return ;;
  esac
  fail "--$name=$value: only $folder/ of this repository is copied; give a path below $folder/, relative to the repository"
}

# need_variable NAME: fails unless NAME is that of an environment variable that is set. Its value is
# never printed, nor a NAME that is none: it could be the value.
need_variable() {
  case $1 in
    '' | [0-9]* | *[!A-Za-z0-9_]*) fail "--env: give the name of an environment variable (letters, digits and _), not its value" ;;
  esac
  if [ -z "$(printenv "$1")" ]; then
    fail "--env=$1: this environment variable is empty or not set; export it first: export $1=..."
  fi
}

# need_extra NAME: fails unless NAME is an extra that a run may need on any machine.
need_extra() {
  case $1 in
    mcp | wandb) ;;
    *) fail "--extra=$1: give mcp or wandb" ;;
  esac
}

# set_gpu_environment: sets gpu_environment to NAME=VALUE words; variables of the caller win.
# The flag overlaps collectives with compute (docs.jax.dev, "GPU performance tips"); by default JAX
# takes only 75 % of a GPU's memory ("GPU memory allocation").
set_gpu_environment() {
  local flags="--xla_gpu_enable_latency_hiding_scheduler=true${XLA_FLAGS:+ $XLA_FLAGS}"
  gpu_environment=("XLA_FLAGS=$flags")
  if [ -z "${XLA_CLIENT_MEM_FRACTION:-}${XLA_PYTHON_CLIENT_MEM_FRACTION:-}" ]; then
    gpu_environment+=("XLA_CLIENT_MEM_FRACTION=0.9")
  fi
}
