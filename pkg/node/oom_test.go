package node

import (
	"os"
	"strings"
	"testing"
)

// TestB50OOMScore: it is written where it differs, and only there; the error names both values.
func TestB50OOMScore(t *testing.T) {
	file := t.TempDir() + "/oom_score_adj"
	if err := os.WriteFile(file, []byte("-997\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		score int32
		want  string
	}{{-997, "-997\n"}, {-999, "-999"}, {5, "5"}} {
		if err := setOOMScore(file, c.score); err != nil {
			t.Error(err)
		}
		if got, _ := os.ReadFile(file); string(got) != c.want {
			t.Errorf("%d: %q", c.score, got)
		}
	}
	dir := t.TempDir()
	if err := setOOMScore(dir+"/none", 7); err == nil || !strings.Contains(err.Error(), "oom_score_adj to 7") {
		t.Errorf("no such file: %v", err)
	}
}
