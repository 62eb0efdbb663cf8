#!/usr/bin/env bash
# Runs the tests. `bash launch/test.sh fast` leaves out those that compile models or start jobs: an
# answer within 90 seconds on two cores. `bash launch/test.sh newest` runs these with the newest jax, in
# .venv-newest. Further arguments go to pytest: launch/test.sh tests/method
set -euo pipefail
# shellcheck disable=SC2034 # read by setup.sh
extras=tests
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python=.venv/bin/python
if [ "${1:-}" = newest ]; then
  shift
  set -- fast "$@"
  python=.venv-newest/bin/python
  if [ ! -x "$python" ]; then
    newest="" # the newest jax needs a newer Python than .venv may have
    for candidate in "${PYTHON:-}" python3.14 python3.13 python3.12; do
      if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
        newest=$candidate
        break
      fi
    done
    if [ -z "$newest" ]; then
      echo "test: no Python 3.12 or newer found, which the newest jax needs; install one, or name it: PYTHON=/path/to/python3.12 bash launch/test.sh newest" >&2
      exit 1
    fi
    "$newest" -m venv .venv-newest
  fi
  sed 's/^jax==[^ ]*/jax/' requirements.txt >.venv-newest/requirements.txt
  sed 's/^jax==[^ ]*/jax/' requirements-tests.txt >.venv-newest/requirements-tests.txt
  "$python" -m pip install --quiet --disable-pip-version-check --upgrade \
    -r .venv-newest/requirements.txt -r .venv-newest/requirements-tests.txt
fi

if [ "${1:-}" = fast ]; then
  shift
  set -- -m "not slow" "$@"
fi
# The path given by the caller, if any, replaces the whole suite.
paths=(tests)
for argument in "$@"; do
  if [ -e "${argument%%::*}" ]; then paths=(); fi
done
exec "$python" -m pytest -q -n 2 --dist loadfile ${paths[@]+"${paths[@]}"} "$@"
