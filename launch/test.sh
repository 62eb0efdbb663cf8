#!/usr/bin/env bash
# Passes the tests. Further arguments go to pytest: bash launch/test.sh tests/method -k entropy
set -euo pipefail
# shellcheck disable=SC2034 # read by setup.sh
extras=tests
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# The path given by the caller, if any, replaces the whole suite.
paths=(tests)
for argument in "$@"; do
  if [ -e "${argument%%::*}" ]; then paths=(); fi
done
exec .venv/bin/python -m pytest -q -n 2 --dist loadfile ${paths[@]+"${paths[@]}"} "$@"
