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
