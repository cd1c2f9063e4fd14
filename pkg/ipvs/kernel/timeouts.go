package kernel

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Timeouts are how long IPVS keeps an idle connection of this network namespace, in whole seconds (parts of one
// are rounded up): TCP's, TCP's after a FIN, UDP's. A zero leaves a value as it is, as it does with ipvsadm --set.
type Timeouts struct{ TCP, TCPFin, UDP time.Duration }

// The commands and attributes of include/uapi/linux/ip_vs.h.
const (
	cmdSetConfig = 12
	cmdGetConfig = 13

	attrTimeoutTCP    = 4
	attrTimeoutTCPFin = 5
	attrTimeoutUDP    = 6
)

// timeouts are in the order of their attributes.
type timeouts [3]uint32

func (t Timeouts) seconds() (s timeouts) {
	for i, d := range []time.Duration{t.TCP, t.TCPFin, t.UDP} {
		s[i] = uint32((d + time.Second - 1) / time.Second)
	}
	return s
}

// ensureTimeouts sets those that are wanted and different; with readOnly it only says how.
func (v *ipvsDoor) ensureTimeouts(ctx context.Context, wanted Timeouts, readOnly bool) (wrote []string, err error) {
	want := wanted.seconds()
	if want == (timeouts{}) {
		return nil, nil
	}
	have, err := v.timeouts(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the time-outs of IPVS: %w", err)
	}
	right := true
	for i := range want {
		right = right && (want[i] == 0 || want[i] == have[i])
	}
	if right {
		return nil, nil
	}
	line := "ipvsadm --set " + strings.Trim(fmt.Sprint(want), "[]")
	if readOnly {
		return []string{line}, nil
	}
	v.b.reset()
	v.begin(&v.b, cmdSetConfig, 0)
	for i, s := range want {
		v.b.attrU32(uint16(attrTimeoutTCP+i), s) // 0 means nothing to the kernel (ip_vs_ctl.c, ip_vs_set_timeout)
	}
	v.b.acknowledge()
	replies, err := v.sock.exchange(ctx, &v.b)
	if err == nil {
		err = replies[0].err
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", line, err)
	}
	return []string{line}, nil
}

// timeouts reads them.
func (v *ipvsDoor) timeouts(ctx context.Context) (have timeouts, err error) {
	v.b.reset()
	v.begin(&v.b, cmdGetConfig, 0)
	v.b.acknowledge()
	replies, err := v.sock.exchange(ctx, &v.b)
	if err == nil {
		err = replies[0].err
	}
	if err != nil {
		return have, err
	}
	found := 0
	for _, m := range replies[0].messages {
		err := eachAttr(skip(m, unix.GENL_HDRLEN), func(typ uint16, value []byte) error {
			if i := int(typ) - attrTimeoutTCP; i >= 0 && i < len(have) && len(value) >= 4 {
				have[i] = binary.NativeEndian.Uint32(value)
				found++
			}
			return nil
		})
		if err != nil {
			return have, err
		}
	}
	if found != len(have) {
		return have, fmt.Errorf("%d values in the answer: %w", found, unix.EBADMSG)
	}
	return have, nil
}
