package traffic

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// B50: run --init-only sets the node up as init does, and ends: nothing is there yet of what an agent makes.
func TestB50InitOnly(t *testing.T) {
	s := newStage(t)
	n := s.w.Node(1)
	setSysctls(t, n, zero(wantedSysctls))
	stdout, stderr, exit := n.Command(t, 0, append([]string{"run", "--init-only", "--cluster-cidr=10.244.0.0/16"}, untuned...)...)
	if exit != 0 || stderr != "" || !strings.Contains(stdout, "ip_vs: ") || !strings.Contains(stdout, "sysctl -w net/ipv4/vs/conntrack=1") {
		t.Errorf("exit status %d:\n%s%s", exit, stdout, stderr)
	}
	if err := wrongSysctls(n, wantedSysctls); err != nil {
		t.Error(err)
	}
	if hasDevice(t, n) || strings.Contains(nftList(t, n, "ruleset"), ourTable) {
		t.Errorf("made: kube-ipvs0 %t\n%s", hasDevice(t, n), nftList(t, n, "ruleset"))
	}
}

// B50: oomScoreAdj and the time-outs of IPVS are those of the configuration.
func TestB50Process(t *testing.T) {
	s := newStage(t)
	n := s.w.Node(1)
	timeouts := func() (said string) {
		t.Helper()
		if err := n.Do(func() error {
			h, err := lab.OpenIPVS()
			if err != nil {
				return err
			}
			defer h.Close()
			c, err := h.GetConfig()
			if err == nil {
				said = fmt.Sprint(c.TimeoutTCP, c.TimeoutTCPFin, c.TimeoutUDP)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return said
	}
	fin := strings.Fields(timeouts())[1]
	a := s.w.StartAgent(t, n, s.cluster, "--oom-score-adj=-321", "--ipvs-tcp-timeout=17m", "--ipvs-udp-timeout=77s")
	programmed(t, a)
	if got := strings.TrimSpace(readFile(t, fmt.Sprintf("/proc/%d/oom_score_adj", a.Pid()))); got != "-321" {
		t.Errorf("oom_score_adj %s", got)
	}
	if got, want := timeouts(), "17m0s "+fin+" 1m17s"; got != want {
		t.Errorf("time-outs of IPVS: %s, want %s", got, want)
	}
}
