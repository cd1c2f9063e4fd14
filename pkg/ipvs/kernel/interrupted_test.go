package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// A dump that was interrupted, because something else changed the table under it, is taken again, and what the interrupted
// one had said is forgotten: whichever dump it is (row B74).
func TestInterruptedDumps(t *testing.T) {
	lost, kept := key("10.96.0.10", 80), key("10.96.0.11", 80) // one was deleted meanwhile
	v := &ipvsDoor{family: 30}
	message := func(put func(b *batch, k ipvs.Key)) func(ipvs.Key) []byte {
		return func(k ipvs.Key) []byte {
			var b batch
			put(&b, k)
			b.finish()
			return b.data
		}
	}
	service := message(func(b *batch, k ipvs.Key) {
		v.begin(b, cmdNewService, 0)
		putService(b, ipvs.AddServer{Key: k, Scheduler: "rr"})
	})
	dest := message(func(b *batch, k ipvs.Key) {
		v.begin(b, cmdNewDest, 0)
		putDest(b, k, netip.AddrPortFrom(k.Addr, 80), &ipvs.Real{Weight: 1})
	})
	theRule := rule{chain: chainCheck, why: "why", comment: "why"}
	nftRule := message(func(b *batch, k ipvs.Key) {
		r := theRule
		if k == lost {
			r.why = "another"
		}
		putRule(b, tableName, r)
	})
	for _, c := range []struct {
		name string
		says func(ipvs.Key) []byte
		look func(s *socket) (string, error)
		want string
	}{
		{"virtual servers", service, func(s *socket) (string, error) {
			found, err := (&ipvsDoor{sock: s, family: 30}).allServices(t.Context())
			var keys []ipvs.Key
			for k := range found {
				keys = append(keys, k)
			}
			return fmt.Sprint(keys), err
		}, "[10.96.0.11:80/tcp]"},
		{"real servers", dest, func(s *socket) (string, error) {
			reals, _, err := (&ipvsDoor{sock: s, family: 30}).reals(t.Context(), kept)
			return fmt.Sprint(reals), err
		}, "[{10.96.0.11:80 1 0 0}]"},
		{"elements", func(ipvs.Key) []byte { return nil }, func(s *socket) (string, error) {
			n := 0
			err := (&nftDoor{sock: s}).all(t.Context(), ipvs.SetOwned, func(ipvs.Element) { n++ })
			return fmt.Sprint(n), err
		}, "0"},
		{"rules", nftRule, func(s *socket) (string, error) {
			right, err := (&nftDoor{sock: s, rules: []rule{theRule}}).rulesAreRight(t.Context())
			return fmt.Sprint(right), err
		}, "true"},
		{"connections", func(ipvs.Key) []byte { return nil }, func(s *socket) (string, error) {
			found, err := (&conntrackDoor{sock: s}).find(t.Context(), []ipvs.Forget{{Key: kept}})
			return fmt.Sprint(len(found)), err
		}, "0"},
		{"addresses", func(ipvs.Key) []byte { return nil }, func(s *socket) (string, error) {
			found, err := (&linkDoor{sock: s}).addresses(t.Context(), 0)
			return fmt.Sprint(len(found)), err
		}, "0"},
	} {
		s := faulty(t, func(opened int, seqs []uint32, send func([]byte)) {
			say, flags := c.says(kept), uint16(unix.NLM_F_MULTI)
			if opened < 3 {
				say, flags = c.says(lost), flags|unix.NLM_F_DUMP_INTR
			}
			if len(say) > 0 {
				binary.NativeEndian.PutUint16(say[6:], unix.NLM_F_MULTI)
				binary.NativeEndian.PutUint32(say[8:], seqs[0])
				send(say)
			}
			end := answer(seqs[0], 0)
			binary.NativeEndian.PutUint16(end[4:], unix.NLMSG_DONE)
			binary.NativeEndian.PutUint16(end[6:], flags)
			send(end)
		})
		if got, err := c.look(s); err != nil || got != c.want {
			t.Errorf("%s, interrupted twice: %s, %v; want %s", c.name, got, err, c.want)
		}
	}
	tries := 0
	if err := again(func() error { tries++; return fmt.Errorf("list: %w", netlink.ErrDumpInterrupted) }); !errors.Is(err, netlink.ErrDumpInterrupted) || tries != 4 {
		t.Errorf("the library's word for it: %d tries, %v", tries, err)
	}
}
