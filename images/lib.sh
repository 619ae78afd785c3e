# Sourced by the scripts beside it: where things are kept, and the names of the images.
# shellcheck shell=bash disable=SC2034  # the variables are for the scripts that source this file
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${FINETUNE_CACHE:-$HOME/.cache/finetune-operator}
archives=$cache/images logs=$cache/log store=$cache/buildah
base=localhost/debian:bookworm-slim
mkdir -p "$archives" "$logs" "$store"

# The files of an image: NAME -> Dockerfile's folder, target ("" for the only one) and reference.
declare -A folder=([operator]=operator [trainer-cpu]=trainer [trainer-test]=trainer [trainer-gpu]=trainer
  [inference-cpu]=inference [inference-gpu]=inference [s3]=s3)
declare -A target=([operator]="" [trainer-cpu]=cpu [trainer-test]=test [trainer-gpu]=gpu [inference-cpu]=cpu [inference-gpu]=gpu [s3]="")
declare -A tag=([operator]=dev [trainer-cpu]=cpu [trainer-test]=test [trainer-gpu]=gpu [inference-cpu]=cpu [inference-gpu]=gpu [s3]=dev)

die() {
  echo "${0##*/}: $*" >&2
  exit 1
}

# buildah with a store of our own
bud=(buildah --root "$store/storage" --runroot "$store/run" --storage-driver overlay)

# reference NAME: the image's full name, such as localhost/finetune/trainer:cpu
reference() {
  [ -n "${tag[$1]:-}" ] || die "no image is named '$1'; there are: $(printf '%s\n' "${!tag[@]}" | sort | xargs)"
  echo "localhost/finetune/${folder[$1]}:${tag[$1]}"
}

# need PACKAGE...: installs the Debian packages that are missing
need() {
  local missing=() package
  for package; do
    dpkg-query --show --showformat '${db:Status-Status}' "$package" 2> /dev/null | grep -qx installed || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || die "these Debian packages are missing: ${missing[*]}; install them, or run this as root"
  # Twice, because two runs of apt-get at once delete each other's downloads: the lock does not cover those.
  install_packages "${missing[@]}" || install_packages "${missing[@]}" || die "could not install ${missing[*]}; see $logs/apt.log"
}

install_packages() {
  local apt=(apt-get -o DPkg::Lock::Timeout=300)
  { "${apt[@]}" update && "${apt[@]}" install --yes --no-install-recommends "$@"; } > "$logs/apt.log" 2>&1
}
