#!/bin/bash
# venv.sh: the development environment (.venv) from requirements-dev.lock, with hashes; a second run takes no time.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

python=python3.11
command -v "$python" > /dev/null || python=python3
"$python" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || die "Python 3.11 or newer is needed, found $("$python" -V)" "install python3.11 and put it first in PATH"
stamp=$root/.venv/.lock-sha256
want=$(sha256sum < "$root/requirements-dev.lock")
[ "$(cat "$stamp" 2> /dev/null)" != "$want" ] || exit 0

say "development environment"
if ! "$python" -c 'import ensurepip' 2> /dev/null; then
  apt-get -o DPkg::Lock::Timeout=600 -qq update
  apt-get -o DPkg::Lock::Timeout=600 -qq install -y --no-install-recommends python3-venv
fi
uv=$cache/uv/bin/uv
if [ ! -x "$uv" ]; then
  "$python" -m venv "$cache/uv"
  "$cache/uv/bin/pip" install --quiet --disable-pip-version-check --require-hashes --no-deps -r "$root/images/uv-requirements.txt"
fi
"$uv" venv --quiet --clear --python "$python" "$root/.venv"
VIRTUAL_ENV=$root/.venv "$uv" pip install --quiet --require-hashes -r "$root/requirements-dev.lock"
echo "$want" > "$stamp"
