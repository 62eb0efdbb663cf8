# shellcheck shell=bash
# Sourced by the other scripts: goes to the repository root and makes .venv ready.
# Packages are installed again only when requirements.txt or requirements.lock has changed.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

if [ ! -x .venv/bin/python ]; then
  python=""
  for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
  if [ -z "$python" ]; then
    echo "setup: no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python3.11 bash $0" >&2
    exit 1
  fi
  echo "setup: making .venv with $("$python" --version)" >&2
  if ! "$python" -m venv .venv; then
    rm -rf .venv
    echo "setup: '$python -m venv' failed; on Debian or Ubuntu: apt-get install python3-venv" >&2
    exit 1
  fi
fi

if [ -z "$(.venv/bin/python -c 'import sys; print("ok" if sys.version_info >= (3, 11) else "")')" ]; then
  echo "setup: .venv holds $(.venv/bin/python --version), Python 3.11 or newer is needed; remove .venv and start again" >&2
  exit 1
fi

wanted=$(cat requirements.txt requirements.lock | cksum)
if [ "$(cat .venv/requirements.stamp 2>/dev/null)" != "$wanted" ]; then
  echo "setup: installing the packages of requirements.txt into .venv (minutes, once)" >&2
  if command -v uv >/dev/null; then
    uv pip install --quiet --python .venv/bin/python -r requirements.txt -c requirements.lock
  else
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c requirements.lock
  fi
  echo "$wanted" >.venv/requirements.stamp
fi
