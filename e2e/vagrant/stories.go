package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/vagrant/load"
)

// story is one that the cluster tells; see the scenarios' numbers.
type story struct {
	name, what string
	tell       func(*cluster, context.Context, *verdict) error
}

// stories in the order in which they are told. The first leaves ipvs-proxy in kube-proxy's place.
var stories = []story{
	{"S19", "three nodes taken over from kube-proxy in mode ipvs by the guide's own commands, given back, and taken over again, while clients keep talking", (*cluster).takeOver},
	{"S1", "kubia: three pods behind a ClusterIP, and a client in a pod meets all three", (*cluster).kubia},
	{"S9", "a NodePort on every machine, asked from outside", (*cluster).nodePort},
	{"S11", "a NodePort with externalTrafficPolicy Local: the pod sees the client's own address, and a machine without a pod does not answer", (*cluster).local},
	{"S13", "a pod that fails its readiness probe leaves the Service, and comes back", (*cluster).readiness},
	{"S16", "python-web scaled from three pods to five and to two, asked by its name in a pod, from every machine and from outside", (*cluster).scaled},
	{"agents", "all agents exchanged by the DaemonSet's rolling update while clients keep talking", (*cluster).agentsExchanged},
	{"restarts", "kubelet and containerd restarted on a node while clients keep talking", (*cluster).restarts},
	{"reboot", "a node rebooted: its kernel comes up empty", (*cluster).reboot},
	{"control", "the clients' count can tell: IPVS of a node emptied, again and again, loses what they ask", (*cluster).losing},
}

// test tells the stories, one after the other, and counts.
func (c *cluster) test(ctx context.Context, only []string, again bool) error {
	if err := c.ready(ctx); err != nil {
		return err
	}
	if err := c.startMachines(ctx); err != nil {
		return err
	}
	if err := c.serve(ctx); err != nil {
		return err
	}
	if err := c.connect(ctx); err != nil {
		return err
	}
	key, err := c.key()
	if err != nil {
		return err
	}
	passed, failed := 0, 0
	for _, s := range stories {
		if len(only) > 0 && !slices.Contains(only, s.name) {
			continue
		}
		if !again && c.record.has(s.name, key) {
			fmt.Fprintf(c.out, "kept  %s\n", s.name)
			passed++
			continue
		}
		fmt.Fprintf(c.out, "tell  %s: %s\n", s.name, s.what)
		v := verdict{Name: s.name, What: s.what, Key: key}
		start := time.Now()
		err := s.tell(c, ctx, &v)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		v.Seconds, v.Passed = time.Since(start).Round(time.Second).Seconds(), err == nil
		if err != nil {
			v.Failure = err.Error()
			failed++
			fmt.Fprintf(c.out, "FAIL  %s (%.0f s): %v\n", s.name, v.Seconds, err)
		} else {
			passed++
			fmt.Fprintf(c.out, "ok    %s (%.0f s)\n", s.name, v.Seconds)
		}
		if err := c.record.story(v); err != nil {
			return err
		}
	}
	fmt.Fprintf(c.out, "stories: %d passed, %d failed\n", passed, failed)
	if failed > 0 {
		return errors.New("stories failed")
	}
	return nil
}

// figure notes what is worth telling, and says it at once.
func (c *cluster) figure(v *verdict, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	v.Figures = append(v.Figures, text)
	fmt.Fprintf(c.out, "      %s\n", text)
}

// get asks an address here, outside the cluster.
func get(ctx context.Context, method, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return "", err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return string(b), err
}

// pods are the names of an application's ready pods, by node.
func (c *cluster) pods(ctx context.Context, app string) (map[string][]string, error) {
	list, err := c.api.CoreV1().Pods(space).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		return nil, err
	}
	out := map[string][]string{}
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodRunning {
			out[p.Spec.NodeName] = append(out[p.Spec.NodeName], p.Name)
		}
	}
	return out, nil
}

// met waits until a client was answered by just these pods since what it had counted before.
func (c *cluster) met(ctx context.Context, client string, pods []string) error {
	slices.Sort(pods)
	before, err := c.counts(ctx, client)
	if err != nil {
		return err
	}
	return until(ctx, soon, fmt.Sprintf("%s is answered by %v alone", client, pods), func() error {
		now, err := c.counts(ctx, client)
		if err != nil {
			return err
		}
		who := map[string]bool{}
		for answer, n := range now[load.New].Answers {
			if n > before[load.New].Answers[answer] {
				who[podOf(answer)] = true
			}
		}
		if got := slices.Sorted(maps.Keys(who)); !slices.Equal(got, pods) {
			if len(got) >= len(pods) { // somebody else answered: count anew
				before = now
			}
			return fmt.Errorf("answered by %v", got)
		}
		return nil
	})
}

// podOf is the pod in an application's answer.
func podOf(answer string) string {
	name := strings.TrimPrefix(strings.TrimPrefix(answer, "You've hit "), "Served by ")
	name, _, _ = strings.Cut(name, "/")
	return name
}

// talkers are clients that talk while something happens: in a pod on each node by the ClusterIP, and outside by a NodePort.
type talkers struct {
	c       *cluster
	pods    []string
	outside *load.Load
	before  map[string]map[string]load.Count
}

// talking does something while clients talk to kubia, which they all do by then, and ends them.
func (c *cluster) talking(ctx context.Context, do func(*talkers) error) (err error) {
	s, err := c.talkedTo(ctx)
	if err != nil {
		return err
	}
	t, err := c.startTalkers(ctx, s)
	defer func() { err = errors.Join(err, t.stop(context.WithoutCancel(ctx))) }()
	if err != nil {
		return err
	}
	return do(t)
}

// startTalkers has them talk to a Service that has a NodePort. The one outside asks a node that is not the master. What was
// started is returned with an error, too.
func (c *cluster) startTalkers(ctx context.Context, s *corev1.Service) (*talkers, error) {
	t := &talkers{c: c}
	for _, n := range nodes {
		name, err := c.startClient(ctx, n, net.JoinHostPort(s.Spec.ClusterIP, "80"))
		t.pods = append(t.pods, name)
		if err != nil {
			return t, err
		}
	}
	t.outside = load.Start(fmt.Sprintf("%s:%d", addresses[node1], s.Spec.Ports[0].NodePort), 250*time.Millisecond)
	err := until(ctx, soon, "all clients are answered", func() (err error) {
		if t.before, err = t.counts(ctx); err != nil {
			return err
		}
		for who, kinds := range t.before {
			for kind, n := range kinds {
				if n.Asked-n.Lost < 5 {
					return fmt.Errorf("%s, %s: %d of %d answered, %v", who, kind, n.Asked-n.Lost, n.Asked, n.Errors)
				}
			}
		}
		return nil
	})
	return t, err
}

func (t *talkers) counts(ctx context.Context) (map[string]map[string]load.Count, error) {
	out := map[string]map[string]load.Count{"outside": t.outside.Counts()}
	for _, p := range t.pods {
		counts, err := t.c.counts(ctx, p)
		if err != nil {
			return nil, err
		}
		out[p] = counts
	}
	return out, nil
}

// lost is what was lost since it was asked last, of how much; and the reasons.
func (t *talkers) lost(ctx context.Context) (lost map[string]int, text string, err error) {
	var now map[string]map[string]load.Count
	if err := until(ctx, soon, "the clients tell what they counted", func() (err error) {
		now, err = t.counts(ctx)
		return err
	}); err != nil {
		return nil, "", err
	}
	lost, asked, why := map[string]int{}, map[string]int{}, map[string]int{}
	for who, kinds := range now {
		for kind, n := range kinds {
			b := t.before[who][kind]
			lost[kind] += n.Lost - b.Lost
			asked[kind] += n.Asked - b.Asked
			for reason, times := range n.Errors {
				if times -= b.Errors[reason]; times > 0 {
					why[who+", "+kind+": "+reason] += times
				}
			}
		}
	}
	t.before = now
	var parts []string
	for _, kind := range []string{load.New, load.Kept, load.UDP} {
		parts = append(parts, fmt.Sprintf("%d of %d %s", lost[kind], asked[kind], map[string]string{
			load.New: "new connections", load.Kept: "requests on kept connections", load.UDP: "datagrams"}[kind]))
	}
	text = "lost " + strings.Join(parts, ", ")
	for _, reason := range slices.Sorted(maps.Keys(why)) {
		text += fmt.Sprintf("; %s: %d", reason, why[reason])
	}
	return lost, text, nil
}

// nothingLost notes what was lost since the last time, and fails where that was something.
func (t *talkers) nothingLost(ctx context.Context, v *verdict, when string) error {
	lost, text, err := t.lost(ctx)
	if err != nil {
		return err
	}
	t.c.figure(v, "%s: %s", when, text)
	for kind, n := range lost {
		if n > 0 {
			return fmt.Errorf("%s: %d lost, %s", when, n, kind)
		}
	}
	return nil
}

func (t *talkers) stop(ctx context.Context) error {
	if t.outside != nil {
		t.outside.Stop()
	}
	var errs []error
	for _, p := range t.pods {
		errs = append(errs, t.c.endClient(ctx, p))
	}
	return errors.Join(errs...)
}
