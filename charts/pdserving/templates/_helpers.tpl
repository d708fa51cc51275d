{{- define "pdserving.fullname" -}}
{{- if contains "pdserving" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-pdserving" .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "pdserving.labels" -}}
{{ include "pdserving.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: pdserving
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "pdserving.selector" -}}
app.kubernetes.io/name: pdserving
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "pdserving.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "pdserving.fullname" .) }}
{{- else }}{{ .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "pdserving.operatorImage" -}}
{{- $repository := coalesce .Values.operator.image.repository .Values.image.repository "ghcr.io/pdserving/pds-operator" }}
{{- $tag := coalesce .Values.operator.image.tag .Values.image.tag .Chart.AppVersion }}
{{- printf "%s:%s" $repository $tag }}
{{- end }}

{{/* The operator's settings: pds_operator.settings.Settings, whose unknown keys are refused. */}}
{{- define "pdserving.settings" -}}
namespaces: {{ .Values.namespaces | toJson }}
namespace: {{ .Release.Namespace }}
image:
  repository: {{ coalesce .Values.engine.image.repository .Values.image.repository "ghcr.io/pdserving/pds-engine" }}
  tag: {{ coalesce .Values.engine.image.tag .Values.image.tag .Chart.AppVersion | quote }}
  pullPolicy: {{ .Values.image.pullPolicy }}
podDefaults:
  {{- toYaml .Values.podDefaults | nindent 2 }}
routerClusterRole: {{ .Values.rbac.routerClusterRole.name }}
networkPolicies: {{ .Values.networkPolicy.enabled }}
podDisruptionBudgets: {{ .Values.podDisruptionBudget.enabled }}
metricsFrom: {{ .Values.metrics.from | toJson }}
lease:
  name: {{ include "pdserving.fullname" . }}
livenessPort: 8080
logLevel: {{ .Values.operator.logLevel }}
{{- end }}

{{/* What the operator may do where it serves PDServings. */}}
{{- define "pdserving.rules" -}}
- apiGroups: [pdserving.io]
  resources: [pdservings]
  verbs: [get, list, watch]
- apiGroups: [pdserving.io]
  resources: [pdservings/status]
  verbs: [get, patch]
# Its objects block the deletion of their owner; some clusters ask for this right then.
- apiGroups: [pdserving.io]
  resources: [pdservings/finalizers]
  verbs: [update]
# patch, here and below: what `kubectl delete --cascade=orphan` left behind is adopted.
- apiGroups: [pdserving.io]
  resources: [pdservingroles]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [pdserving.io]
  resources: [pdservingroles/status]
  verbs: [patch]
# For spec.scheduling.gang, whichever of them the cluster has.
- apiGroups: [scheduling.volcano.sh, scheduling.x-k8s.io, scheduling.run.ai]
  resources: [podgroups]
  verbs: [get, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, serviceaccounts, persistentvolumeclaims]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
# Whether a Service reaches a router.
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
# Which pods are the router's own.
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [list, watch]
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [rolebindings]
  verbs: [get, list, watch, create, patch]
# It cannot grant what it lacks: it may bind this one role, and no other.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [clusterroles]
  resourceNames: [{{ .Values.rbac.routerClusterRole.name }}]
  verbs: [bind]
{{- end }}
