package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// What becomes of a mutant. Only killed is good.
const (
	killed   = "killed"
	survived = "SURVIVED"
	broken   = "BROKEN"   // it does not build, or its test did not come to an end by itself
	unproven = "UNPROVEN" // its test does not pass with the agent as it is, or was not run
)

// outcome is a verdict and what the test said.
type outcome struct {
	verdict, output string
	took            time.Duration
}

// passes: the test itself ran, and to its end.
func passes(exit int, output, test string) bool {
	return exit == 0 && strings.Contains("\n"+output, "\n--- PASS: "+test+" ")
}

// verdict: killed means that the test itself failed, not that it could not run, took too long or crashed.
func verdict(exit int, output, test string) string {
	switch {
	case exit == 1 && strings.Contains("\n"+output, "\n--- FAIL: "+test+" ") && !strings.Contains(output, "panic: test timed out"):
		return killed
	case passes(exit, output, test):
		return survived
	}
	return broken
}

// testTime is what a test may take before it is ended from outside, by the machine's own clock; it ends itself a little
// before. Where one part waits for a minute until it fails, several may before the test ends.
const testTime = 16 * time.Minute

// testArgs is how a test runs. It ends with the first part that fails.
func testArgs(test string) []string {
	return []string{"-test.v", "-test.timeout=15m", "-test.failfast", "-test.run=^" + test + "$"}
}

// verdicts takes what becomes of mutants, as it comes, from several machines at once.
type verdicts struct {
	mu      sync.Mutex
	of      map[string]string
	outputs string // directory for what the tests said; empty: nobody asks
}

// say tells it at once: a long run that is ended has not been for nothing.
func (v *verdicts) say(m mutant, o outcome) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.of[m.name] = o.verdict
	fmt.Printf("%-9s %4.0fs %-26s %-60s %s\n", o.verdict, o.took.Seconds(), m.name, strings.TrimPrefix(m.pkg, "./")+" "+m.test, m.takesOut)
	if v.outputs == "" {
		return nil
	}
	return os.WriteFile(filepath.Join(v.outputs, m.name+".txt"), []byte(o.output), 0o644)
}

// sum names again whoever was not killed, and fails for it.
func (v *verdicts) sum(mutants []mutant) error {
	bad := 0
	for _, m := range mutants {
		if got := v.of[m.name]; got != killed {
			bad++
			fmt.Printf("not killed: %-9s %s\n", got, m.name)
		}
	}
	fmt.Printf("mutants: %d killed, %d not\n", len(mutants)-bad, bad)
	if bad > 0 {
		return fmt.Errorf("%d of %d mutants were not shown to be noticed by their test", bad, len(mutants))
	}
	return nil
}
