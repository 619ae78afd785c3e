#!/bin/bash
# runtime-tests.sh [PYTEST ARGUMENTS]: the data plane's tests inside the trainer image, with a real S3 server.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
[ $# -gt 0 ] || set -- tests/runtime
[ -x "$cache/bin/versitygw" ] || "$devcluster/build"
exec "$root/images/run.sh" trainer-test --mount "$root:/src:ro" --mount "$cache/bin/versitygw:/opt/versitygw:ro" --workdir /src \
  --env VERSITYGW=/opt/versitygw --env HOME=/tmp --env PYTHONPATH=/src/images/runtime:/src --env PYTHONDONTWRITEBYTECODE=1 \
  -- python3 -m pytest -c tests/runtime/pytest.ini --rootdir /src --basetemp /tmp/pytest "$@"
