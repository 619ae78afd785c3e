#!/bin/bash
# real-text.sh: SmolLM2-135M on real text inside the trainer image, plain with two seeds and on the fast path, one after the other. Raw figures: build/real-text.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"

model=$("$root/tests/fixtures/smollm2.sh")
mkdir -p "$root/build/real-text"
chmod 777 "$root/build/real-text" # the image's user writes into it
exec "$root/images/run.sh" trainer-test --mount "$root:/src:ro" --mount "$root/build/real-text:/results" --mount "$model:/opt/model:ro" --workdir /src \
  --env HOME=/tmp --env PYTHONPATH=/src/images/runtime:/src --env PYTHONDONTWRITEBYTECODE=1 \
  -- python3 -m hack.bench.gpu.prove real-text --model /opt/model --cpu --at-once 1 --seconds 14400 --results /results/real-text.json --folder /tmp "$@"
