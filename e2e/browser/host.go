package browser

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Serve starts e2e/pagehost, a node's agent on a kernel in memory, and gives where its page is. It ends with done, and when this
// process ends: it reads a pipe of ours. More are its flags beside the number of Services.
func Serve(services int, more ...string) (base string, done func(), err error) {
	if at := os.Getenv("PAGE"); at != "" && len(more) == 0 {
		return at, func() {}, nil
	}
	dir, err := os.MkdirTemp("", "pagehost-")
	if err != nil {
		return "", nil, err
	}
	program := filepath.Join(dir, "pagehost")
	build := exec.Command(goTool(), "build", "-o", program, "./e2e/pagehost")
	build.Dir = root()
	if out, err := build.CombinedOutput(); err != nil {
		return "", nil, errors.Join(fmt.Errorf("build e2e/pagehost: %w\n%s", err, out), os.RemoveAll(dir))
	}
	cmd := exec.Command(program, append([]string{"--services", strconv.Itoa(services)}, more...)...)
	cmd.Stderr = os.Stderr
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	done = func() {
		_ = in.Close() // it then ends by itself
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		done()
		return "", nil, fmt.Errorf("e2e/pagehost said no address: %w", err)
	}
	return strings.TrimSpace(line), done, nil
}

// goTool is the Go that runs this, if make says which.
func goTool() string {
	if tool := os.Getenv("GO"); tool != "" {
		return tool
	}
	return "go"
}

// root is the top of the tree, seen from this module's packages.
func root() string {
	dir, err := os.Getwd()
	if err != nil {
		return "../.."
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "e2e", "pagehost")); err == nil {
			return dir
		}
	}
	return "../.."
}
