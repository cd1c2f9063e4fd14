package preview

import (
	"context"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

const troubleshooting = "../../docs/troubleshooting.md"

// toldScene is the cluster of docs/troubleshooting.md, with an agent at work.
func toldScene(t *testing.T) *scene {
	t.Helper()
	s := newScene()
	s.kernel.Node.Addrs, s.clients.Pods = s.kernel.Node.Addrs[:1], podRanges[:1]
	s.model = cluster.NewModel(cluster.Options{NodeName: thisNode})
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	ended := make(chan error, 1)
	reading, read := context.WithCancel(ctx)
	go func() {
		ended <- cluster.NewDirectory("testdata/troubleshooting", s.model, func(err error) { t.Error(err) }).Run(reading)
	}()
	for !s.model.Complete() && ctx.Err() == nil {
		select {
		case <-s.model.Changed():
		case <-ctx.Done():
		}
	}
	read()
	if err := <-ended; err != nil || !s.model.Complete() {
		t.Fatalf("the cluster of the page was not read: %v", err)
	}
	s.start(t)
	return s
}

// block is a command with what it prints, and what is taken out of the kernel before.
var block = regexp.MustCompile("(?s)(?:<!-- without ([^ ]+) -->\n\n)?```\n\\$ ipvs-proxy explain ([^\n]+)\n(.*?)```\n")

// B73: every answer in docs/troubleshooting.md is what explain says of the page's cluster.
func TestTroubleshootingPage(t *testing.T) {
	page, err := os.ReadFile(troubleshooting)
	if err != nil {
		t.Fatal(err)
	}
	codes := map[string]bool{}
	commands := 0
	got := block.ReplaceAllStringFunc(string(page), func(text string) string {
		parts := block.FindStringSubmatch(text)
		said, code := toldScene(t).told(t, parts[1], parts[2])
		codes[code] = true
		commands++
		head, _, _ := strings.Cut(text, "$ ipvs-proxy")
		return head + "$ ipvs-proxy explain " + parts[2] + "\n" + said + "```\n"
	})
	if *update {
		if err := os.WriteFile(troubleshooting, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if got != string(page) {
		t.Errorf("%s is out of date: go test ./pkg/preview -run TestTroubleshooting -update", troubleshooting)
	}
	if commands != strings.Count(string(page), "$ ipvs-proxy explain") {
		t.Errorf("%d of %d answers were looked at", commands, strings.Count(string(page), "$ ipvs-proxy explain"))
	}
	for _, code := range []string{"", "IPX0301", "IPX0302", "IPX0303", "IPX0304", "IPX0307", "IPX0308"} {
		if !codes[code] {
			t.Errorf("the page has no story that ends with %q", code)
		}
	}
}

// told is what a command prints, and the code of its verdict. What is without is deleted first.
func (s *scene) told(t *testing.T, without, command string) (text, code string) {
	t.Helper()
	if without != "" {
		at := netip.MustParseAddrPort(without)
		delete(s.kernel.Servers, ipvs.Key{Addr: at.Addr(), Port: at.Port(), Proto: ipvs.TCP})
	}
	if namespace, name, is := strings.Cut(command, "/"); is && !strings.Contains(command, " ") {
		x, err := s.explain(t, namespace, name)
		if err != nil {
			t.Fatal(err)
		}
		return x.Text(), ""
	}
	a := s.ask(t, command)
	return a.Text(), a.Code
}
