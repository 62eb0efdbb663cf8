#!/usr/bin/env bash
# Runs the tests. `bash launch/test.sh fast` leaves out those that compile models or start jobs: an
# answer within 90 seconds on two cores. Further arguments go to pytest: launch/test.sh tests/method
set -euo pipefail
# shellcheck disable=SC2034 # read by setup.sh
extras=tests
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

if [ "${1:-}" = fast ]; then
  shift
  set -- -m "not slow" "$@"
fi
# The path given by the caller, if any, replaces the whole suite.
paths=(tests)
for argument in "$@"; do
  if [ -e "${argument%%::*}" ]; then paths=(); fi
done
exec .venv/bin/python -m pytest -q -n 2 --dist loadfile ${paths[@]+"${paths[@]}"} "$@"
