package node

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// F26: one agent for other Services is told from one for the same, and named. (The place belongs to the network namespace,
// so this test has it to itself only where no agent runs beside it.)
func TestF26OneAgentANode(t *testing.T) {
	first, err := Take("")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	held := make(chan error, 1)
	go func() { held <- first.Hold(ctx, func(err error) { t.Errorf("taken: %v", err) }) }()
	_, err = Take("canary")
	var other *OtherAgentError
	if !errors.As(err, &other) || other.Theirs != "" || other.PID != os.Getpid() {
		t.Fatalf("for other Services: %v", err)
	}
	for _, want := range []string{"without the label service.kubernetes.io/service-proxy-name;", "=canary", "(process "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	second, err := Take("")
	if err != nil {
		t.Fatalf("for the same Services: %v", err)
	}
	if _, err := Claim(); !errors.Is(err, ErrPresent) {
		t.Errorf("cleanup: %v", err)
	}
	said := make(chan error, 1)
	waiting := make(chan error, 1)
	ctx2, cancel2 := context.WithCancel(t.Context())
	go func() { waiting <- second.Hold(ctx2, func(err error) { said <- err }) }()
	if err := <-said; !errors.Is(err, ErrPresent) {
		t.Errorf("the second is told %v", err)
	}
	cancel()
	<-held
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if name, _, known := who(); known && name == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the second does not get the place that was left")
		}
	}
	cancel2()
	<-waiting
	release, err := Claim()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if _, err := Take("canary"); err != nil { // who does not say for what it is may be anybody
		t.Errorf("beside a clean-up: %v", err)
	}
}
