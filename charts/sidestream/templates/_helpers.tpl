{{- define "sidestream.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}-injector
{{- end }}

{{/* Webhooks are called in the order of their configurations' names. Istio and Linkerd read a pod's annotations when they set up
its network: ours must be there before. Of several releases each has its own. */}}
{{- define "sidestream.webhook" -}}
00-{{ include "sidestream.name" . }}
{{- end }}

{{- define "sidestream.labels" -}}
app.kubernetes.io/name: sidestream
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "sidestream.selector" -}}
app.kubernetes.io/name: sidestream
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: injector
{{- end }}

{{- define "sidestream.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* Of what is there for helm test alone; what it is given is the weight. */}}
{{- define "sidestream.test" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
{{- end }}
