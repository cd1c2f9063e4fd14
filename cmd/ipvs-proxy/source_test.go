package main

import (
	"strings"
	"testing"
)

// TestSource: where the cluster comes from is one place, and what is wrong with it is said before anything is done.
func TestSource(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for args, want := range map[string]string{
		"":                                   "no kubeconfig is given, and this is no pod of a cluster",
		"--kubeconfig=/nowhere":              `kubeconfig "/nowhere": stat /nowhere: no such file or directory`,
		"--config=testdata/api.conf":         `kubeconfig "/from/the/file": stat`,
		"--source-dir=/a --kubeconfig=/b":    "--source-dir stands by itself",
		"--source-dir=/a --master=https://b": "--source-dir stands by itself",
		"--master=https://192.0.2.1 --kube-api-content-type=text/x": `content type "text/x": want`,
	} {
		cmd := newCommand()
		cmd.SetArgs(append([]string{"run", "--hostname-override=n"}, strings.Fields(args)...))
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", args, err, want)
		}
	}
}
