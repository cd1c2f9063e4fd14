package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
)

func TestParseCIDRs(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "[]",
		"10.244.0.0/16":                "[10.244.0.0/16]",
		"10.244.7.1/16, fd10:244::/32": "[10.244.0.0/16 fd10:244::/32]",
		"10.244.0.0":                   "error",
		"10.0.0.0/8,10.244.0.0/16":     "error",
		"10.244.0.0/16,":               "error",
	} {
		got, err := parseCIDRs(text)
		if err == nil && fmt.Sprint(got) != want || (err != nil) != (want == "error") {
			t.Errorf("%q: %s, %v; want %s", text, got, err, want)
		}
	}
}

// together ends all parts when one fails, and tells of every failure.
func TestTogether(t *testing.T) {
	wait := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	fail := func(context.Context) error { return errors.New("broken") }
	if err := together(context.Background(), wait, fail); err == nil || err.Error() != "broken" {
		t.Errorf("one part fails: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := together(ctx, wait, wait); err != nil {
		t.Errorf("stopped from outside: %v", err)
	}
}

func TestRunWantsASource(t *testing.T) {
	cmd := newCommand()
	cmd.SetArgs([]string{"run", "--hostname-override", "n"})
	if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "--source-dir") {
		t.Errorf("no source: %v", err)
	}
}

// A value that cannot be used is an error that names the flag, in each command that has it.
func TestSetupFlags(t *testing.T) {
	for _, flag := range []string{"conntrack-max-per-core=-1", "conntrack-min=-1", "conntrack-tcp-timeout-established=-1s",
		"conntrack-tcp-timeout-close-wait=-1s", "conntrack-udp-timeout=-1s", "conntrack-udp-timeout-stream=-1s"} {
		for _, args := range [][]string{{"run", "--source-dir=/nowhere", "--hostname-override=n"}, {"init"}, {"check"}} {
			cmd := newCommand()
			cmd.SetOut(io.Discard)
			cmd.SetArgs(append(args, "--"+flag))
			if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "--"+flag+": want 0") {
				t.Errorf("%s --%s: %v", args[0], flag, err)
			}
		}
	}
}

func TestVersion(t *testing.T) {
	cmd := newCommand()
	var out strings.Builder
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"version"})
	if err := cmd.Execute(); err != nil || !slices.Contains(strings.Fields(out.String()), version) {
		t.Errorf("%q, %v", out.String(), err)
	}
}
