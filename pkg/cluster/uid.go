package cluster

import (
	"encoding/hex"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// UID is an object's UID (RFC 4122); zero: unknown, or not of that form. It
// takes 16 bytes where its text takes 52.
type UID [16]byte

func parseUID(s types.UID) (id UID) {
	b, err := hex.DecodeString(strings.ReplaceAll(string(s), "-", ""))
	if err != nil || len(b) != len(id) {
		return UID{}
	}
	return UID(b)
}

// String gives the UID as the API has it; "" for the zero UID.
func (u UID) String() string {
	if u == (UID{}) {
		return ""
	}
	s := hex.EncodeToString(u[:])
	return strings.Join([]string{s[:8], s[8:12], s[12:16], s[16:20], s[20:]}, "-")
}
