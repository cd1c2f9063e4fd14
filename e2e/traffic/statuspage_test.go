package traffic

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// statusPage is the page that a node's port shows to the node itself.
type statusPage struct {
	text string
	rows [][]string // the cells of its tables, row by row
}

// look has a node look at its own status page.
func look(n *lab.Node, path string) (s statusPage, err error) {
	p, err := get(n.Host, netip.AddrPortFrom(loopback, 10249), path)
	if err != nil {
		return s, err
	}
	if p.code != http.StatusOK || !strings.HasPrefix(p.header.Get("Content-Type"), "text/html") {
		return s, fmt.Errorf("%s: %d %s", path, p.code, p.body)
	}
	root, err := html.Parse(strings.NewReader(p.body))
	if err != nil {
		return s, err
	}
	s.text = textOf(root)
	for n := range root.Descendants() {
		switch n.DataAtom {
		case atom.Tr:
			s.rows = append(s.rows, nil)
		case atom.Th, atom.Td:
			last := &s.rows[len(s.rows)-1]
			*last = append(*last, textOf(n))
		}
	}
	return s, nil
}

func textOf(root *html.Node) string {
	var b strings.Builder
	for n := range root.Descendants() {
		if n.Type == html.TextNode && n.Parent.DataAtom != atom.Style {
			b.WriteString(n.Data)
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

// row is the one with a cell; nil: there is none.
func (s statusPage) row(cell string) []string {
	for _, row := range s.rows {
		if slices.Contains(row, cell) {
			return row
		}
	}
	return nil
}

// count reads a number as the page writes it.
func count(cell string) int {
	n, err := strconv.Atoi(strings.ReplaceAll(cell, ",", ""))
	if err != nil {
		return -1
	}
	return n
}

// agreesWithMoby compares a frontend and its backends with what another library reads of the kernel.
func (s statusPage) agreesWithMoby(n *lab.Node, to netip.AddrPort) error {
	servers, err := n.VirtualServers()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(servers, func(v lab.VirtualServer) bool { return v.Addr == to && v.Protocol == "TCP" })
	if i < 0 || len(servers[i].Reals) == 0 {
		return fmt.Errorf("moby has no virtual server %s with real servers: %v", to, servers)
	}
	for _, r := range servers[i].Reals {
		row := s.row(r.Addr.String()) // backend, node, weight, active, inactive, connections, ...
		if len(row) < 6 || count(row[2]) != r.Weight || count(row[3]) != r.Active || count(row[5]) != int(r.Connections) {
			return fmt.Errorf("%q; moby has %s with %d active and %d connections", row, r.Addr, r.Active, r.Connections)
		}
	}
	return nil
}

// B73: the status page names the Service and its backends, has what another reader of the kernel has, the connections that
// were made among it, and what was written because of what; and is for the node alone.
func TestB73StatusPage(t *testing.T) {
	s := newStage(t).start("--metrics-bind-address=0.0.0.0:10249")
	n := s.w.Node(1)
	svc, empty := web(82), web(83)
	s.apply(svc, s.pods()...)
	s.apply(empty)
	s.ready(svc)
	programmed(t, s.agents[0])
	path := "/services/default/" + svc.Name
	const asked = 9
	each(t, func(t *testing.T, family int) {
		to := at(svc, family, 80)
		made := func() (sum int, err error) {
			list, err := look(n, "/?q="+svc.Name)
			row := list.row(to.String()) // (Service,) port, frontend, scheduler, backends, active, connections, state
			if err != nil || len(row) < 7 || row[len(row)-1] != "open" || row[len(row)-4] != "3 (2 here)" {
				return 0, fmt.Errorf("%q, %v", row, err)
			}
			return count(row[len(row)-2]), nil
		}
		before, err := made()
		if err != nil {
			t.Fatal(err)
		}
		for range asked {
			answers(t, n.Host, to)
		}
		lab.Eventually(t, soon, "the connections are on the page", func() error {
			if now, err := made(); err != nil || now-before < asked {
				return fmt.Errorf("%d connections more, %d were made, %v", now-before, asked, err)
			}
			return nil
		})
	})
	lab.Eventually(t, soon, "the Service's page agrees with moby", func() error {
		p, err := look(n, path)
		if err != nil {
			return err
		}
		return errors.Join(p.agreesWithMoby(n, at(svc, 4, 80)), p.agreesWithMoby(n, at(svc, 6, 80)))
	})
	made := fmt.Sprintf("ipvsadm -A -t %s -s rr", at(svc, 4, 80))
	if log, err := look(n, "/changes?service=default%2F"+svc.Name); err != nil || log.row(made) == nil || log.row(made)[2] != "start" && log.row(made)[2] != "object" {
		t.Errorf("no change %q because of the start or an object, %v: %s", made, err, log.text)
	}
	packet, err := look(n, "/packet?client=node&to="+at(svc, 4, 80).String())
	if err != nil || !strings.Contains(packet.text, "served by one of 3") || packet.row(netip.AddrPortFrom(s.w.Pod("pod-a").V4, 8080).String()) == nil {
		t.Errorf("a packet of the node, %v: %s", err, packet.text)
	}
	first, err := look(n, "/?state=no-endpoints")
	if err != nil || first.row(at(empty, 4, 80).String()) == nil || first.row(at(svc, 4, 80).String()) != nil || !strings.Contains(first.text, "all programmed") {
		t.Errorf("those without endpoints, %v: %s", err, first.text)
	}
	s.pageIsOwn(t, n, path)
}

// pageIsOwn: nobody else gets the page, though the port is open to all.
func (s *stage) pageIsOwn(t *testing.T, n *lab.Node, path string) {
	t.Helper()
	open := netip.AddrPortFrom(n.V4, 10249)
	wantCode(t, s.w.Client, open, "/metrics", 200)
	for _, path := range []string{"/", path, "/changes"} {
		if p := wantCode(t, s.w.Client, open, path, 404); strings.Contains(p.body, "default/") {
			t.Errorf("from outside, %s: %s", path, p.body)
		}
		wantCode(t, s.w.Pod("pod-a").Host, open, path, 404)
		wantCode(t, n.Host, open, path, 404) // at an address of the node that is no loopback address
	}
}
