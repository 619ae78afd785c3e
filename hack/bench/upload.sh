#!/bin/bash
# upload.sh: uploads of a checkpoint by our commit, s5cmd and boto3 inside the trainer image, and what they cost the training.
# SIZE: of the checkpoint in GiB, 2; ROUNDS: 3.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"

[ -x "$cache/bin/versitygw" ] || "$devcluster/build"
if [ ! -x "$cache/bin/s5cmd" ] || [ "$root/hack/bench/s5cmd/go.sum" -nt "$cache/bin/s5cmd" ]; then
  say "building s5cmd"
  (cd "$root/hack/bench/s5cmd" && CGO_ENABLED=0 GOCACHE=$cache/gocache GOFLAGS=-buildvcs=false go build -trimpath -ldflags "-s -w" -o "$cache/bin/s5cmd" github.com/peak/s5cmd/v2)
fi
model=$("$root/tests/fixtures/smollm2.sh")
say "the S3 server, its client and the training share the $(nproc) cores of this machine"
exec "$root/images/run.sh" trainer-test --mount "$root:/src:ro" --mount "$cache/bin/versitygw:/opt/versitygw:ro" --mount "$cache/bin/s5cmd:/opt/s5cmd:ro" \
  --mount "$model:/opt/model:ro" --workdir /src --env HOME=/tmp --env PYTHONPATH=/src/images/runtime:/src --env PYTHONDONTWRITEBYTECODE=1 \
  -- python3 -m hack.bench --versitygw /opt/versitygw --s5cmd /opt/s5cmd --model /opt/model --gib "${SIZE:-2}" --rounds "${ROUNDS:-3}"
