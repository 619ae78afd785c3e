#!/usr/bin/env bash
# cgroups.sh make|remove: the instance's parent cgroup in every hierarchy (cgroup v1).
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

ROOT=/sys/fs/cgroup

make() {
  local hierarchy
  [ -d $ROOT/memory ] || die "this machine has no cgroup v1 hierarchies in $ROOT" \
    "use an ordinary cluster (kind, k3d) there and point KUBECONFIG to it"
  for hierarchy in cpu cpuacct cpuset memory devices freezer blkio pids hugetlb systemd; do
    [ -d "$ROOT/$hierarchy" ] || continue
    mkdir -p "$ROOT/$hierarchy/$NAME"
  done
  # A new cpuset is empty, and no process may enter an empty one.
  cat $ROOT/cpuset/cpuset.cpus > "$ROOT/cpuset/$NAME/cpuset.cpus"
  cat $ROOT/cpuset/cpuset.mems > "$ROOT/cpuset/$NAME/cpuset.mems"
  echo 1 > "$ROOT/cpuset/$NAME/cgroup.clone_children"
}

# Fails while a killed process still lingers in one of them.
remove() {
  local parent
  for parent in "$ROOT"/*/"$NAME"; do
    [ ! -d "$parent" ] || find "$parent" -depth -type d -exec rmdir {} + || return 1
  done
}

"$1"
