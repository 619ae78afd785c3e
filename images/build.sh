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

# build NAME
build() {
  local started=$SECONDS image options
  image=$(reference "$1")
  options=(--layers --isolation chroot --build-arg "BASE=$BASE" --file "$root/images/${folder[$1]}/Dockerfile" --tag "$image")
  [ -z "${target[$1]}" ] || options+=(--target "${target[$1]}")
  [ -z "${SSL_CERT_FILE:-}" ] || options+=(--secret "id=ca,src=$SSL_CERT_FILE")
  if [ "$1" = s3 ]; then
    [ -x "$cache/bin/versitygw" ] || die "$cache/bin/versitygw is missing: run tests/devcluster/build first"
    options+=(--build-context "bin=$cache/bin")
  fi
  logged "$1" "${bud[@]}" build "${options[@]}" "$root"
  printf '%-30s %9s %4d s\n' "$image" "$("${bud[@]}" images --format '{{.Size}}' "$image" | tr -d ' ')" $((SECONDS - started))
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
for name; do build "$name"; done
