package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/programs"
)

// On emulated processors kube-apiserver does not always start within the limits that it sets itself, and serves a request in
// seconds. There the control plane runs on this machine, beside the machines: kubeadm makes its certificates, and what it
// puts into the cluster; k8s-master is a node with the taint and the label of a control plane. With KVM all is kubeadm's.

// emulated reports whether the machines' processors are, by the question that the Vagrantfile asks.
func emulated() bool {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(info)) {
		if key, flags, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "flags" {
			flags = " " + strings.TrimSpace(flags) + " "
			_, err := os.Stat("/dev/kvm")
			return err != nil || !strings.Contains(flags, " vmx ") && !strings.Contains(flags, " svm ")
		}
	}
	return true
}

// nodesPKI is where kubeadm has the certificates on nodes.
const nodesPKI = "/etc/kubernetes/pki"

// planeAddress is where the API server is.
func planeAddress() string {
	if emulated() {
		host, _, _ := net.SplitHostPort(hostAddress)
		return host
	}
	return addresses[master]
}

func (c *cluster) pki(name string) string   { return filepath.Join(c.dir, "plane/pki", name) }
func (c *cluster) plane(name string) string { return filepath.Join(c.dir, "plane", name) }

// initBeside makes the cluster with its control plane on this machine, unless that was done.
func (c *cluster) initBeside(ctx context.Context) error {
	done := c.plane("done")
	if _, err := os.Stat(done); err == nil {
		return c.stillDone(ctx)
	}
	if err := errors.Join(c.stopPlane(), os.RemoveAll(c.plane(""))); err != nil {
		return err
	}
	if err := os.MkdirAll(c.plane("pki"), 0o700); err != nil {
		return err
	}
	if err := c.writeConfig(c.plane("pki")); err != nil {
		return err
	}
	for _, phase := range []string{"certs ca", "certs apiserver", "certs apiserver-kubelet-client", "certs sa", "kubeconfig all --kubeconfig-dir " + c.plane("")} {
		if err := c.phase(ctx, phase); err != nil {
			return err
		}
	}
	if err := c.startPlane(ctx); err != nil {
		return err
	}
	// What goes into the cluster speaks of the nodes' directories.
	if err := c.writeConfig(nodesPKI); err != nil {
		return err
	}
	admin := " --kubeconfig " + c.plane("super-admin.conf")
	for _, phase := range []string{"upload-config kubeadm", "upload-config kubelet", "bootstrap-token", "addon all"} {
		if err := c.phase(ctx, phase+admin); err != nil {
			return err
		}
	}
	return os.WriteFile(done, nil, 0o600)
}

// stillDone has the control plane of an earlier run at work.
func (c *cluster) stillDone(ctx context.Context) error {
	if err := c.startPlane(ctx); err != nil {
		return err
	}
	return errDone
}

func (c *cluster) writeConfig(pki string) error {
	config, err := c.kubeadmConfig(pki)
	if err == nil {
		err = os.WriteFile(c.plane("kubeadm.yaml"), []byte(config), 0o600)
	}
	return err
}

func (c *cluster) phase(ctx context.Context, phase string) error {
	args := append([]string{"init", "phase"}, strings.Fields(phase)...)
	_, err := run(exec.CommandContext(ctx, c.programs[programs.Kubeadm], append(args, "--config", c.plane("kubeadm.yaml"))...))
	return err
}

// startPlane starts those of the control plane's programs that do not run, and waits until the API server is ready.
func (c *cluster) startPlane(ctx context.Context) error {
	const etcd = "http://127.0.0.1:2379"
	for _, p := range []struct {
		program string
		args    []string
	}{
		{programs.Etcd, []string{"--name=vagrant", "--data-dir=" + c.plane("etcd"), "--unsafe-no-fsync", "--log-level=warn",
			"--listen-client-urls=" + etcd, "--advertise-client-urls=" + etcd, "--listen-peer-urls=http://127.0.0.1:2380",
			"--initial-advertise-peer-urls=http://127.0.0.1:2380", "--initial-cluster=vagrant=http://127.0.0.1:2380"}},
		{programs.APIServer, []string{"--advertise-address=" + planeAddress(), "--secure-port=6443", "--etcd-servers=" + etcd,
			"--client-ca-file=" + c.pki("ca.crt"), "--tls-cert-file=" + c.pki("apiserver.crt"), "--tls-private-key-file=" + c.pki("apiserver.key"),
			"--kubelet-client-certificate=" + c.pki("apiserver-kubelet-client.crt"), "--kubelet-client-key=" + c.pki("apiserver-kubelet-client.key"),
			"--kubelet-preferred-address-types=InternalIP", "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + c.pki("sa.pub"), "--service-account-signing-key-file=" + c.pki("sa.key"),
			"--service-cluster-ip-range=10.96.0.0/12", "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
			"--enable-bootstrap-token-auth=true", "--allow-privileged=true"}},
		{programs.ControllerManager, []string{"--kubeconfig=" + c.plane("controller-manager.conf"), "--bind-address=127.0.0.1",
			"--cluster-signing-cert-file=" + c.pki("ca.crt"), "--cluster-signing-key-file=" + c.pki("ca.key"), "--root-ca-file=" + c.pki("ca.crt"),
			"--service-account-private-key-file=" + c.pki("sa.key"), "--use-service-account-credentials=true",
			"--controllers=*,bootstrapsigner,tokencleaner", "--allocate-node-cidrs=true", "--cluster-cidr=10.244.0.0/16",
			"--service-cluster-ip-range=10.96.0.0/12", "--node-monitor-grace-period=3m", "--leader-elect=false"}},
		{programs.Scheduler, []string{"--kubeconfig=" + c.plane("scheduler.conf"), "--bind-address=127.0.0.1", "--leader-elect=false"}},
	} {
		if c.running(p.program) {
			continue
		}
		if err := c.startProgram(p.program, p.args); err != nil {
			return err
		}
	}
	return until(ctx, 3*time.Minute, "the API server is ready", func() error {
		_, err := run(exec.CommandContext(ctx, c.programs[programs.Kubectl], "--kubeconfig", c.plane("super-admin.conf"), "get", "--raw", "/readyz"))
		return err
	})
}

// startProgram starts a program that outlives this one; its process is in a file.
func (c *cluster) startProgram(name string, args []string) error {
	out, err := os.OpenFile(c.plane(name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(c.programs[name], args...)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = out, out, &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	return errors.Join(os.WriteFile(c.plane(name+".pid"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600), cmd.Process.Release())
}

// process is that of a program that was started, 0 where it runs no more.
func (c *cluster) process(name string) int {
	b, err := os.ReadFile(c.plane(name + ".pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil {
		return 0
	}
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || filepath.Base(exe) != name {
		return 0
	}
	return pid
}

func (c *cluster) running(name string) bool { return c.process(name) != 0 }

// stopPlane ends what startPlane started, and waits until it has ended.
func (c *cluster) stopPlane() error {
	for _, name := range []string{programs.Scheduler, programs.ControllerManager, programs.APIServer, programs.Etcd} {
		pid := c.process(name)
		if pid == 0 {
			continue
		}
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("end %s: %w", name, err)
		}
		if err := until(context.Background(), time.Minute, name+" ends", func() error {
			if c.running(name) {
				return errors.New("it runs")
			}
			return nil
		}); err != nil {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it had a minute
		}
	}
	return nil
}

// besides gives the control plane's machine its marks, and this machine the ways to pods that an API server needs.
func (c *cluster) besides(ctx context.Context) error {
	for _, n := range nodes {
		var pods string
		if err := until(ctx, soon, n+" has a range for its pods", func() error {
			node, err := c.api.CoreV1().Nodes().Get(ctx, n, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if pods = node.Spec.PodCIDR; pods == "" {
				return errors.New("it has none yet")
			}
			return nil
		}); err != nil {
			return err
		}
		if _, err := run(exec.CommandContext(ctx, "ip", "route", "replace", pods, "via", addresses[n])); err != nil {
			return err
		}
	}
	for _, args := range [][]string{
		{"label", "--overwrite", "node", master, "node-role.kubernetes.io/control-plane="},
		{"taint", "--overwrite", "node", master, "node-role.kubernetes.io/control-plane=:NoSchedule"},
	} {
		if _, err := c.kubectl(ctx, c.dir, args...); err != nil {
			return err
		}
	}
	return nil
}

// down removes the machines, and ends what runs beside them. Routes to pods go with the machines' network.
func (c *cluster) down(ctx context.Context) error {
	_, err := c.vagrant(ctx, "destroy", "--force")
	err = errors.Join(err, c.stopPlane(), os.RemoveAll(c.plane("")))
	if rm := os.Remove(filepath.Join(c.dir, "ssh.conf")); rm != nil && !errors.Is(rm, fs.ErrNotExist) {
		err = errors.Join(err, rm)
	}
	return err
}
