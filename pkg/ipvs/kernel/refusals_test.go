package kernel

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/contract"
)

// TestRefusals: what this kernel refuses and how is what is on record for it. The fake is held to the same
// records. What a virtual IP stands as makes a difference for addresses alone.
func TestRefusals(t *testing.T) {
	needsIPVS(t)
	golden := filepath.Join("testdata", "refusals", kernelVersion(t)+".txt")
	for binding, wanted := range map[Binding]func(line string) bool{
		BindAddress: func(string) bool { return true },
		BindRoute: func(line string) bool {
			return strings.Contains(line, " Bind |") || strings.Contains(line, " Unbind |") || strings.Contains(line, "| the virtual IP |")
		},
	} {
		t.Run(string(binding), func(t *testing.T) {
			got := contract.Refusals(t, func(t *testing.T) contract.Kernel { return openHere(t, binding) }, wanted)
			if *update && binding == BindAddress {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			record, err := os.ReadFile(golden)
			var want strings.Builder
			for line := range strings.Lines(string(record)) {
				if wanted(line) {
					want.WriteString(line)
				}
			}
			if err != nil || got != want.String() || got == "" {
				// The lab's files do not come back: what to keep is between the markers.
				t.Errorf("differs from %s (%v)\n-----BEGIN REFUSALS-----\n%s-----END REFUSALS-----", golden, err, got)
			}
		})
	}
}

// kernelVersion is the major and minor number of this kernel.
func kernelVersion(t *testing.T) string {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(bytes.TrimRight(u.Release[:], "\x00")), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d.%d", major, minor)
}
