package fake_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/contract"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
)

func open(*testing.T) contract.Kernel { return fake.New() }

func TestContract(t *testing.T) { contract.Run(t, open) }

func TestB91Contract(t *testing.T) { contract.ManyElements(t, open) }

// TestRefusals: the fake refuses what every real kernel on record refuses, in the same words.
func TestRefusals(t *testing.T) {
	records, err := filepath.Glob("../kernel/testdata/refusals/*.txt")
	if err != nil || len(records) == 0 {
		t.Fatalf("no records of real kernels: %v", err)
	}
	got := contract.Refusals(t, open, func(string) bool { return true })
	for _, file := range records {
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), got); d != "" {
			t.Errorf("%s (-real +fake):\n%s", filepath.Base(file), d)
		}
	}
}

// TestForget: what is stale goes, of the Keys asked for alone.
func TestForget(t *testing.T) {
	k := fake.New()
	a, b := ipvs.Key{Port: 1}, ipvs.Key{Port: 2}
	k.Stale = map[ipvs.Key]int{a: 3, b: 1}
	if o := k.Do(context.Background(), ipvs.Plan{{Key: a, Op: ipvs.Forget{Key: a}}}); o[0].Err != nil {
		t.Fatal(o[0].Err)
	}
	if k.Stale[a] != 0 || k.Stale[b] != 1 {
		t.Errorf("left %v, want the one entry of %s", k.Stale, b)
	}
}
