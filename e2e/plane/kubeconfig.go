package plane

import (
	"encoding/base64"
	"fmt"
)

// kubeconfig is that of a user with a certificate.
func kubeconfig(server string, ca []byte, id identity) []byte {
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster:
    server: https://%s
    certificate-authority-data: %s
users:
- name: user
  user:
    client-certificate-data: %s
    client-key-data: %s
contexts:
- name: lab
  context: {cluster: lab, user: user}
current-context: lab
`, server, b64(ca), b64(id.cert), b64(id.key))
}
