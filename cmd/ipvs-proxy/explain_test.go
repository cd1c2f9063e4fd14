package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
)

// B73: what cannot be asked ends with status 2 and one line that shows the form, before anything is looked at.
func TestB73ExplainShowsTheForm(t *testing.T) {
	for _, args := range [][]string{{}, {"web"}, {"/web"}, {"default/"}, {"a/b/c"}, {"10.96.0.10:53/udp"}, {"10.0.0.1", "->", "10.96.0.10"}, {"10.0.0.1", "-"}, {"10.0.0.1 -> kubia:80"},
		{"10.0.0.1", "to", "10.96.0.10:53/icmp"}, {"10.0.0.1", "10.96.0.10:53", "10.96.0.11:53"}} {
		cmd := newCommand()
		var out bytes.Buffer
		cmd.SetArgs(arguments(append([]string{"ipvs-proxy", "explain"}, args...)))
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		err := cmd.ExecuteContext(context.Background())
		status := exitStatus{}
		if !errors.As(err, &status) || status.status != couldNotLook || out.Len() > 0 {
			t.Errorf("%q: %v\n%s", args, err, &out)
			continue
		}
		if text := status.err.Error(); !strings.Contains(text, "ADDRESS:PORT[/PROTO]") || strings.Contains(text, "\n") {
			t.Errorf("%q: %s", args, text)
		}
	}
}
