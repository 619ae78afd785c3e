#!/bin/bash
# export.sh NAME...: writes each image to CACHE/images/NAME.oci.tar, unless that file holds the image as it is now, and prints the path.
# The archives are for `ctr images import`; they name the image as build.sh does.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
[ $# -gt 0 ] || die "which images? usage: export.sh NAME..."
need zstd
mkdir -p "$archives/blobs"
exec 9> "$archives/lock"
flock 9
for name; do
  image=$(reference "$name")
  archive=$archives/$name.oci.tar
  id=$("${bud[@]}" images --quiet --no-trunc "$image" 2> "$logs/export.log") || die "there is no image $image yet: run build.sh $name"
  if [ ! -e "$archive" ] || [ "$(cat "$archive.id" 2> /dev/null)" != "$id" ]; then
    rm -f "$archive.id"
    PYTHONPATH=$root/images python3 -m oci_export "$store/storage" "$image" "$archive" "$archives/blobs"
    echo "$id" > "$archive.id"
  fi
  echo "$archive"
done
