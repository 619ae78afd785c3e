#!/bin/bash
# runtime-tests.sh [PYTEST ARGUMENTS]: the data plane's tests inside the trainer image, with a real S3 server.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
[ $# -gt 0 ] || set -- tests/runtime
[ -x "$cache/bin/versitygw" ] || "$devcluster/build"
exec "$root/images/run.sh" trainer-test --mount "$root:/src:ro" --mount "$cache/bin:/opt/bin:ro" --workdir /src \
  --env PYTHONPATH=/src/images/runtime:/src --env PYTHONDONTWRITEBYTECODE=1 --env HOME=/tmp --env "PATH=/opt/bin:/opt/venv/bin:/usr/local/bin:/usr/bin:/bin" \
  -- python3 -m pytest -p no:cacheprovider "$@"
