#!/bin/bash
# stack.sh: the whole system on this machine, ready to use: cluster, images, S3 server, operator.
# Each stage is skipped when nothing changed, so it is also the way to bring an edit into a running cluster.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

system=finetune-system
images=(operator trainer-cpu inference-cpu s3)

say "tools and binaries (the first build of Kubernetes takes 5 to 12 minutes)"
"$devcluster/install"
"$devcluster/build"
say "images"
"$root/images/build.sh" operator trainer-cpu trainer-test inference-cpu s3
say "cluster"
"$devcluster/up"
mapfile -t archives < <("$root/images/export.sh" "${images[@]}")
"$devcluster/load" "${archives[@]}"
say "S3 server"
"$devcluster/kubectl" apply -f "$root/hack/demo/s3.yaml"
say "operator"
# The tag stays the same, so the pod carries the image's id: a new image is a new pod.
id=$(cat "$cache/images/operator.oci.tar.id")
"$devcluster/helm" upgrade --install finetune-operator "$root/charts/finetune-operator" --namespace "$system" --create-namespace \
  --values "$root/hack/demo/values.yaml" --set-string "podAnnotations.finetune\.dev/image-id=${id#sha256:}" --wait --timeout 120s > "$cache/log/helm.log" 2>&1 \
  || { cat "$cache/log/helm.log" >&2; "$devcluster/kubectl" -n "$system" get pods >&2; die "the chart was not installed; the log is $cache/log/helm.log"; }
"$devcluster/kubectl" -n s3 rollout status deployment/s3 --timeout=120s > /dev/null
"$devcluster/forward" 17070 s3/s3:7070
