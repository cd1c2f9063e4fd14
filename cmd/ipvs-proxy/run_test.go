package main

import (
	"context"
	"errors"
	"fmt"
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

func TestVersion(t *testing.T) {
	cmd := newCommand()
	var out strings.Builder
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"version"})
	if err := cmd.Execute(); err != nil || !slices.Contains(strings.Fields(out.String()), version) {
		t.Errorf("%q, %v", out.String(), err)
	}
}
