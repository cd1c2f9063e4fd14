package plane

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Info is what a test needs to know of the control plane; the lab hands it on as a file.
type Info struct {
	Port       uint16 `json:"port"`
	Control    uint16 `json:"control"`
	Kubeconfig string `json:"kubeconfig"` // of an administrator
	Release    string `json:"release"`    // version of Kubernetes, such as 1.37.2
}

// InfoFile is the name of Info, as JSON, in the job's directory.
const InfoFile = "plane.json"

// Info describes the plane.
func (p *Plane) Info() ([]byte, error) {
	admin, err := p.Admin()
	if err != nil {
		return nil, err
	}
	return json.Marshal(Info{Port: p.Port, Control: p.Control, Kubeconfig: string(admin), Release: p.opts.Release})
}

// serveSwitches lets a test, which runs on another machine perhaps, do to the control plane what happens to one:
//
//	POST /stop      the API server gets SIGTERM and is waited for; with ?signal=kill SIGKILL
//	POST /start     the API server is started and waited for
//	GET  /audit     the audit log so far, a JSON object a line
//	POST /seed      Services are made, see Seed: ?services=N&endpoints=N
//	PUT  /out/NAME  a file for Options.Out
//	GET  /egress    in place of an answer, the next connection of the API server's to a pod, see egress.go
func (p *Plane) serveSwitches() error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	p.Control = uint16(ln.Addr().(*net.TCPAddr).Port)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /stop", func(w http.ResponseWriter, r *http.Request) {
		sig := syscall.SIGTERM
		if r.FormValue("signal") == "kill" {
			sig = syscall.SIGKILL
		}
		answer(w, p.StopAPI(sig))
	})
	mux.HandleFunc("POST /start", func(w http.ResponseWriter, r *http.Request) { answer(w, p.StartAPI(r.Context())) })
	mux.HandleFunc("POST /seed", func(w http.ResponseWriter, r *http.Request) {
		services, err := strconv.Atoi(r.FormValue("services"))
		endpoints, err2 := strconv.Atoi(r.FormValue("endpoints"))
		if err = errors.Join(err, err2); err == nil {
			err = p.Seed(r.Context(), services, endpoints)
		}
		answer(w, err)
	})
	mux.HandleFunc("GET /audit", func(w http.ResponseWriter, _ *http.Request) {
		b, err := os.ReadFile(p.auditLog())
		if err != nil {
			answer(w, err)
			return
		}
		_, _ = w.Write(b)
	})
	mux.HandleFunc("PUT /out/{name}", func(w http.ResponseWriter, r *http.Request) { answer(w, p.take(r)) })
	mux.HandleFunc("GET /egress", p.takeEgress)
	p.switches = &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go func() { _ = p.switches.Serve(ln) }()
	return nil
}

// take writes what a test hands out.
func (p *Plane) take(r *http.Request) error {
	if p.opts.Out == "" {
		return errors.New("nobody asked for files")
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.opts.Out, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(p.opts.Out, filepath.Base(r.PathValue("name"))), b, 0o644)
}

func answer(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, "ok")
}
