{{- define "ipvs-proxy.labels" -}}
app.kubernetes.io/name: ipvs-proxy
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "ipvs-proxy.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ with .Values.image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- /* Both documents of config.conf, and the kubeconfig. */}}
{{- define "ipvs-proxy.files" -}}
{{- $ours := dict "apiVersion" "kubeproxy.config.k8s.io/v1alpha1" "kind" "KubeProxyConfiguration" "mode" "ipvs" "clusterCIDR" .Values.clusterCIDR
      "clientConnection" (dict "kubeconfig" "/var/lib/ipvs-proxy/kubeconfig.conf") -}}
config.conf: |
{{ toYaml (mergeOverwrite (deepCopy .Values.kubeProxyConfiguration) $ours) | indent 2 }}
  ---
{{ toYaml (mergeOverwrite (deepCopy .Values.configuration) (dict "apiVersion" "ipvs-proxy.io/v1alpha1" "kind" "IPVSProxyConfiguration")) | indent 2 }}
kubeconfig.conf: |
  apiVersion: v1
  kind: Config
  clusters:
  - name: default
    cluster:
      certificate-authority: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
      server: {{ .Values.apiServer }}
  contexts:
  - name: default
    context:
      cluster: default
      namespace: default
      user: default
  current-context: default
  users:
  - name: default
    user:
      tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token
{{- end }}
