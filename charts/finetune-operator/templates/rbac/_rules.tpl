{{/* What the operator may do. No verb on secrets and no pods/exec. */}}
{{- define "finetune-operator.rules" -}}
- apiGroups: [finetune.dev]
  resources: [finetunejobs]
  # delete is for ttlSecondsAfterFinished.
  verbs: [get, list, watch, delete]
- apiGroups: [finetune.dev]
  resources: [modelendpoints]
  verbs: [get, list, watch, create, patch]
- apiGroups: [finetune.dev]
  resources: [finetunejobs/status, modelendpoints/status]
  verbs: [get, patch]
# Owner references that block their owner's deletion need this where OwnerReferencesPermissionEnforcement is on.
- apiGroups: [finetune.dev]
  resources: [finetunejobs/finalizers, modelendpoints/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
# By name, as ConfigMaps below.
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, patch]
# One by name, to see whose it is before it is written; none is listed.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch, delete]
# patch is for the note on a serving pod that its list of live adapters has changed, which makes the kubelet look at once.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch]
# Why a job waits for quota; patch is for pausing one that is suspended, by spec.active.
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [get, list, watch, patch]
# Shares of the traffic, with strategy Canary; Gateways are not looked at.
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{- define "finetune-operator.subjects" -}}
- kind: ServiceAccount
  name: {{ include "finetune-operator.serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
{{- end -}}
