#!/bin/bash
# mkbase.sh SUITE DIR: writes DIR/rootfs.tar and DIR/Dockerfile, a minimal Debian made from Debian's own archive. It stands in for the official
# debian:SUITE-slim where no registry can be reached; ../build.sh imports it as localhost/debian:SUITE-slim.
set -euo pipefail
suite=$1 dir=$2
# As in the official image, apt keeps neither packages nor its 80 MB of caches after an installation.
cat > "$dir/90clean" <<'APT'
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Acquire::Languages "none";
APT
# resolv.conf and hostname are this machine's: mmdebstrap copies them in for its own use.
# shellcheck disable=SC2016  # mmdebstrap expands $1 in its hook
mmdebstrap --quiet --variant=minbase \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --customize-hook='rm -f "$1"/etc/resolv.conf "$1"/etc/hostname "$1"/var/cache/apt/*.bin' \
  --customize-hook="copy-in $dir/90clean /etc/apt/apt.conf.d" \
  "$suite" "$dir/rootfs.tar"
cat > "$dir/Dockerfile" <<'DOCKERFILE'
FROM scratch
ADD rootfs.tar /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["bash"]
DOCKERFILE
