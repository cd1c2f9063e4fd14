package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/term"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// shell builds the demo's world and runs a shell on node1, whose exit status is in the error. It may read its
// commands from a terminal or from anything else.
func shell() (err error) {
	s, err := newScene()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	// A pod that is no endpoint yet: for the person to make one of it.
	spare, err := s.w.AddPod(lab.PodSpec{Name: "pod-d", Node: 3})
	if err != nil {
		return err
	}
	if _, err := spare.ServeHTTP(httpPort); err != nil {
		return err
	}
	for _, example := range []string{"kubia.yaml", "resolver.yaml"} {
		if _, err := s.apply(example); err != nil {
			return err
		}
	}
	for _, n := range s.w.Nodes {
		log, err := os.Create(filepath.Join(s.dir, n.Name+".log"))
		if err != nil {
			return err
		}
		defer log.Close()
		if _, _, err := s.start(n, log); err != nil {
			return err
		}
	}
	if err := s.w.Publish(); err != nil {
		return err
	}
	tools, err := s.tools()
	if err != nil {
		return err
	}
	return s.sitDown(tools)
}

// tools makes a directory with the programs that we are under other names, and the agent's.
func (s *scene) tools() (dir string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(s.dir, "bin")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	for name, program := range map[string]string{"ask": self, "as": self, "ipvs-proxy": os.Getenv("LAB_AGENT")} {
		if err := os.Symlink(program, filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// sitDown runs the shell to its end.
func (s *scene) sitDown(tools string) error {
	args := []string{"sh"}
	if term.IsTerminal(int(os.Stdin.Fd())) {
		args = interactive()
		fmt.Printf(guide, s.cluster.Dir)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = s.cluster.Dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	node := s.w.Node(1)
	cmd.Env = append(os.Environ(), "PATH="+tools+":"+os.Getenv("PATH"), "HOME="+s.dir, prompt(node.Name))
	// Ctrl-C is for what the shell runs, not for us and the agents.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if term.IsTerminal(int(os.Stdin.Fd())) {
		cmd.SysProcAttr.Foreground, cmd.SysProcAttr.Ctty = true, int(os.Stdin.Fd())
	}
	if err := node.Do(cmd.Start); err != nil {
		return fmt.Errorf("start %s on %s: %w", args[0], node.Name, err)
	}
	return cmd.Wait()
}

// interactive is a shell for a person: the first of those that edit lines.
func interactive() []string {
	for _, args := range [][]string{{"bash", "--norc", "--noprofile"}, {"ash"}} {
		if _, err := exec.LookPath(args[0]); err == nil {
			return args
		}
	}
	return []string{"sh"}
}

// prompt says where a person is.
func prompt(host string) string { return "PS1=" + host + "# " }

const guide = `
This is node1, of three nodes on which ipvs-proxy runs. It follows the YAML files in this directory:
%s

  vi kubia.yaml                       change a Service; pod-d, 10.244.3.10, serves already and waits for its line
  ipvs-proxy show                     what this node serves, and why: show default/kubia, explain default/kubia,
                                      explain 172.28.128.100 to 10.96.0.80:80, top, log
  ipvsadm -Ln                         what this node's kernel has; nft list table inet ipvs-proxy;
                                      ip addr show kube-ipvs0; conntrack -L; the agent's log: ../node1.log
  ask 10.96.0.80:80                   a request over HTTP from here; ask -udp 10.96.0.10:53; ask -n 12 ...
  as client ask 172.28.128.13:30123   the same as another: client, node1 to node3, pod-a to pod-d, dns-a
  as node3 ipvsadm -Ln                any command; without one, a shell there
  exit                                ends all of it

`
