package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-base/metrics"
	"k8s.io/klog/v2"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// fullPipe is a pipe that takes nothing more until somebody reads: standard error when whoever collects logs is stuck.
func fullPipe(t *testing.T) (r, w *os.File, inIt int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	if err := w.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		n := 0
		n, err = io.WriteString(w, strings.Repeat("\n", 4096))
		inIt += n
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	if err := w.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	return r, w, inIt
}

// tampered is a kernel in which a virtual server is deleted once, after it was made.
type tampered struct {
	*fake.Kernel
	key      ipvs.Key
	made     int
	repaired chan struct{}
	held     chan struct{} // once repaired, nothing is answered until it is closed
}

func (k *tampered) Do(ctx context.Context, plan ipvs.Plan) []ipvs.Outcome {
	out := k.Kernel.Do(ctx, plan)
	for _, s := range plan {
		if add, ok := s.Op.(ipvs.AddServer); ok && add.Key == k.key {
			if k.made++; k.made == 2 {
				close(k.repaired)
			}
		}
	}
	return out
}

// Canary is asked by the loop itself, so that nothing else is in the kernel meanwhile.
func (k *tampered) Canary(ctx context.Context) (ipvs.Census, error) {
	if k.made == 1 {
		delete(k.Servers, k.key)
	}
	if k.made == 2 {
		<-k.held
	}
	return k.Kernel.Canary(ctx)
}

// agent is a loop on a kernel in memory, with one Service.
type agent struct {
	kernel *tampered
	health *healthz.Health
	loop   *sync.Loop
}

func newAgent(log *zap.Logger, timeout time.Duration) *agent {
	vip := netip.MustParseAddr("10.96.0.10")
	a := &agent{kernel: &tampered{Kernel: fake.New(), key: ipvs.Key{Addr: vip, Port: 80, Proto: ipvs.TCP}, repaired: make(chan struct{}), held: make(chan struct{})}}
	a.health = healthz.New(healthz.Options{Registry: metrics.NewKubeRegistry(), Timeout: timeout})
	a.health.SetNode(true)
	model := cluster.NewModel(cluster.Options{NodeName: "node1"})
	model.SetService(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: corev1.ServiceSpec{ClusterIP: vip.String(), ClusterIPs: []string{vip.String()}, Ports: []corev1.ServicePort{{Port: 80}}}})
	model.SetSynced()
	model.SetComplete()
	a.loop = sync.New(a.kernel, model, log, sync.Options{Health: a.health})
	return a
}

// run runs the loop until the test, or who calls stop, ends.
func (a *agent) run(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { _ = a.loop.Run(ctx); close(done) }()
	stop = func() {
		cancel()
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			t.Error("the loop does not end")
		}
	}
	t.Cleanup(stop)
	return stop
}

func (a *agent) code(path string) int {
	w := httptest.NewRecorder()
	a.health.HealthHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code
}

// Nobody reads the log. The agent programs, repairs and is healthy all the same; lines are dropped and counted; and once
// somebody reads, the log has what there was room for, how many are missing, and what comes after (row B93).
func TestB93FullPipe(t *testing.T) {
	r, w, inIt := fullPipe(t)
	log, dropped := newLogger(0, "json", w)
	a := newAgent(log, time.Minute)
	close(a.kernel.held)
	stop := a.run(t)
	select {
	case <-a.kernel.repaired:
	case <-time.After(20 * time.Second):
		t.Fatal("nobody reads the log, and a virtual server that was deleted is not put back")
	}
	if code := a.code("/livez"); code != http.StatusOK {
		t.Errorf("/livez says %d", code)
	}
	stop()
	for i := range 20_000 {
		log.Info("flood", zap.Int("number", i))
	}
	lost := dropped()
	if lost == 0 {
		t.Fatal("20,000 lines wait, and none is dropped")
	}
	if _, err := io.CopyN(io.Discard, r, int64(inIt)); err != nil {
		t.Fatal(err)
	}
	next := 0
	for scan := bufio.NewScanner(r); ; {
		if !scan.Scan() {
			t.Fatalf("the log ends: %v", scan.Err())
		}
		var line struct {
			Msg           string
			Number, Lines int
		}
		if err := json.Unmarshal(scan.Bytes(), &line); err != nil {
			t.Fatalf("%q: %v", scan.Text(), err)
		}
		if line.Msg == "flood" {
			if line.Number != next {
				t.Fatalf("line %d comes where %d should", line.Number, next)
			}
			next++
		}
		if strings.HasPrefix(line.Msg, "lines of this log were dropped") {
			if uint64(line.Lines) != lost || next+line.Lines != 20_000 {
				t.Errorf("the log says that %d lines are missing; %d are, after %d of 20,000", line.Lines, lost, next)
			}
			break
		}
	}
	log.Info("after")
	if err := log.Sync(); err != nil || dropped() != lost {
		t.Errorf("somebody reads: %v, %d more lines dropped", err, dropped()-lost)
	}
}

// blocked is a writer that takes nothing until it is let.
type blocked struct {
	let chan struct{}
	got strings.Builder
}

func (b *blocked) Write(p []byte) (int, error) {
	<-b.let
	return b.got.Write(p)
}

// The end of the process waits for the last lines, but not for ever.
func TestLogFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &blocked{let: make(chan struct{})}
		l := newLines(out, 100, func(uint64) []byte { return []byte("some are lost\n") })
		defer close(l.wake)
		_, _ = io.WriteString(l, "one\n")
		began := time.Now()
		if err := l.Sync(); err != nil || time.Since(began) != flushTime {
			t.Errorf("nobody reads: %v after %v, want %v", err, time.Since(began), flushTime)
		}
		for range 100 {
			_, _ = io.WriteString(l, "two\n")
		}
		if n := l.Dropped(); n != 75 {
			t.Errorf("of 400 bytes 100 may wait: %d lines of 100 are dropped, want 75", n)
		}
		close(out.let)
		if err := l.Sync(); err != nil {
			t.Error(err)
		}
		if got, want := out.got.String(), "one\n"+strings.Repeat("two\n", 25)+"some are lost\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// broken is a writer that takes three bytes and fails.
type broken struct{}

func (broken) Write(p []byte) (int, error) { return min(3, len(p)), errors.New("no space left") }

// What the writer refuses is counted as well.
func TestLogRefused(t *testing.T) {
	l := newLines(broken{}, 1000, func(uint64) []byte { return []byte("some are lost\n") })
	_, _ = io.WriteString(l, "a\nb\nc\n")
	_ = l.Sync()
	if n := l.Dropped(); n < 2 {
		t.Errorf("%d lines dropped, want the two that were not written", n)
	}
}

// What libraries say goes the same way.
func TestLogOfLibraries(t *testing.T) {
	var out blocked
	out.let = make(chan struct{})
	close(out.let)
	log, _ := newLogger(0, "text", &out)
	captureLogs(log)
	defer klog.ClearLogger()
	klog.ErrorS(errors.New("refused"), "It failed", "object", "x")
	_ = log.Sync()
	if got := out.got.String(); !strings.Contains(got, "client-go") || !strings.Contains(got, "It failed") || !strings.Contains(got, "refused") {
		t.Errorf("client-go's line: %q", got)
	}
}

// The control of TestB93FullPipe, and the heartbeat's test: a loop that is held by whatever it is, here by a log that is
// written to the pipe itself, turns both pages red, and green when it goes on.
func TestB51HeldLoop(t *testing.T) {
	r, w, _ := fullPipe(t)
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), w, zap.InfoLevel))
	a := newAgent(log, 300*time.Millisecond)
	close(a.kernel.held)
	a.run(t)
	a.becomes(t, "the loop waits for its log", http.StatusServiceUnavailable)
	select {
	case <-a.kernel.repaired:
		t.Error("the control works: what holds the loop does not hold it")
	default:
	}
	go func() { _, _ = io.Copy(io.Discard, r) }()
	a.becomes(t, "somebody reads", http.StatusOK)
}

// becomes waits until both pages say it.
func (a *agent) becomes(t *testing.T, what string, code int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); a.code("/livez") != code || a.code("/healthz") != code; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: /livez %d, /healthz %d, want %d", what, a.code("/livez"), a.code("/healthz"), code)
		}
	}
}

// It is so as well when no work is known to wait: here the kernel does not answer.
func TestB51HeldIdleLoop(t *testing.T) {
	a := newAgent(zap.NewNop(), 300*time.Millisecond)
	a.run(t)
	<-a.kernel.repaired
	a.becomes(t, "all is done, and the loop waits for the kernel", http.StatusServiceUnavailable)
	close(a.kernel.held)
	a.becomes(t, "the kernel answers", http.StatusOK)
}

// A loop with nothing to do turns often enough for any sync period.
func TestB51IdleLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(zap.NewNop(), 200*time.Millisecond)
		close(a.kernel.held)
		stop := a.run(t)
		defer stop()
		for range 600 {
			time.Sleep(99 * time.Millisecond)
			if code := a.code("/livez"); code != http.StatusOK {
				t.Fatalf("/livez says %d of a loop that has nothing to do", code)
			}
		}
	})
}
