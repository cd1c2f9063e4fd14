package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// alone runs a test in a process and a network namespace of its own, where it has the agent's place to itself, and reports
// whether this is that process.
func alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv("IPVS_PROXY_ALONE") != "" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace of its own")
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "IPVS_PROXY_ALONE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in a network namespace of its own: %v\n%s", err, out)
	}
	return false
}

// asked is an agent that answers over HTTP, until the test ends.
func asked(t *testing.T) {
	t.Helper()
	place, err := Take("canary")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { _ = place.Hold(ctx, func(error) {}) })
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "asked for ", r.URL.Path) })}
	group.Go(func() { _ = server.Serve(place.Questions()) })
	t.Cleanup(func() { cancel(); _ = server.Close(); group.Wait() })
}

// ask asks as the commands do.
func ask(ctx context.Context) (string, error) {
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return Dial(ctx) }}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/v1/head", nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// One socket says to whoever is silent for which Services the agent is, and answers root's questions over HTTP. Silent
// ones hold up nobody who asks.
func TestB73SocketSpeaksBoth(t *testing.T) {
	if !alone(t) {
		return
	}
	asked(t)
	for range 2 * undecided {
		c, err := net.Dial("unix", presenceName)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	var group sync.WaitGroup
	for range 100 {
		group.Go(func() {
			if got, err := ask(t.Context()); err != nil || got != "asked for /v1/head" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	group.Wait()
	if name, pid, known := who(); name != "canary" || pid != os.Getpid() || !known {
		t.Errorf("a new agent hears %q of process %d, %t", name, pid, known)
	}
	// An older one says nothing and waits for a second.
	c, err := net.Dial("unix", presenceName)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(askTime))
	if text, err := io.ReadAll(c); err != nil || string(text) != "service-proxy-name=canary\n" {
		t.Errorf("an older agent hears %q, %v", text, err)
	}
}

// Nobody but user 0 is answered; who it is for, anybody is told, and at once. (The test runs itself as another user.)
func TestB73SocketIsForRoot(t *testing.T) {
	if os.Getenv("IPVS_PROXY_ASK") != "" {
		got, err := ask(t.Context())
		name, _, known := who()
		fmt.Printf("%q %t %s %t\n", got, errors.Is(err, ErrNotAnswered), name, known)
		return
	}
	if !alone(t) {
		return
	}
	asked(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Chmod(self, 0o755)
	cmd := exec.CommandContext(t.Context(), "/proc/self/fd/3", "-test.run=^TestB73SocketIsForRoot$")
	program, err := os.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	cmd.ExtraFiles = []*os.File{program}
	cmd.Dir, cmd.Env = "/", []string{"IPVS_PROXY_ASK=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if first, _, _ := strings.Cut(string(out), "\n"); err != nil || first != `"" true canary true` {
		t.Errorf("as another user: %s, %v", out, err)
	}
}

// Where no agent is, that is what is said.
func TestB73SocketWithoutAgent(t *testing.T) {
	if !alone(t) {
		return
	}
	if _, err := ask(t.Context()); !errors.Is(err, ErrNoAgent) {
		t.Errorf("got %v", err)
	}
}

// An agent that cannot answer yet is told from one that answers.
func TestB73SocketOfAnOlderAgent(t *testing.T) {
	if !alone(t) {
		return
	}
	l, err := claim()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "service-proxy-name=\n")
			_ = c.Close()
		}
	}()
	if _, err := ask(t.Context()); !errors.Is(err, ErrNotAnswered) {
		t.Errorf("got %v", err)
	}
	// Asked late, when the line was said and the connection ended.
	c, err := Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for end := time.Now().Add(10 * time.Second); err == nil && time.Now().Before(end); {
		_, err = io.WriteString(c, "GET / HTTP/1.1\r\n")
	}
	if !errors.Is(err, ErrNotAnswered) {
		t.Errorf("asked late: %v", err)
	}
	if name, _, known := who(); name != "" || !known {
		t.Errorf("a new agent hears %q, %t", name, known)
	}
}
