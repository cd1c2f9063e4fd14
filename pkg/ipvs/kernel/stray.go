package kernel

import (
	"context"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// strayLink is the interface that the module dummy makes by itself when it is loaded without parameters, in the machine's
// first network namespace. Nobody asked for it, and it looks as if it were for something.
const strayLink = "dummy0"

// withoutStray does something for which the kernel may load the module dummy, and takes away the interface that the module
// then makes by itself. What was there before, is up or is part of something is somebody's, and so is one of several: then
// the module was loaded with parameters that somebody chose.
func withoutStray(ctx context.Context, do func() error) error {
	before, err := linksAround(ctx, "dummy")
	if err != nil || !hasOtherKind(before, "dummy") { // the module is there: it makes nothing any more
		return do()
	}
	failed := do()
	var made []linkMessage
	if err := eachLink(ctx, "dummy", func(l linkMessage) {
		if l.name != linkName {
			made = append(made, l)
		}
	}); err == nil && len(made) == 1 && isStray(made[0]) {
		_ = deleteLink(ctx, made[0].index) // where it stays, it does no harm
	}
	return failed
}

func isStray(l linkMessage) bool { return l.name == strayLink && !l.up && l.master == 0 }

// hasOtherKind reports whether there are interfaces of another kind in an answer of linksAround: the kernel does not know
// the one that was asked for. The loopback interface is always there.
func hasOtherKind(links []linkMessage, kind string) bool {
	for _, l := range links {
		if l.kind != kind {
			return true
		}
	}
	return false
}

func deleteLink(ctx context.Context, index uint32) error {
	return ask(ctx, unix.NETLINK_ROUTE, func(b *batch) {
		head := make([]byte, unix.SizeofIfInfomsg)
		binary.NativeEndian.PutUint32(head[4:], index)
		b.begin(unix.RTM_DELLINK, 0, head)
	})
}
