#!/bin/bash
# gpu-image.sh: builds the trainer's gpu image, the one that ships, and trains 20 steps in it. Needs no GPU.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
[ -x "$cache/bin/versitygw" ] || "$devcluster/build"
"$root/images/build.sh" trainer-gpu
exec "$root/images/run.sh" trainer-gpu --mount "$root:/src:ro" --mount "$cache/bin/versitygw:/opt/versitygw:ro" --workdir /src \
  --env VERSITYGW=/opt/versitygw --env HOME=/tmp --env PYTHONPATH=/src/images/runtime:/src --env PYTHONDONTWRITEBYTECODE=1 \
  -- python3 -m tests.gpu.image_check
