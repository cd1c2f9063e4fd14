package plane

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

// process is a program of the control plane. It can be started again after its end.
type process struct {
	name string
	file string
	args []string
	log  string // its output is appended there

	cmd  *exec.Cmd
	gone chan struct{} // closed when it has ended
	exit error         // how, once gone is closed
}

func newProcess(dir, file string, args ...string) *process {
	name := filepath.Base(file)
	return &process{name: name, file: file, args: args, log: filepath.Join(dir, name+".log")}
}

// start starts the program; it ends with this process at the latest.
func (p *process) start() error {
	if p.running() {
		return fmt.Errorf("%s runs already", p.name)
	}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	p.cmd = exec.Command(p.file, p.args...)
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = out, out, filepath.Dir(p.log)
	gone := make(chan struct{})
	if err := machine.StartPinned(p.cmd, gone); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	p.gone = gone
	go func() {
		p.exit = p.cmd.Wait()
		close(gone)
	}()
	return nil
}

func (p *process) running() bool {
	if p.gone == nil {
		return false
	}
	select {
	case <-p.gone:
		return false
	default:
		return true
	}
}

// stopTime is how long a program may take to end after SIGTERM.
const stopTime = 20 * time.Second

// stop sends a signal and waits for the end; who does not end in time is killed.
func (p *process) stop(sig syscall.Signal) error {
	if !p.running() {
		return nil
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%v to %s: %w", sig, p.name, err)
	}
	select {
	case <-p.gone:
	case <-time.After(stopTime):
		_ = p.cmd.Process.Kill()
		<-p.gone
	}
	return nil
}

// lastWords is the end of the log.
func (p *process) lastWords() string {
	b, _ := os.ReadFile(p.log)
	return string(b[max(0, len(b)-4000):])
}
