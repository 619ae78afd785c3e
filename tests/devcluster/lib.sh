# shellcheck shell=bash disable=SC2034  # the settings are read by the scripts that source this file
# Settings and helpers that every script of the dev cluster shares.
set -euo pipefail
umask 022

HERE=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
CACHE=${FINETUNE_CACHE:-$HOME/.cache/finetune-operator}
NAME=${DEVCLUSTER_NAME:-ftdev}         # names the node, the network namespace and the cgroup of this instance

TOOLS=$CACHE/bin                       # kubectl, helm, versitygw
BIN=$CACHE/devcluster/bin              # kube, containerd, runtime shim, ctr, cni/, pause, probe
IMG=$CACHE/devcluster/img              # OCI archives of the cluster itself; archive and manifests of Kueue
PKI=$CACHE/devcluster/pki/$NAME        # kept: certificates and the components' kubeconfigs
IMAGES=$CACHE/devcluster/containerd/$NAME  # kept: imported images
STATE=$CACHE/devcluster/state/$NAME    # thrown away by `down`: etcd, kubelet, volumes, forwards
LOGS=$CACHE/log/devcluster/$NAME       # one file a component, from the last `up` on
KUBECONFIG_FILE=$STATE/kubeconfig      # reaches the API server through a loopback forwarder
NETNS=/run/netns/$NAME
PYTHON=/usr/bin/python3                # Debian's own: no virtual environment or version manager in between

# Addresses repeat in every instance: each has a network namespace of its own.
NODE_IP=10.99.0.2
POD_CIDR=10.244.0.0/24
SERVICE_CIDR=10.96.0.0/16
API_SERVICE_IP=10.96.0.1
API_PORT=6443

say() { printf 'devcluster %s: %s\n' "$NAME" "$*"; }

# die CAUSE CURE
die() {
  printf 'devcluster %s: error: %s\n  cure: %s\n' "$NAME" "$1" "$2" >&2
  exit 1
}

[[ $NAME =~ ^[a-z][a-z0-9-]{0,30}[a-z0-9]$ ]] ||
  die "DEVCLUSTER_NAME '$NAME' is no valid name" "use 2 to 32 lower-case letters, digits and dashes"
case $CACHE/ in
  /run/* | /var/lib/* | /var/log/*)
    die "the cache '$CACHE' lies in a folder that the node replaces by its own" "set FINETUNE_CACHE to another" ;;
esac

require_root() { [ "$(id -u)" = 0 ] || die "this needs root (namespaces, mounts)" "run it as root"; }

# require_files CURE FILE...
require_files() {
  local cure=$1 file
  shift
  for file; do [ -e "$file" ] || die "$file is missing" "$cure"; done
}

# with_lock WHAT: from here to the end of the script only one process does WHAT. Background processes must close the
# descriptor (9>&-), or they hold the lock for as long as they live.
with_lock() {
  local file=$CACHE/devcluster/lock/$1
  mkdir -p "${file%/*}"
  exec 9> "$file"
  flock -w 300 9 || die "another process has held the lock $file for 5 minutes" "look for it: fuser -v $file"
}

# until_ok SECONDS COMMAND...: repeats COMMAND until it succeeds; fails when the time is over.
until_ok() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" > /dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.1
  done
}

# The node's process 1 (pid as the host sees it), if it lives. The command line is checked because pids are reused.
node_pid() {
  local pid
  pid=$(cat "$STATE/init.pid" 2> /dev/null) || return 1
  grep -qazx "$HERE/internal/init.sh" "/proc/$pid/cmdline" 2> /dev/null && echo "$pid"
}

require_up() { { node_pid > /dev/null && [ -e "$KUBECONFIG_FILE" ]; } || die "the cluster is not up" "run $HERE/up"; }

# in_node COMMAND...: runs a command in the node's mount, pid and network namespaces.
in_node() { nsenter --target "$(node_pid)" --mount --pid --net -- "$@"; }

ctr() { CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1 in_node "$BIN/ctr" --namespace k8s.io "$@"; }

# The discovery cache lies in the state: a new cluster at the same address must not meet the old one's.
kube() { KUBECONFIG=$KUBECONFIG_FILE KUBECACHEDIR=$STATE/kube-cache "$TOOLS/kubectl" "$@"; }

# api_ready HOST:PORT. curl, because a kubectl every 0.1 s takes processor time from the API server that starts.
api_ready() {
  curl --noproxy '*' --silent --fail --max-time 2 --output /dev/null --cacert "$PKI/ca.crt" "https://$1/readyz"
}

mode() { cat "$STATE/mode"; }          # full | control-plane

# write_kubeconfig FILE SERVER CLIENT: CLIENT names the certificate and key in the PKI folder.
write_kubeconfig() {
  local ca certificate key
  ca=$(base64 -w0 "$PKI/ca.crt") certificate=$(base64 -w0 "$PKI/$3.crt") key=$(base64 -w0 "$PKI/$3.key")
  (umask 077; cat > "$1") << YAML
apiVersion: v1
kind: Config
clusters: [{name: $NAME, cluster: {server: "$2", certificate-authority-data: $ca}}]
users: [{name: $3, user: {client-certificate-data: $certificate, client-key-data: $key}}]
contexts: [{name: $NAME, context: {cluster: $NAME, user: $3}}]
current-context: $NAME
YAML
}
