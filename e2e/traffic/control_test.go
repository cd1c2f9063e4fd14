package traffic

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// wouldNotice is the control of a load that lost nothing: under the same load another program takes the virtual
// server away, as a naive agent does that builds its table anew. The load must lose some; else it would not have
// noticed anything. The agent puts the virtual server back within a second, so that it is deleted more than once where the
// load was not fast enough.
func wouldNotice(t *testing.T, c *lab.Host, n *lab.Node, to netip.AddrPort) {
	t.Helper()
	load := c.StartLoad(to, lab.LoadConfig{Rate: 20, Timeout: 2 * time.Second})
	lab.Eventually(t, time.Minute, "the control's load runs", func() error {
		if r := load.Report(); r.Answered < 5 {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
	var deleted time.Time
	lab.Eventually(t, time.Minute, "the control loses requests", func() error {
		r := load.Report()
		if r.Lost > 0 {
			return nil
		}
		if time.Since(deleted) < 2*time.Second {
			return fmt.Errorf("%s", r)
		}
		deleted = time.Now()
		return errors.Join(n.DeleteVirtualServer(to), fmt.Errorf("%s", r))
	})
	t.Logf("control: %s", load.Stop())
}
