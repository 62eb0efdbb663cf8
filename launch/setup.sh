# shellcheck shell=bash
# Sourced by the other scripts: changes to the repository root and prepares .venv.
# `extras` lists further requirements: tests, cuda, tpu, wandb, mcp. Packages are installed again only
# for a new extra or a changed requirements file. dry_run=yes only prints.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
source launch/commands.sh

# Launches that begin at once, such as jobs of a cluster, install one after another.
locks=''
if [ -z "$dry_run" ] && [ -w . ] && command -v flock >/dev/null; then locks=yes; fi
if [ -n "$locks" ]; then exec 9>.setup.lock && flock 9; fi

if [ ! -x .venv/bin/python ]; then
  python=""
  for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
  if [ -n "$python" ]; then
    echo "setup: making .venv with $("$python" --version)" >&2
    if ! run "$python" -m venv .venv; then
      rm -rf .venv
      echo "setup: '$python -m venv' failed; on Debian or Ubuntu: apt-get install python3-venv" >&2
      exit 1
    fi
  elif [ -n "$dry_run" ] || command -v uv >/dev/null; then
    echo "setup: making .venv with a Python that uv fetches" >&2
    run uv venv --quiet --python 3.11 .venv
  else
    echo "setup: no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python3.11 bash $0" >&2
    exit 1
  fi
fi

if [ -x .venv/bin/python ] &&
  [ -z "$(.venv/bin/python -c 'import sys; print("ok" if sys.version_info >= (3, 11) else "")')" ]; then
  echo "setup: .venv holds $(.venv/bin/python --version), Python 3.11 or newer is needed; remove .venv and start again" >&2
  exit 1
fi

# Line 1 of the stamp is a checksum of the installed requirements files, line 2 the installed extras.
stamp=.venv/requirements.stamp
wanted=$(cat requirements*.txt requirements.lock | cksum)
there=$(sed -n 2p "$stamp" 2>/dev/null || true)
both=$there
for extra in ${extras:-}; do
  case " $both " in *" $extra "*) ;; *) both="${both:+$both }$extra" ;; esac
done
if [ "$(sed -n 1p "$stamp" 2>/dev/null)" != "$wanted" ] || [ "$both" != "$there" ]; then
  requirements=(-r requirements.txt)
  for extra in $both; do requirements+=(-r "requirements-$extra.txt"); done
  echo "setup: installing requirements.txt${both:+ and its extras $both} into .venv (minutes, once)" >&2
  if command -v uv >/dev/null; then
    run uv pip install --quiet --python .venv/bin/python "${requirements[@]}" -c requirements.lock
  else
    if [ -z "$dry_run" ] && ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
      .venv/bin/python -m ensurepip --upgrade >/dev/null # the making of .venv was interrupted
    fi
    run .venv/bin/python -m pip install --quiet --disable-pip-version-check "${requirements[@]}" -c requirements.lock
  fi
  if [ -z "$dry_run" ]; then printf '%s\n%s\n' "$wanted" "$both" >"$stamp"; fi
fi
if [ -n "$locks" ]; then exec 9>&-; fi
