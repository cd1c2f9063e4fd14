package machine

import (
	"reflect"
	"strings"
	"testing"
)

func TestClosure(t *testing.T) {
	mods := map[string]module{
		"ip_vs":        {name: "ip_vs", deps: []string{"nf_conntrack", "libcrc32c"}},
		"ip_vs_rr":     {name: "ip_vs_rr", deps: []string{"ip_vs"}},
		"ip_vs_sh":     {name: "ip_vs_sh", deps: []string{"ip_vs"}},
		"nf_conntrack": {name: "nf_conntrack", deps: []string{"libcrc32c", "core"}, soft: []string{"absent"}},
		"libcrc32c":    {name: "libcrc32c", soft: []string{"crc32c_intel"}},
		"crc32c_intel": {name: "crc32c_intel"},
		"unrelated":    {name: "unrelated"},
	}
	got, err := closure(mods, map[string]bool{"core": true, "veth": true}, []string{"ip_vs_*", "veth|old_veth"}, []string{"ip_vs_sh"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range got {
		names = append(names, m.name)
	}
	if want := []string{"crc32c_intel", "libcrc32c", "nf_conntrack", "ip_vs", "ip_vs_rr"}; !reflect.DeepEqual(names, want) {
		t.Errorf("order %v, want %v", names, want)
	}
}

func TestClosureErrors(t *testing.T) {
	mods := map[string]module{
		"a": {name: "a", deps: []string{"b"}},
		"b": {name: "b", deps: []string{"a"}},
		"c": {name: "c", deps: []string{"gone"}},
	}
	for pattern, want := range map[string]string{"a": "depends on itself", "c": "no module gone", "d*": "nothing called d*"} {
		if _, err := closure(mods, nil, []string{pattern}, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", pattern, err, want)
		}
	}
}

func TestParseModinfo(t *testing.T) {
	m := parseModinfo([]byte("license=GPL\x00depends=nf-conntrack,libcrc32c\x00softdep=pre: crc32c aes-x post: z\x00depends=\x00"))
	if want := []string{"nf_conntrack", "libcrc32c"}; !reflect.DeepEqual(m.deps, want) {
		t.Errorf("deps %v, want %v", m.deps, want)
	}
	if want := []string{"crc32c", "aes_x"}; !reflect.DeepEqual(m.soft, want) {
		t.Errorf("soft %v, want %v", m.soft, want)
	}
}

func TestModuleName(t *testing.T) {
	for file, want := range map[string]string{
		"kernel/net/sctp/sctp.ko":      "sctp",
		"/x/crc32c-intel.ko.xz":        "crc32c_intel",
		"kernel/net/netfilter/Kconfig": "",
	} {
		got, ok := moduleName(file)
		if ok != (want != "") || (ok && got != want) {
			t.Errorf("%s: %q %v, want %q", file, got, ok, want)
		}
	}
}
