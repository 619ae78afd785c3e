#!/usr/bin/env bash
# Process 1 of the node's pid and mount namespaces: mounts the node's own folders and keeps every component running.
# Killing it ends every process and every mount of the cluster.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# --- mounts: the default paths (/var/lib/kubelet, /run/containerd, ...) work, and the machine's own are never touched
bind() { mount --bind "$1" "$2"; }

mount --make-rshared /
bind "$STATE/etc/resolv.conf" /etc/resolv.conf
bind "$STATE/var-log" /var/log
bind "$STATE/var-lib" /var/lib
mkdir -p /var/lib/containerd
bind "$IMAGES" /var/lib/containerd
bind "$STATE/run" /run

# The kubelet sets machine-wide sysctls. Here it meets files that hold the values it wants already, and the machine
# keeps its own.
while read -r name value; do
  mkdir -p "$(dirname "$STATE/sysctl/$name")"
  echo "$value" > "$STATE/sysctl/$name"
  bind "$STATE/sysctl/$name" "/proc/sys/$name"
done << 'SYSCTLS'
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
SYSCTLS

# --- components
# keep NAME COMMAND...: starts COMMAND again whenever it ends
keep() {
  local name=$1
  shift
  while :; do
    "$@" && code=0 || code=$?
    echo "--- $name exited with $code at $(date +%T)"
    sleep 1
  done >> "$LOGS/$name.log" 2>&1 &
}

# Thousands of test objects are normal here: the client-side rate limits of a production cluster only slow tests down.
CLIENT=(--kube-api-qps 300 --kube-api-burst 600)

etcd() {
  keep etcd "$BIN/kube" etcd --data-dir "$STATE/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
    --initial-cluster default=http://127.0.0.1:2380
}

apiserver() {
  keep kube-apiserver "$BIN/kube" kube-apiserver --etcd-servers http://127.0.0.1:2379 --profiling=false \
    --advertise-address "$NODE_IP" --secure-port "$API_PORT" --service-cluster-ip-range "$SERVICE_CIDR" \
    --allow-privileged --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction \
    --client-ca-file "$PKI/ca.crt" --tls-cert-file "$PKI/apiserver.crt" --tls-private-key-file "$PKI/apiserver.key" \
    --kubelet-certificate-authority "$PKI/ca.crt" --kubelet-preferred-address-types InternalIP \
    --kubelet-client-certificate "$PKI/apiserver-kubelet.crt" --kubelet-client-key "$PKI/apiserver-kubelet.key" \
    --service-account-issuer https://kubernetes.default.svc.cluster.local \
    --service-account-key-file "$PKI/service-account.pub" \
    --service-account-signing-key-file "$PKI/service-account.key" \
    --requestheader-client-ca-file "$PKI/front-proxy-ca.crt" --requestheader-allowed-names front-proxy-client \
    --requestheader-extra-headers-prefix X-Remote-Extra- --requestheader-group-headers X-Remote-Group \
    --requestheader-username-headers X-Remote-User --enable-aggregator-routing \
    --proxy-client-cert-file "$PKI/front-proxy.crt" --proxy-client-key-file "$PKI/front-proxy.key"
}

controller_manager() {
  local config=$PKI/controller-manager.kubeconfig
  keep kube-controller-manager "$BIN/kube" kube-controller-manager --kubeconfig "$config" --profiling=false \
    --authentication-kubeconfig "$config" --authorization-kubeconfig "$config" --bind-address 127.0.0.1 \
    --leader-elect=false --use-service-account-credentials --root-ca-file "$PKI/ca.crt" \
    --service-account-private-key-file "$PKI/service-account.key" --cluster-cidr "$POD_CIDR" \
    --cluster-signing-cert-file "$PKI/ca.crt" --cluster-signing-key-file "$PKI/ca.key" \
    --requestheader-client-ca-file "$PKI/front-proxy-ca.crt" --pvclaimbinder-sync-period 2s "${CLIENT[@]}"
}

scheduler() {
  local config=$PKI/scheduler.kubeconfig
  keep kube-scheduler "$BIN/kube" kube-scheduler --kubeconfig "$config" --profiling=false --leader-elect=false \
    --authentication-kubeconfig "$config" --authorization-kubeconfig "$config" --bind-address 127.0.0.1 "${CLIENT[@]}"
}

containerd() { keep containerd "$BIN/containerd" --config "$STATE/etc/containerd.toml" --log-level warn; }

kubelet() {
  keep kubelet "$BIN/kube" kubelet --config "$STATE/etc/kubelet.yaml" --kubeconfig "$PKI/kubelet.kubeconfig" \
    --hostname-override "$NAME" --node-ip "$NODE_IP"
}

proxy() { keep kube-proxy "$BIN/kube" kube-proxy --config "$STATE/etc/kube-proxy.yaml"; }

dns() { keep coredns "$BIN/kube" coredns -conf "$STATE/etc/Corefile"; }

etcd
apiserver
[ "$(mode)" = control-plane ] || containerd
# Every other component would start in vain and then wait for its restart.
until api_ready "$NODE_IP:$API_PORT"; do sleep 0.1; done
controller_manager
if [ "$(mode)" = full ]; then
  kubelet
  scheduler
  proxy
  dns
fi

# As process 1 it also reaps the orphans that containers leave; bash does so while it waits.
while :; do wait -n || sleep 0.1; done
