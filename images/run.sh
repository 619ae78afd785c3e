#!/bin/bash
# run.sh NAME [--mount SRC:DST[:ro]]... [--env K=V]... [--workdir DIR] -- CMD...: runs a command in an image, as the image's user (10001; s3: 65532), on
# the network and with the limits of the host. What it writes outside the mounts is gone afterwards; a mounted folder must be writable for that user
# where the command writes.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
[ $# -gt 0 ] || die "which image? usage: run.sh NAME [--mount SRC:DST[:ro]]... [--env K=V]... [--workdir DIR] -- CMD..."
image=$(reference "$1")
shift
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  [ $# -gt 1 ] || die "$1 needs a value"
  case $1 in
    --mount) options+=(--volume "$2") ;;
    --env) options+=(--env "$2") ;;
    --workdir) options+=(--workingdir "$2") ;;
    *) die "unknown option $1" ;;
  esac
  shift 2
done
[ $# -gt 1 ] || die "no command: give it after --"
shift
exec 9> "$store/run.lock"
flock --shared 9 # prune.sh waits for it
container=$("${bud[@]}" from --pull-never "$image") || die "there is no image $image yet: run build.sh"
trap '"${bud[@]}" rm "$container" > /dev/null' EXIT
"${bud[@]}" run --isolation chroot "${options[@]}" "$container" -- "$@" <&0 &
runner=$!

# buildah passes no signal on to the command, its great-grandchild; and a wait that a signal interrupts must go on until the command has ended.
trap 'kill "$(pgrep --parent "$(pgrep --parent "$(pgrep --parent "$runner")")")"' INT TERM
while true; do
  code=0
  wait "$runner" || code=$?
  kill -0 "$runner" 2> /dev/null || exit "$code"
done
