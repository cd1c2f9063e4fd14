package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/vagrant/load"
)

// talkedTo is the application that clients talk to while the proxy changes.
func (c *cluster) talkedTo(ctx context.Context) (*corev1.Service, error) {
	return c.apply(ctx, application("kubia", 3), service("kubia", func(s *corev1.ServiceSpec) {
		s.Type = corev1.ServiceTypeNodePort
		s.Ports[0].NodePort, s.Ports[1].NodePort = 30080, 30080
	}))
}

// takeOver follows the guide "Replacing kube-proxy", there, back and there again.
func (c *cluster) takeOver(ctx context.Context, v *verdict) error {
	kubeadm, err := c.guide(guideFile, "## kubeadm", 3)
	if err != nil {
		return err
	}
	back, err := c.guide(guideFile, "## The way back", 2)
	if err != nil {
		return err
	}
	image, err := c.proxyImage(ctx)
	if err != nil {
		return err
	}
	if !strings.Contains(image, "registry.k8s.io/kube-proxy") {
		return fmt.Errorf("the DaemonSet kube-proxy runs %s already: bring the cluster up anew", image)
	}
	if _, err := c.talkedTo(ctx); err != nil { // something for diff to speak of
		return err
	}
	if err := c.preflight(ctx, v); err != nil {
		return err
	}
	return c.talking(ctx, func(t *talkers) error { return c.thereAndBack(ctx, v, t, kubeadm, back[0]) })
}

// thereAndBack takes the nodes over by the guide's steps, gives them back, and takes them over again.
func (c *cluster) thereAndBack(ctx context.Context, v *verdict, t *talkers, there []string, back string) error {
	for _, stage := range []struct {
		when string
		do   func() error
	}{
		{"kube-proxy alone", func() error { return nil }},
		{"one node taken over", func() error { return c.oneNode(ctx, v, there[0]) }},
		{"the other nodes taken over", func() error { return c.otherNodes(ctx, there[1]) }},
		{"given back to kube-proxy", func() error { return c.giveBack(ctx, v, back) }},
		{"taken over once more", func() error {
			return errors.Join(c.oneNode(ctx, v, there[0]), c.otherNodes(ctx, there[1]))
		}},
	} {
		start := time.Now()
		if err := stage.do(); err != nil {
			return fmt.Errorf("%s: %w", stage.when, err)
		}
		if err := c.talkOn(ctx, t); err != nil {
			return err
		}
		if err := t.nothingLost(ctx, v, fmt.Sprintf("%s (%.0f s)", stage.when, time.Since(start).Seconds())); err != nil {
			return err
		}
	}
	return nil
}

// talkOn waits until each client has asked ten times more: what a change broke shows by then.
func (c *cluster) talkOn(ctx context.Context, t *talkers) error {
	first, err := t.counts(ctx)
	if err != nil {
		return err
	}
	return until(ctx, soon, "the clients talk on", func() error {
		now, err := t.counts(ctx)
		if err != nil {
			return err
		}
		for who, kinds := range now {
			for kind, n := range kinds {
				if n.Asked < first[who][kind].Asked+10 {
					return fmt.Errorf("%s, %s: %d, had %d", who, kind, n.Asked, first[who][kind].Asked)
				}
			}
		}
		return nil
	})
}

// preflight runs the Jobs that the guide begins with.
func (c *cluster) preflight(ctx context.Context, v *verdict) error {
	said, err := c.onEveryNode(ctx, "job-check-replace-kube-proxy.yaml", "ipvs-proxy-check")
	if err != nil {
		return fmt.Errorf("%w\n%v", err, said)
	}
	for _, n := range nodes {
		lines := strings.Split(strings.TrimSpace(said[n]), "\n")
		c.figure(v, "check on %s: %d lines, the last: %s", n, len(lines), lines[len(lines)-1])
	}
	// diff's Jobs fail where there is a difference, which is what they are for.
	said, err = c.onEveryNode(ctx, "job-diff-replace-kube-proxy.yaml", "ipvs-proxy-diff")
	for _, n := range nodes {
		lines := strings.Split(strings.TrimSpace(said[n]), "\n")
		c.figure(v, "diff on %s: %d lines, the last: %s", n, len(lines), lines[len(lines)-1])
		if strings.TrimSpace(said[n]) == "" {
			return fmt.Errorf("diff said nothing on %s: %w", n, err)
		}
	}
	return nil
}

func (c *cluster) oneNode(ctx context.Context, v *verdict, block string) error {
	if _, err := c.follow(ctx, block, "NODE", node1); err != nil {
		return err
	}
	start := time.Now()
	if err := c.programmed(ctx, node1); err != nil {
		return err
	}
	c.figure(v, "the agent on %s, from its pod's creation until all Services are programmed: %.0f s", node1, time.Since(start).Seconds())
	return nil
}

func (c *cluster) otherNodes(ctx context.Context, block string) error {
	if _, err := c.follow(ctx, block); err != nil {
		return err
	}
	return c.allProgrammed(ctx)
}

// allProgrammed waits until each node's agent, of the DaemonSet's newest form, has programmed all Services.
func (c *cluster) allProgrammed(ctx context.Context) error {
	if err := c.daemonSetReady(ctx, "kube-system", "kube-proxy"); err != nil {
		return err
	}
	for _, n := range nodes {
		if err := c.programmed(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) giveBack(ctx context.Context, v *verdict, block string) error {
	if _, err := c.follow(ctx, block); err != nil {
		return err
	}
	if err := c.daemonSetReady(ctx, "kube-system", "kube-proxy"); err != nil {
		return err
	}
	image, err := c.proxyImage(ctx)
	if err == nil && !strings.Contains(image, "registry.k8s.io/kube-proxy") {
		err = fmt.Errorf("the DaemonSet kube-proxy runs %s after the way back", image)
	}
	if err != nil {
		return err
	}
	said, err := c.onEveryNode(ctx, "job-way-back.yaml", "ipvs-proxy-cleanup")
	for _, n := range nodes {
		lines := strings.Split(strings.TrimSpace(said[n]), "\n")
		c.figure(v, "cleanup --keep-ipvs on %s: %d lines, the last: %s", n, len(lines), lines[len(lines)-1])
	}
	return err
}

// proxyImage is what the DaemonSet kube-proxy runs.
func (c *cluster) proxyImage(ctx context.Context) (string, error) {
	d, err := c.api.AppsV1().DaemonSets("kube-system").Get(ctx, "kube-proxy", metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	return d.Spec.Template.Spec.Containers[0].Image, nil
}

// programmed waits until the agent of a node says that all Services are programmed.
func (c *cluster) programmed(ctx context.Context, node string) error {
	return until(ctx, soon, "the agent on "+node+" has programmed all Services", func() error {
		list, err := c.api.CoreV1().Pods("kube-system").List(ctx, metav1.ListOptions{LabelSelector: "k8s-app=kube-proxy", FieldSelector: "spec.nodeName=" + node})
		if err != nil {
			return err
		}
		if len(list.Items) != 1 || !slices.ContainsFunc(list.Items[0].Status.Conditions, func(p corev1.PodCondition) bool {
			return p.Type == corev1.PodReady && p.Status == corev1.ConditionTrue
		}) {
			return fmt.Errorf("%d pods, or not ready", len(list.Items))
		}
		log, err := c.api.CoreV1().Pods("kube-system").GetLogs(list.Items[0].Name, &corev1.PodLogOptions{}).DoRaw(ctx)
		if err != nil {
			return err
		}
		if !strings.Contains(string(log), "all Services are programmed") {
			return errors.New("its log does not say so")
		}
		return nil
	})
}

// agentsExchanged restarts the DaemonSet while clients talk.
func (c *cluster) agentsExchanged(ctx context.Context, v *verdict) error {
	return c.whileTalking(ctx, v, "all agents exchanged", func() error {
		if _, err := c.kubectl(ctx, c.dist(), "-n", "kube-system", "rollout", "restart", "daemonset", "kube-proxy"); err != nil {
			return err
		}
		return c.allProgrammed(ctx)
	})
}

// whileTalking does something while clients talk, and nothing may be lost.
func (c *cluster) whileTalking(ctx context.Context, v *verdict, what string, do func() error) error {
	return c.talking(ctx, func(t *talkers) error {
		start := time.Now()
		if err := do(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if err := c.talkOn(ctx, t); err != nil {
			return err
		}
		return t.nothingLost(ctx, v, fmt.Sprintf("%s (%.0f s)", what, time.Since(start).Seconds()))
	})
}

// restarts has kubelet and containerd start anew.
func (c *cluster) restarts(ctx context.Context, v *verdict) error {
	for _, unit := range []string{"kubelet", "containerd"} {
		if err := c.whileTalking(ctx, v, unit+" restarted on "+node1, func() error {
			_, err := c.on(ctx, node1, "systemctl restart "+unit)
			if err != nil {
				return err
			}
			return until(ctx, soon, unit+" serves", func() error { return c.nodeReady(ctx, node1) })
		}); err != nil {
			return err
		}
	}
	return nil
}

// losing is the control of all that lost nothing.
func (c *cluster) losing(ctx context.Context, v *verdict) error {
	return c.talking(ctx, func(t *talkers) error {
		if _, err := c.on(ctx, node1, "for i in 1 2 3 4 5; do ipvsadm -C; sleep 1; done"); err != nil {
			return err
		}
		if err := c.talkOn(ctx, t); err != nil {
			return err
		}
		lost, text, err := t.lost(ctx)
		if err != nil {
			return err
		}
		c.figure(v, "IPVS of %s emptied five times: %s", node1, text)
		if lost[load.New]+lost[load.Kept] == 0 {
			return errors.New("nothing was lost, so that the clients cannot tell")
		}
		return nil
	})
}
