package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/vagrant/load"
)

// all are the pods of an application.
func (c *cluster) all(ctx context.Context, app string) ([]string, error) {
	byNode, err := c.pods(ctx, app)
	var out []string
	for _, names := range byNode {
		out = append(out, names...)
	}
	return out, err
}

// askedFrom has a client in a pod on a node ask kubia by its ClusterIP, and says which pods kubia has. The client's name comes
// with an error, too.
func (c *cluster) askedFrom(ctx context.Context, node string) (pods []string, client string, err error) {
	client = clientOn(node)
	s, err := c.talkedTo(ctx)
	if err == nil {
		pods, err = c.all(ctx, "kubia")
	}
	if err == nil {
		client, err = c.startClient(ctx, node, net.JoinHostPort(s.Spec.ClusterIP, "80"))
	}
	return pods, client, err
}

func (c *cluster) kubia(ctx context.Context, v *verdict) (err error) {
	pods, client, err := c.askedFrom(ctx, node1)
	defer func() { err = errors.Join(err, c.endClient(context.WithoutCancel(ctx), client)) }()
	if err != nil {
		return err
	}
	if err := c.met(ctx, client, pods); err != nil {
		return err
	}
	counts, err := c.counts(ctx, client)
	if err != nil {
		return err
	}
	n := counts[load.New]
	for answer, times := range n.Answers {
		c.figure(v, "%s: %d of %d", answer, times, n.Asked)
	}
	if n.Lost > 0 {
		return fmt.Errorf("%d of %d lost: %v", n.Lost, n.Asked, n.Errors)
	}
	return nil
}

func (c *cluster) nodePort(ctx context.Context, v *verdict) error {
	s, err := c.talkedTo(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		who := map[string]int{}
		for range 12 {
			answer, err := get(ctx, "GET", fmt.Sprintf("http://%s:%d/", addresses[n], s.Spec.Ports[0].NodePort))
			if err != nil {
				return fmt.Errorf("%s: %w", n, err)
			}
			who[answer]++
		}
		c.figure(v, "%s: %d pods answered 12 requests", n, len(who))
		if len(who) != 3 {
			return fmt.Errorf("%s: answered by %v, want three pods", n, who)
		}
	}
	return nil
}

func (c *cluster) local(ctx context.Context, v *verdict) (err error) {
	d := application("python-web", 1)
	d.Spec.Template.Spec.NodeName = node2
	s, err := c.apply(ctx, d, service("python-web", func(s *corev1.ServiceSpec) {
		s.Type, s.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, corev1.ServiceExternalTrafficPolicyLocal
		s.Ports[0].NodePort = 30124
	}))
	defer func() { err = errors.Join(err, c.remove(context.WithoutCancel(ctx), "python-web")) }()
	if err != nil {
		return err
	}
	port := s.Spec.Ports[0].NodePort
	var client string
	if err := until(ctx, soon, "the machine with the pod answers", func() (err error) {
		client, err = get(ctx, "GET", fmt.Sprintf("http://%s:%d/client", addresses[node2], port))
		return err
	}); err != nil {
		return err
	}
	c.figure(v, "the pod sees %s", client)
	if host, _, _ := strings.Cut(hostAddress, ":"); !strings.HasPrefix(client, host+":") {
		return fmt.Errorf("the pod sees %s, not the client's own address %s", client, host)
	}
	start := time.Now()
	answer, err := get(ctx, "GET", fmt.Sprintf("http://%s:%d/", addresses[node1], port))
	if err == nil {
		return fmt.Errorf("%s has no pod and answers %q", node1, answer)
	}
	c.figure(v, "%s, without a pod: no answer, after %.0f s", node1, time.Since(start).Seconds())
	return nil
}

func (c *cluster) readiness(ctx context.Context, v *verdict) (err error) {
	pods, client, err := c.askedFrom(ctx, node2)
	defer func() { err = errors.Join(err, c.endClient(context.WithoutCancel(ctx), client)) }()
	if err != nil {
		return err
	}
	if err := c.met(ctx, client, slices.Clone(pods)); err != nil {
		return err
	}
	ill, others := pods[0], slices.Clone(pods[1:])
	set := func(is string) error {
		return c.api.CoreV1().RESTClient().Put().Namespace(space).Resource("pods").Name(ill + ":8080").SubResource("proxy").Suffix("ready/" + is).Do(ctx).Error()
	}
	for _, stage := range []struct {
		is   string
		want []string
	}{{"no", others}, {"yes", pods}} {
		start := time.Now()
		if err := set(stage.is); err != nil {
			return err
		}
		if err := c.met(ctx, client, slices.Clone(stage.want)); err != nil {
			return err
		}
		c.figure(v, "ready: %s; %.0f s later %d pods answer", stage.is, time.Since(start).Seconds(), len(stage.want))
	}
	counts, err := c.counts(ctx, client)
	if n := counts[load.New]; err == nil && n.Lost > 0 {
		err = fmt.Errorf("%d of %d lost: %v", n.Lost, n.Asked, n.Errors)
	}
	return err
}

func (c *cluster) scaled(ctx context.Context, v *verdict) (err error) {
	s, err := c.apply(ctx, application("python-web", 3), service("python-web", func(s *corev1.ServiceSpec) {
		s.Type = corev1.ServiceTypeNodePort
		s.Ports[0].NodePort, s.Ports[1].NodePort = 30123, 30123
	}))
	defer func() { err = errors.Join(err, c.remove(context.WithoutCancel(ctx), "python-web")) }()
	if err != nil {
		return err
	}
	client, err := c.startClient(ctx, node1, "python-web:80")
	defer func() { err = errors.Join(err, c.endClient(context.WithoutCancel(ctx), client)) }()
	if err != nil {
		return err
	}
	outside := load.Start(fmt.Sprintf("%s:%d", addresses[node2], s.Spec.Ports[0].NodePort), 250*time.Millisecond)
	defer outside.Stop()
	for _, replicas := range []int32{3, 5, 2} {
		patch := fmt.Sprintf(`{"spec":{"replicas":%d}}`, replicas)
		if _, err := c.api.AppsV1().Deployments(space).Patch(ctx, "python-web", "application/merge-patch+json", []byte(patch), metav1.PatchOptions{}); err != nil {
			return err
		}
		if err := c.deploymentReady(ctx, space, "python-web"); err != nil {
			return err
		}
		pods, err := c.all(ctx, "python-web")
		if err != nil {
			return err
		}
		start := time.Now()
		if err := c.met(ctx, client, slices.Clone(pods)); err != nil {
			return err
		}
		c.figure(v, "%d pods, each answers the name python-web in a pod, %.0f s after they were ready", replicas, time.Since(start).Seconds())
		for _, n := range nodes {
			out, err := c.on(ctx, n, fmt.Sprintf("for i in 1 2 3 4 5 6 7 8 9 10; do curl -sS --max-time 20 http://%s/; echo; done", s.Spec.ClusterIP))
			if err != nil {
				return err
			}
			who := map[string]bool{}
			for line := range strings.Lines(out) {
				who[podOf(strings.TrimSpace(line))] = true
			}
			if len(who) != int(replicas) {
				return fmt.Errorf("from %s, ten requests to the ClusterIP: %v answered, want %d pods", n, who, replicas)
			}
		}
	}
	inside, err := c.counts(ctx, client)
	if err != nil {
		return err
	}
	for who, counts := range map[string]map[string]load.Count{"in a pod": inside, "outside": outside.Counts()} {
		n := counts[load.New]
		c.figure(v, "the client %s lost %d of %d new connections", who, n.Lost, n.Asked)
		if n.Lost > 0 {
			err = errors.Join(err, fmt.Errorf("%s: %v", who, n.Errors))
		}
	}
	return err
}

// reboot has a node come up with an empty kernel.
func (c *cluster) reboot(ctx context.Context, v *verdict) error {
	s, err := c.talkedTo(ctx)
	if err != nil {
		return err
	}
	boot, err := c.on(ctx, node2, "cat /proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	if _, err := c.on(ctx, node2, "systemctl reboot >/dev/null 2>&1 &"); err != nil {
		return err
	}
	start := time.Now()
	if err := until(ctx, soon, node2+" is up again", func() error {
		now, err := c.on(ctx, node2, "cat /proc/sys/kernel/random/boot_id")
		if err == nil && now == boot {
			err = errors.New("it has not gone down yet")
		}
		return err
	}); err != nil {
		return err
	}
	up := time.Since(start)
	var answered time.Duration
	if err := until(ctx, soon, node2+" answers at its NodePort", func() error {
		_, err := get(ctx, "GET", fmt.Sprintf("http://%s:%d/", addresses[node2], s.Spec.Ports[0].NodePort))
		answered = time.Since(start)
		return err
	}); err != nil {
		return err
	}
	c.figure(v, "reachable by ssh %.0f s after the command, its NodePort answers after %.0f s", up.Seconds(), answered.Seconds())
	if err := c.programmed(ctx, node2); err != nil {
		return err
	}
	_, err = c.on(ctx, node2, fmt.Sprintf("for i in 1 2 3 4 5 6; do curl -sS --max-time 20 http://%s/ >/dev/null; done", s.Spec.ClusterIP))
	return err
}
