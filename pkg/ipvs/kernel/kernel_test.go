package kernel

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// A kernel without IPVS has no such family: the error names the module and what to do. The test asks any kernel
// for a family that none has.
func TestMissingModuleIsNamed(t *testing.T) {
	_, err := openIPVS(context.Background(), "NONESUCH")
	var missing *MissingModuleError
	if !errors.As(err, &missing) || missing.Module != "ip_vs" {
		t.Fatalf("got %v, want a missing module ip_vs", err)
	}
	for _, want := range []string{"modprobe ip_vs", "/etc/modules-load.d"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}
