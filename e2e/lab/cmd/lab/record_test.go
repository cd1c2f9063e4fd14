package main

import (
	"errors"
	"strings"
	"testing"
)

const events = `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/x"}
{"Action":"output","Package":"p","Test":"TestA/x","Output":"    a_test.go:1: wrong\n"}
{"Action":"output","Package":"p","Test":"TestA/x","Output":"    --- FAIL: TestA/x (0.10s)\n"}
{"Action":"fail","Package":"p","Test":"TestA/x","Elapsed":0.1}
{"Action":"run","Package":"p","Test":"TestA/y"}
{"Action":"pass","Package":"p","Test":"TestA/y","Elapsed":0.2}
{"Action":"fail","Package":"p","Test":"TestA","Elapsed":0.3}
{"Action":"run","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:2: needs the lab\n"}
{"Action":"skip","Package":"p","Test":"TestB","Elapsed":0}
{"Action":"run","Package":"p","Test":"TestC"}
{"Action":"run","Package":"p","Test":"TestC/z"}
{"Action":"pass","Package":"p","Test":"TestC/z","Elapsed":0}
{"Action":"fail","Package":"p","Test":"TestC","Elapsed":0.3}
{"Action":"run","Package":"p","Test":"TestD"}
{"Action":"fail","Package":"p","Elapsed":1}
`

func TestRecorder(t *testing.T) {
	var out strings.Builder
	r := newRecorder(&out, "host")
	if err := r.read(strings.NewReader(events)); err != nil {
		t.Fatal(err)
	}
	r.endPackage("p", errors.New("exit status 1"), true)
	// TestA/x, TestC by itself, and TestD that never ended.
	if got, want := r.count(), (counts{2, 3, 1}); got != want {
		t.Errorf("%v, want %v\n%s", got, want, out.String())
	}
	for _, want := range []string{
		"FAIL  host p TestA/x (0.10s)\n          a_test.go:1: wrong\n",
		"ok    host p TestA/y (0.20s)\n",
		"skip  host p TestB (b_test.go:2: needs the lab)\n",
		"FAIL  host p TestD (0.00s)\n      did not end\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, out.String())
		}
	}
	there := newRecorder(&out, "kernel")
	there.event(event{Action: "pass", Package: "p", Test: "TestB"})
	r.forgetSkips(there)
	if got, want := r.count(), (counts{2, 3, 0}); got != want {
		t.Errorf("after the lab ran TestB: %v, want %v", got, want)
	}
}

func TestEndPackage(t *testing.T) {
	for name, tc := range map[string]struct {
		events string
		exit   error
		want   counts
	}{
		"no test files":     {`{"Action":"skip","Package":"p"}`, nil, counts{}},
		"broken build":      {`{"Action":"build-output","ImportPath":"p [p.test]","Output":"x.go:1: oh\n"}` + "\n" + `{"Action":"fail","Package":"p"}`, nil, counts{0, 1, 0}},
		"exit before tests": {"", errors.New("exit status 2"), counts{0, 1, 0}},
		"exit after tests":  {`{"Action":"pass","Package":"p","Test":"T"}`, errors.New("exit status 2"), counts{1, 1, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			r := newRecorder(&out, "host")
			if err := r.read(strings.NewReader(tc.events)); err != nil {
				t.Fatal(err)
			}
			r.endPackage("p", tc.exit, false)
			if got := r.count(); got != tc.want {
				t.Errorf("%v, want %v\n%s", got, tc.want, out.String())
			}
		})
	}
	var out strings.Builder
	r := newRecorder(&out, "kernel")
	r.endPackage("p", nil, true)
	if got := r.count(); got.failed != 1 {
		t.Errorf("a package that ran no test passed: %v", got)
	}
}

func TestParseFiles(t *testing.T) {
	got, err := parseFiles([]string{"a=/b=c"})
	if err != nil || got["a"] != "/b=c" {
		t.Errorf("%v %v", got, err)
	}
	if _, err := parseFiles([]string{"=x"}); err == nil {
		t.Error("took a file without a name")
	}
}
