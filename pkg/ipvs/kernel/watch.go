package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// watcher hears of addresses that come and go on the node's interfaces and says so, without saying what: who
// cares reads anew. What happens on our own interface and link-local addresses, which come and go with every
// pod, are no news.
type watcher struct {
	f       *os.File
	changed chan struct{}
	ours    atomic.Int32 // index of our interface
	done    chan struct{}
}

// watch begins to listen in this thread's network namespace.
func watch() (*watcher, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket for changes of addresses: %w", err)
	}
	groups := uint32(unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen for changes of addresses: %w", err)
	}
	w := &watcher{f: os.NewFile(uintptr(fd), "rtnetlink addresses"), changed: make(chan struct{}, 1), done: make(chan struct{})}
	go w.run()
	return w, nil
}

func (w *watcher) run() {
	defer close(w.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := w.f.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS): // some were lost
			w.signal()
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return // closed
		case w.isNews(buf[:n]):
			w.signal()
		}
	}
}

// isNews looks for an address of another interface that is more than link-local.
func (w *watcher) isNews(data []byte) (news bool) {
	err := eachMessage(data, func(typ, _ uint16, _ uint32, body []byte) {
		if typ != unix.RTM_NEWADDR && typ != unix.RTM_DELADDR || len(body) < unix.SizeofIfAddrmsg {
			return
		}
		scope, index := body[3], int32(binary.NativeEndian.Uint32(body[4:]))
		news = news || index != w.ours.Load() && scope != unix.RT_SCOPE_LINK
	})
	return news || err != nil
}

func (w *watcher) signal() {
	select {
	case w.changed <- struct{}{}:
	default: // a token is there already
	}
}

func (w *watcher) close() {
	w.f.Close()
	<-w.done
}
