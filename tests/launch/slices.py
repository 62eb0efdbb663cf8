"""A simulated TPU slice of two workers, and calls of tpu_pod on it."""

from __future__ import annotations

import time

FLAGS = ("--config=configs/qwen7b.py", "--workdir=runs/x")
ODD = """--config.prompt.system=it's a "word" of $HOME & `two`; \\ done"""
SLICE = ("--name=rapo", "--zone=us-west4-a", "--type=v5litepod-16")

# A slice is a folder with a home for each of two workers; ssh is a shell there, scp a copy.
GCLOUD = """
homes=$CLOUD/homes; shift 3; action=$1; shift
for word in "$@"; do
  case $word in --worker=*) worker=${word#*=} ;; --command=*) command=${word#*=} ;; esac
done
if [ "$worker" = all ]; then worker='0 1'; fi
case $action in
  list)
    echo "other,READY,v4-8"
    if [ -d "$homes" ]; then echo "rapo,${STATE:-READY},${KIND:-v5litepod-16}"; fi ;;
  create) mkdir -p "$homes/0" "$homes/1" ;;
  delete) rm -rf "$homes" ;;
  ssh)
    if [ -n "$SHUFFLED" ] && [ "$worker" = '0 1' ]; then # every second time the other way round
      if ! rm "$CLOUD/order" 2>/dev/null; then touch "$CLOUD/order" && worker='1 0'; fi
    fi
    for k in $worker; do
      (cd "$homes/$k" && env -u SERPER_API_KEY HOME="$PWD" WORKER="$k" bash -c "$command") ||
        status=1
    done ;;
  scp)
    paths=(); for word in "$@"; do case $word in --*) ;; *) paths+=("$word") ;; esac; done
    if [ -n "$NO_WAY_BACK" ] && [[ ${paths[0]} = rapo:* ]]; then exit 1; fi
    for k in $worker; do
      cp -rL "${paths[0]/#rapo:/$homes/$k/}" "${paths[1]/#rapo:/$homes/$k/}"
    done ;;
esac
exit "${status:-0}"
"""
CURL = """#!/bin/bash
case ${@: -1} in
  */agent-worker-number) echo "$WORKER" ;;
  *) echo "x:8470:10.0.0.0,x:8470:10.0.0.1" ;;
esac
"""
SUDO = """
case "$1 $2 $4" in
  "mount -t 10.0.0.0:"*) rmdir runs && ln -s "$CLOUD/homes/0/${4#*/homes/1/}" runs ;;
esac
"""
# An ssh-agent that lists the keys of $AGENT; without it, none runs.
SSH_ADD = """#!/bin/bash
if [ -z "${AGENT+set}" ]; then exit 2; fi
if [ -z "$AGENT" ]; then echo "The agent has no identities." && exit 1; fi
for print in $AGENT; do echo "3072 $print me@here (RSA)"; done
"""
SSH_KEYGEN = """#!/bin/bash
if [ ! -f "$2" ]; then exit 255; fi
echo "3072 $(cat "$2") me@here (RSA)"
"""
MOUNTPOINT = '#!/bin/bash\n[ -L "$2" ]\n'
PROGRAMS = {
    "gcloud": GCLOUD, "curl": CURL, "sudo": SUDO, "mountpoint": MOUNTPOINT,
    "ssh-add": SSH_ADD, "ssh-keygen": SSH_KEYGEN,
}  # fmt: skip


def end(place, worker, status):
    written = place.cloud / f"written-{worker}"
    written.write_text(str(status))
    written.rename(place.cloud / f"end-{worker}")  # whole at once: a worker waits for the name


def pod(*flags):
    return ("tpu_pod", *SLICE, "--poll=0", *flags, "--", *FLAGS, ODD)


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
