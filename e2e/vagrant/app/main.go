// Command app is what the cluster's pods run: the scenarios' applications kubia and python-web, and a client that talks to
// a Service without a pause.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/vagrant/load"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	switch {
	case len(args) == 0:
	case args[0] == "kubia" && len(args) == 1:
		return serve(ctx, "You've hit "+host)
	case args[0] == "python-web" && len(args) == 1:
		return serve(ctx, "Served by "+host+"/"+rand.Text()[:8])
	case args[0] == "load" && len(args) == 2:
		return talk(ctx, args[1])
	case args[0] == "pause" && len(args) == 1:
		<-ctx.Done()
		return nil
	}
	return errors.New("want: app kubia, app python-web, app load HOST:PORT, or app pause")
}

// serve answers requests and datagrams on port 8080 with a text. /client answers with the client's address, /ready with
// whether the pod is: PUT /ready/no and /ready/yes set that.
func serve(ctx context.Context, text string) error {
	udp, err := net.ListenUDP("udp", &net.UDPAddr{Port: 8080})
	if err != nil {
		return err
	}
	defer udp.Close()
	go func() {
		var b [512]byte
		for {
			_, from, err := udp.ReadFromUDP(b[:])
			if err != nil {
				return
			}
			_, _ = udp.WriteToUDP([]byte(text), from) // who does not get it counts it
		}
	}()
	ready := make(chan bool, 1)
	ready <- true
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) })
	mux.HandleFunc("GET /client", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RemoteAddr) })
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		is := <-ready
		ready <- is
		if !is {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("PUT /ready/{is}", func(_ http.ResponseWriter, r *http.Request) {
		<-ready
		ready <- r.PathValue("is") == "yes"
	})
	return listen(ctx, ":8080", mux)
}

// talk loads a Service, and tells on port 9000 what it counted.
func talk(ctx context.Context, addr string) error {
	l := load.Start(addr, 250*time.Millisecond)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /counts", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(l.Counts()) // who asked notices
	})
	err := listen(ctx, ":9000", mux)
	l.Stop()
	return err
}

// listen serves until it is to end, and then what was asked.
func listen(ctx context.Context, addr string, h http.Handler) error {
	s := &http.Server{Addr: addr, Handler: h, ReadHeaderTimeout: 30 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- s.ListenAndServe() }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return s.Shutdown(end)
}
