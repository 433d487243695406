{{- define "tailrace.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "tailrace.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tailrace.labels" -}}
{{ include "tailrace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: tailrace
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "tailrace.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "tailrace.name" .) }}
{{- else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "tailrace.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- /* The configuration file: what the values fix, and the rest as it is. */ -}}
{{- define "tailrace.config" -}}
{{- $fixed := dict
  "listen" (printf "0.0.0.0:%d" (int .Values.ports.http))
  "admin" (dict
    "listen" (printf "127.0.0.1:%d" (int .Values.ports.admin))
    "probes" (printf "0.0.0.0:%d" (int .Values.ports.probes)))
  "drain" (dict
    "grace" (printf "%ds" (int .Values.drain.grace))
    "timeout" (printf "%ds" (int .Values.drain.timeout))) -}}
{{- if not .Values.config.clusters }}
{{- $beside := list (printf "http://127.0.0.1:%d" (int .Values.sidecar.port)) }}
{{- $endpoints := .Values.sidecar.enabled | ternary $beside .Values.upstreams }}
{{- $_ := set $fixed "clusters" (dict "model" (dict "endpoints" $endpoints "health" .Values.health)) }}
{{- $_ := set $fixed "routes" (list (dict "name" "everything" "path" "/" "cluster" "model")) }}
{{- end }}
{{- toYaml (merge $fixed (deepCopy .Values.config)) }}
{{- end }}

{{- define "tailrace.unprivileged" -}}
runAsNonRoot: true
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /* The gateway's container. As a sidecar it is an init container that goes on running. None of
the probes waits for the model: it starts only when the startup probe has succeeded. */ -}}
{{- define "tailrace.container" -}}
- name: tailrace
  image: {{ include "tailrace.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- if .Values.sidecar.enabled }}
  restartPolicy: Always
  {{- end }}
  args: [run, /etc/tailrace/tailrace.yaml]
  {{- with .Values.extraEnv }}
  env: {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    - {name: http, containerPort: {{ .Values.ports.http }}}
    - {name: probes, containerPort: {{ .Values.ports.probes }}}
  startupProbe:
    httpGet: {path: /livez, port: probes}
    periodSeconds: 1
    failureThreshold: 30
  readinessProbe:
    httpGet: {path: /readyz, port: probes}
    periodSeconds: 2
    failureThreshold: 2
  livenessProbe:
    httpGet: {path: /livez, port: probes}
    periodSeconds: 10
    timeoutSeconds: 3
    failureThreshold: 3
  {{- if and .Values.sidecar.enabled (eq .Values.sidecar.drainHook "sleep") }}
  # The model container only waits, so the drain begins here. The kubelet runs the hooks of all
  # containers at once, when the pod begins to end.
  lifecycle:
    preStop:
      exec:
        command:
          - python
          - -IS
          - -c
          - |
            import http.client
            gateway = http.client.HTTPConnection("127.0.0.1", {{ .Values.ports.admin }}, timeout=5)
            gateway.request("POST", "/drain")
            gateway.getresponse()
  {{- end }}
  resources: {{- toYaml .Values.resources | nindent 4 }}
  securityContext:
    {{- include "tailrace.unprivileged" . | nindent 4 }}
    readOnlyRootFilesystem: true
    {{- if not (hasKey .Values.podSecurityContext "runAsUser") }}
    runAsUser: 65532
    runAsGroup: 65532
    {{- end }}
  volumeMounts:
    - {name: config, mountPath: /etc/tailrace, readOnly: true}
    {{- with .Values.extraVolumeMounts }}{{ toYaml . | nindent 4 }}{{ end }}
{{- end }}

{{- /* What holds back the model server's SIGTERM until the gateway has drained. */ -}}
{{- define "tailrace.drainHook" -}}
{{- $seconds := add .Values.drain.grace .Values.drain.timeout }}
{{- if eq .Values.sidecar.drainHook "sleep" -}}
sleep: {seconds: {{ $seconds }}}
{{- else if eq .Values.sidecar.drainHook "curl" -}}
exec:
  command: [curl, -fsS, --noproxy, "*", --max-time, {{ add $seconds 5 | quote }}, -X, POST, "http://127.0.0.1:{{ .Values.ports.admin }}/drain?wait=true"]
{{- else -}}
exec:
  command:
    - python3
    - -IS
    - -c
    - |
      import http.client
      gateway = http.client.HTTPConnection("127.0.0.1", {{ .Values.ports.admin }}, timeout={{ add $seconds 5 }})
      gateway.request("POST", "/drain?wait=true")
      print(gateway.getresponse().read().decode())
{{- end }}
{{- end }}
