package kernel

import (
	"context"
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shieldedBy lists the families that are shielded, each with the time that is left.
func (n *nftDoor) shieldedBy(t *testing.T) map[byte]time.Duration {
	t.Helper()
	found := map[byte]time.Duration{}
	n.b.reset()
	n.b.begin(nftType(unix.NFT_MSG_GETSETELEM), unix.NLM_F_DUMP, nfgen(unix.NFPROTO_INET, 0))
	n.b.attrString(unix.NFTA_SET_ELEM_LIST_TABLE, tableName)
	n.b.attrString(unix.NFTA_SET_ELEM_LIST_SET, setShielded)
	if err := n.sock.dump(context.Background(), &n.b, func(msg []byte) error {
		return eachAttr(skip(msg, nfgenLen), func(typ uint16, list []byte) error {
			if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				return nil
			}
			return eachAttr(list, func(_ uint16, element []byte) error {
				var family byte
				var left time.Duration
				err := eachAttr(element, func(typ uint16, v []byte) error {
					switch typ {
					case unix.NFTA_SET_ELEM_KEY:
						family = v[4] // behind the header of NFTA_DATA_VALUE
					case unix.NFTA_SET_ELEM_EXPIRATION:
						left = time.Duration(binary.BigEndian.Uint64(v)) * time.Millisecond
					}
					return nil
				})
				found[family] = left
				return err
			})
		})
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// B80: what is said once holds for five minutes from then on, in both families, and is off at once when that is said; also
// when it is off, or there is no table.
func TestShield(t *testing.T) {
	n := testNFT(t)
	shield := func(on bool) {
		t.Helper()
		if err := n.shield(t.Context(), on); err != nil {
			t.Fatal(err)
		}
	}
	wants := func(what string, families int, least time.Duration) {
		t.Helper()
		got := n.shieldedBy(t)
		for _, f := range []byte{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6}[:families] {
			if got[f] < least || got[f] > shieldedFor {
				t.Errorf("%s: %v, want %s to %s left of family %d", what, got, least, shieldedFor, f)
			}
		}
		if len(got) != families {
			t.Errorf("%s: %v, want %d families", what, got, families)
		}
	}
	wants("to begin with", 0, 0)
	shield(false)
	shield(true)
	wants("on", 2, shieldedFor-time.Minute)
	before := n.shieldedBy(t)[unix.NFPROTO_IPV4]
	for end := time.Now().Add(time.Minute); n.shieldedBy(t)[unix.NFPROTO_IPV4] > before-100*time.Millisecond; {
		if time.Now().After(end) {
			t.Fatal("it never ends")
		}
	}
	shield(true)
	wants("said again", 2, before-50*time.Millisecond)
	if wrote, created, err := n.ensure(t.Context()); err != nil || created || len(wrote) > 0 {
		t.Errorf("the table is looked at: wrote %v, created %t, %v", wrote, created, err)
	}
	shield(false)
	wants("off", 0, 0)
	shield(false)
	if _, err := removeTable(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	shield(false)
	if err := n.shield(t.Context(), true); err == nil {
		t.Error("on without a table")
	}
}
