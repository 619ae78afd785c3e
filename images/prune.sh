#!/bin/bash
# prune.sh [--all]: frees disk: containers that an interrupted run.sh left, layers that no image uses, and their compressed copies.
# --all also removes every image, the base, and the archives: the next build starts from nothing.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
exec 7> "$archives/lock" 8> "$store/run.lock" 9> "$store/build.lock"
flock 7
flock 8
flock 9
before=$(du -sm "$store" "$archives" --total | tail -n 1 | cut -f 1)
"${bud[@]}" rm --all > /dev/null
if [ "${1:-}" = --all ]; then
  "${bud[@]}" rmi --all --force > /dev/null
  rm -rf "${archives:?}"/*
else
  "${bud[@]}" rmi --prune > /dev/null
  for blob in "$archives"/blobs/*.zst; do
    digest=$(basename "$blob" .zst)
    grep -q "sha256:$digest" "$store/storage/overlay-layers/layers.json" || rm -f "${blob%.zst}".{zst,json}
  done
fi
after=$(du -sm "$store" "$archives" --total | tail -n 1 | cut -f 1)
echo "freed $((before - after)) MB of $before MB"
