#!/bin/bash
# build.sh [NAME...]: builds images with buildah, without a daemon or a registry, and prints one line for each.
# NAME: operator trainer-cpu trainer-test trainer-gpu inference-cpu inference-gpu s3; without a name, all but the two gpu images.
#   BASE           the base image; unset: a Debian made on this machine (base/mkbase.sh), once
#   SSL_CERT_FILE  when set, the CA bundle that downloads inside the builds trust; nothing of it stays in an image
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

# logged NAME CMD...: runs a step quietly; when it fails, shows the end of its log, which is kept
logged() {
  local log="$logs/image-$1.log"
  "${@:2}" > "$log" 2>&1 && return
  tail -n 30 "$log" >&2
  die "building '$1' failed; the whole log is $log"
}

make_base() {
  local dir
  dir=$(mktemp -d)
  # shellcheck disable=SC2064  # the folder's name now, not when the trap runs
  trap "rm -rf '$dir'" EXIT
  need mmdebstrap
  logged base "$root/images/base/mkbase.sh" bookworm "$dir"
  logged base "${bud[@]}" build --isolation chroot --tag "$base" "$dir"
  rm -rf "$dir"
}

# image_id REFERENCE: nothing when there is no such image here
image_id() { "${bud[@]}" images --quiet --no-trunc "$1" 2> /dev/null || true; }

# inputs: a digest of all that any of the builds reads
inputs() {
  {
    find "$root/.dockerignore" "$root/operator" "$root/images" -type f ! -path '*/__pycache__/*' -print0 | sort -z | xargs -0 sha256sum
    [ ! -e "$cache/bin/versitygw" ] || sha256sum "$cache/bin/versitygw"
    echo "$BASE $(image_id "$BASE")"
  } | sha256sum
}

# build NAME INPUTS: buildah takes seconds to find that nothing has changed, so that is asked first.
build() {
  local started=$SECONDS image options stamp="$store/$1.built"
  image=$(reference "$1")
  if [ "$(cat "$stamp" 2> /dev/null)" != "$2 $(image_id "$image")" ]; then
    options=(--layers --isolation chroot --build-arg "BASE=$BASE" --file "$root/images/${folder[$1]}/Dockerfile" --tag "$image")
    [ -z "${target[$1]}" ] || options+=(--target "${target[$1]}")
    [ -z "${SSL_CERT_FILE:-}" ] || options+=(--secret "id=ca,src=$SSL_CERT_FILE")
    if [ "$1" = s3 ]; then
      [ -x "$cache/bin/versitygw" ] || die "$cache/bin/versitygw is missing: run tests/devcluster/build first"
      options+=(--build-context "bin=$cache/bin")
    fi
    logged "$1" "${bud[@]}" build "${options[@]}" "$root"
    echo "$2 $(image_id "$image")" > "$stamp"
  fi
  printf '%-32s %8s %4d s\n' "$image" "$("${bud[@]}" images --format '{{.Size}}' "$image" | tr -d ' ')" $((SECONDS - started))
}

[ $# -gt 0 ] || set -- operator trainer-cpu trainer-test inference-cpu s3
for name; do reference "$name" > /dev/null; done
exec 9> "$store/build.lock"
flock 9
need buildah runc
if [ -z "${BASE:-}" ]; then
  BASE=$base
  "${bud[@]}" inspect --type image "$base" > /dev/null 2>&1 || make_base
fi
read_now=$(inputs)
for name; do build "$name" "$read_now"; done
