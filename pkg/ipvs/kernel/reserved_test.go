package kernel

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

func ports(t *testing.T, text string) *portSet {
	t.Helper()
	s, err := parsePorts(text)
	must(t, err)
	return s
}

func TestPortSet(t *testing.T) {
	for _, text := range []string{"", "0", "80", "80-81", "0-65535", "1,3,5-7,65535", "63-64,127-128"} {
		if got := ports(t, text+"\n").String(); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
	if got := ports(t, "5,3-4, ").String(); got != "3-5" {
		t.Errorf("ranges that meet: %q", got)
	}
	for _, bad := range []string{"x", "1-", "5-3", "70000", "-1"} {
		if _, err := parsePorts(bad); err == nil {
			t.Errorf("%q is a range", bad)
		}
	}
	if got := ports(t, "1,3,5,7,9,11,13,15,17,19").few(); got != "1,3,5,7,9,11,13,15 and 2 more" {
		t.Errorf("few: %s", got)
	}
	a, b := ports(t, "1-10"), ports(t, "5-20")
	if with, without := a.with(b).String(), a.without(b).String(); with != "1-20" || without != "1-4" {
		t.Errorf("with %s, without %s", with, without)
	}
}

// reserving is a Kernel as far as Reserve needs one, in a network namespace of its own.
func reserving(t *testing.T, reserved string) *Kernel {
	k := &Kernel{nft: testNFT(t)}
	setReservedPorts(t, reserved)
	return k
}

func setReservedPorts(t *testing.T, text string) {
	t.Helper()
	must(t, os.WriteFile(sysctlRoot+reservedPorts, []byte(text+"\n"), 0))
}

// restarted is the next process of an agent: it knows what is recorded.
func restarted(k *Kernel) *Kernel { return &Kernel{nft: k.nft} }

// B81: our ports stand beside those that others reserved, and go alone. A port that others had first is theirs, and so it
// is after a restart and after a clean-up.
func TestB81OursAndOthers(t *testing.T) {
	ctx := context.Background()
	k := reserving(t, "8080,30005-30006")
	wants := func(what string, k *Kernel, list string, keep bool, sysctl, record string) {
		t.Helper()
		_, err := k.reserve(ctx, sysctlRoot, ports(t, list), keep)
		must(t, err)
		recorded, err := k.nft.recordedPorts(ctx)
		must(t, err)
		if got := valueOf(t, sysctlRoot, reservedPorts); got != sysctl || recorded.String() != record {
			t.Errorf("%s: the sysctl is %q and the record %q, want %q and %q", what, got, recorded, sysctl, record)
		}
	}
	wants("two come, one is others' already", k, "30001,30005", false, "8080,30001,30005-30006", "30001")
	if wrote, err := k.reserve(ctx, sysctlRoot, ports(t, "30001,30005"), false); err != nil || len(wrote) > 0 {
		t.Errorf("nothing new: wrote %q, %v", wrote, err)
	}
	k = restarted(k)
	wants("a restart with one more", k, "30001,30002,30005", false, "8080,30001-30002,30005-30006", "30001-30002")
	wants("not all of the cluster is known", restarted(k), "", true, "8080,30001-30002,30005-30006", "30001-30002")
	wants("one goes, and the one that is others' as well", k, "30002", false, "8080,30002,30005-30006", "30002")
	setReservedPorts(t, "9000") // another program replaced all of it
	wants("somebody wrote the sysctl anew", k, "30002", false, "9000,30002", "30002")
	must(t, k.nft.recordPorts(ctx, ports(t, "30002"), true)) // and somebody the record
	k.reserved.recorded = nil
	wants("somebody emptied the record", k, "30002", false, "9000,30002", "30002")
	done, err := k.nft.unreserve(ctx, sysctlRoot)
	if got := valueOf(t, sysctlRoot, reservedPorts); err != nil || got != "9000" || len(done) != 1 || !strings.HasSuffix(done[0], ": -30002") {
		t.Errorf("after a clean-up: %q, %q, %v", got, done, err)
	}
}

// B81: a process that dies between any two writes leaves nothing of ours that cannot be told from others', and nothing of
// others' that looks like ours.
func TestB81DiesInBetween(t *testing.T) {
	ctx := context.Background()
	k := reserving(t, "8080")
	must(t, k.nft.recordPorts(ctx, ports(t, "30001"), false)) // recorded, and not in the sysctl yet
	_, err := restarted(k).reserve(ctx, sysctlRoot, ports(t, "30001"), false)
	if got := valueOf(t, sysctlRoot, reservedPorts); err != nil || got != "8080,30001" {
		t.Errorf("died before the sysctl: %q, %v", got, err)
	}
	setReservedPorts(t, "8080") // out of the sysctl, and still recorded
	_, err = restarted(k).reserve(ctx, sysctlRoot, ports(t, ""), false)
	recorded, readErr := k.nft.recordedPorts(ctx)
	if got := valueOf(t, sysctlRoot, reservedPorts); err != nil || readErr != nil || got != "8080" || !recorded.empty() {
		t.Errorf("died before the record: %q, %s, %v, %v", got, recorded, err, readErr)
	}
}

// B81: where the sysctl may not be written, that is a warning where it hurts: where the kernel gives one of the ports away. And
// nothing is recorded that is not there.
func TestB81NotWritable(t *testing.T) {
	ctx := context.Background()
	k := reserving(t, "8080")
	root := procSys(t, map[string]string{reservedPorts: "8080", ephemeralPorts: "32768\t60999"})
	must(t, k.nft.recordPorts(ctx, ports(t, "30009"), false))
	must(t, os.Remove(root+reservedPorts))
	if _, err := k.reserve(ctx, root, ports(t, "30001"), false); err == nil {
		t.Error("a file that is not there was read")
	}
	if wrote, done, err := k.replacePorts(ctx, root, ports(t, "8080,30009"), ports(t, "8080,30001"), ports(t, "30001")); wrote != nil || done || err != nil {
		t.Errorf("a port that is given to nobody: %q, done %t, %v", wrote, done, err)
	}
	_, done, err := k.replacePorts(ctx, root, ports(t, "8080,30009"), ports(t, "8080,30001,40000-40001"), ports(t, "30001,40000-40001"))
	if err == nil || done {
		t.Fatalf("done %t, %v", done, err)
	}
	for _, part := range []string{"has not the node ports 40000-40001 and cannot be written: ", "gets no answer", "sysctl -w " + reservedPorts, "30000-32767"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	if recorded, err := k.nft.recordedPorts(ctx); err != nil || recorded.String() != "30009" {
		t.Errorf("recorded: %s, %v", recorded, err)
	}
}

// B81: the kernel's own file, with a list that is longer than a page and than what one read gives by default.
func TestB81LongList(t *testing.T) {
	ctx := context.Background()
	const theirs = "8080,9000-9100"
	k := reserving(t, theirs)
	var odd []uint16
	for p := 10001; p < 65535; p += 2 {
		odd = append(odd, uint16(p))
	}
	wrote, err := k.Reserve(ctx, odd, false)
	must(t, err)
	got, err := readPorts(sysctlRoot + reservedPorts)
	must(t, err)
	if want := portsOf(odd).with(ports(t, theirs)); *got != *want {
		t.Errorf("%d ranges are reserved, want %d", len(got.ranges()), len(want.ranges()))
	}
	t.Logf("%d ports, %d bytes: %q", len(odd), len(got.String()), wrote)
	if wrote, err = restarted(k).Reserve(ctx, odd[:1], false); err != nil || len(wrote) != 1 {
		t.Errorf("all but one go: %q, %v", wrote, err)
	}
	if got, err = readPorts(sysctlRoot + reservedPorts); err != nil || got.String() != theirs+",10001" {
		t.Errorf("left: %q, %v", got.few(), err)
	}
	exposed, writable, err := ExposedPorts(30000, 32767)
	if err != nil || writable != nil || exposed != "" {
		t.Errorf("exposed: %q, %v, %v", exposed, writable, err)
	}
	must(t, os.WriteFile(sysctlRoot+ephemeralPorts, []byte("9090 32000"), 0))
	if exposed, _, err = ExposedPorts(10000, 10003); err != nil || exposed != "10000,10002-10003" {
		t.Errorf("exposed: %q, %v", exposed, err)
	}
}

// The warning has a name, by which it is known when its ports change.
func TestB81WarningHasAName(t *testing.T) {
	err := ipvs.About{Name: reservedPorts, Err: os.ErrPermission}
	if got := ipvs.AboutOf(fmt.Errorf("wrapped: %w", err)); got != reservedPorts {
		t.Errorf("it is about %q", got)
	}
}
