#!/usr/bin/env bash
# Makes the certificate authorities, certificates and component kubeconfigs of one instance (about 1 s, once).
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

fingerprint=$(cat "${BASH_SOURCE[0]}" "$HERE/lib.sh" | sha256sum)
[ "$(cat "$PKI/fingerprint" 2> /dev/null)" != "$fingerprint" ] || exit 0
rm -rf "$PKI"
umask 077
mkdir -p "$PKI"
cd "$PKI"

DAYS=3650

new_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }

# authority NAME
authority() {
  new_key "$1"
  openssl req -x509 -new -key "$1.key" -sha256 -days $DAYS -subj "/CN=$1" -out "$1.crt"
}

# certificate NAME AUTHORITY SUBJECT USAGE [SUBJECT_ALT_NAMES]
certificate() {
  new_key "$1"
  openssl req -new -key "$1.key" -subj "$3" |
    openssl x509 -req -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -sha256 -days $DAYS -out "$1.crt" -extfile <(
      echo "keyUsage=critical,digitalSignature,keyEncipherment"
      echo "extendedKeyUsage=$4"
      [ -z "${5:-}" ] || echo "subjectAltName=$5"
    ) 2> /dev/null  # it reports each signature on stderr
}

# client NAME SUBJECT: a client certificate and the kubeconfig that uses it
client() {
  certificate "$1" ca "$2" clientAuth
  write_kubeconfig "$1.kubeconfig" "https://$NODE_IP:$API_PORT" "$1"
}

authority ca
authority front-proxy-ca
openssl genrsa -out service-account.key 2048
openssl rsa -in service-account.key -pubout -out service-account.pub 2> /dev/null

api_names=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
certificate apiserver ca /CN=kube-apiserver serverAuth \
  "$api_names,DNS:localhost,IP:127.0.0.1,IP:$NODE_IP,IP:$API_SERVICE_IP"
certificate kubelet-server ca "/O=system:nodes/CN=system:node:$NAME" serverAuth "DNS:$NAME,IP:$NODE_IP"
certificate apiserver-kubelet ca /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth
certificate front-proxy front-proxy-ca /CN=front-proxy-client clientAuth

certificate admin ca /O=system:masters/CN=admin clientAuth
client controller-manager /CN=system:kube-controller-manager
client scheduler /CN=system:kube-scheduler
client kubelet "/O=system:nodes/CN=system:node:$NAME"
client proxy /CN=system:kube-proxy
client coredns /CN=system:coredns

echo "$fingerprint" > fingerprint
