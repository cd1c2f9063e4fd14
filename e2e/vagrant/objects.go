package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/vagrant/load"
)

// space is the namespace of the stories' objects.
const space = "default"

// soon is how long what is waited for may take on an emulated machine: nothing of it is a figure.
const soon = 15 * time.Minute

func (c *cluster) nodeReady(ctx context.Context, name string) error {
	n, err := c.api.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("node %s is not ready", name)
}

// deploymentReady waits until a Deployment has all its pods, of its newest form, ready.
func (c *cluster) deploymentReady(ctx context.Context, ns, name string) error {
	return until(ctx, soon, "Deployment "+name+" is ready", func() error { return c.deploymentThere(ctx, ns, name) })
}

// deploymentThere reports what a Deployment lacks.
func (c *cluster) deploymentThere(ctx context.Context, ns, name string) error {
	d, err := c.api.AppsV1().Deployments(ns).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	s, want := d.Status, *d.Spec.Replicas
	if s.ObservedGeneration < d.Generation || s.UpdatedReplicas != want || s.ReadyReplicas != want || s.Replicas != want {
		return fmt.Errorf("%d of %d pods ready, %d in all", s.ReadyReplicas, want, s.Replicas)
	}
	return nil
}

// daemonSetReady waits until each node has a ready pod of a DaemonSet's newest form.
func (c *cluster) daemonSetReady(ctx context.Context, ns, name string) error {
	return until(ctx, soon, "DaemonSet "+name+" is ready", func() error {
		d, err := c.api.AppsV1().DaemonSets(ns).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		s := d.Status
		if s.ObservedGeneration < d.Generation || s.UpdatedNumberScheduled != s.DesiredNumberScheduled || s.NumberReady != s.DesiredNumberScheduled {
			return fmt.Errorf("%d of %d pods ready, %d new", s.NumberReady, s.DesiredNumberScheduled, s.UpdatedNumberScheduled)
		}
		return nil
	})
}

// application is a Deployment of the stories.
func application(name string, replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					// The master's taint keeps them off it: it has to ask other nodes.
					TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: "kubernetes.io/hostname",
						WhenUnsatisfiable: corev1.ScheduleAnyway, LabelSelector: &metav1.LabelSelector{MatchLabels: labels}}},
					Containers: []corev1.Container{{
						Name: "app", Image: appImage, Args: []string{name},
						Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
						ReadinessProbe: &corev1.Probe{
							ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromInt32(8080)}},
							PeriodSeconds: 2, TimeoutSeconds: 10, FailureThreshold: 1,
						},
						// As the book says: a pod serves on until every node knows that it goes.
						Lifecycle: &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 20}}},
					}},
					TerminationGracePeriodSeconds: new(int64(60)),
				},
			},
		},
	}
}

// appImage is what pods of the stories run.
const appImage = "apps.test/app:1"

// service is a Service for an application, on port 80.
func service(name string, change func(*corev1.ServiceSpec)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": name},
		Ports: []corev1.ServicePort{
			{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)},
			{Name: "udp", Protocol: corev1.ProtocolUDP, Port: 80, TargetPort: intstr.FromInt32(8080)},
		},
	}}
	if change != nil {
		change(&s.Spec)
	}
	return s
}

// apply makes an application and its Service, and waits for its pods.
func (c *cluster) apply(ctx context.Context, d *appsv1.Deployment, s *corev1.Service) (*corev1.Service, error) {
	if _, err := c.api.AppsV1().Deployments(space).Create(ctx, d, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, err
	}
	services := c.api.CoreV1().Services(space)
	// Not made to see whether it is there: a node port that it has is refused before its name is.
	_, err := services.Get(ctx, s.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = services.Create(ctx, s, metav1.CreateOptions{})
	}
	if err != nil {
		return nil, err
	}
	if err := c.deploymentReady(ctx, space, d.Name); err != nil {
		return nil, err
	}
	return services.Get(ctx, s.Name, metav1.GetOptions{})
}

// remove takes an application and its Service away.
func (c *cluster) remove(ctx context.Context, name string) error {
	now := metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationForeground)}
	err := errors.Join(c.api.CoreV1().Services(space).Delete(ctx, name, metav1.DeleteOptions{}),
		c.api.AppsV1().Deployments(space).Delete(ctx, name, now))
	return err
}

// startClient starts a pod on a node that talks to an address without a pause.
func (c *cluster) startClient(ctx context.Context, node, addr string) (string, error) {
	name := clientOn(node)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "client"}}, Spec: corev1.PodSpec{
		NodeName: node, TerminationGracePeriodSeconds: new(int64(1)),
		Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		Containers: []corev1.Container{{Name: "client", Image: appImage, Args: []string{"load", addr},
			Ports: []corev1.ContainerPort{{ContainerPort: 9000}}}},
	}}
	if err := c.endClient(ctx, name); err != nil {
		return name, err
	}
	if _, err := c.api.CoreV1().Pods(space).Create(ctx, p, metav1.CreateOptions{}); err != nil {
		return name, err
	}
	return name, until(ctx, soon, "the client on "+node+" runs", func() error {
		counts, err := c.counts(ctx, name)
		if err == nil && len(counts) == 0 {
			err = errors.New("no counts yet")
		}
		return err
	})
}

// clientOn is the name of a node's client.
func clientOn(node string) string { return "client-" + node }

// endClient removes a client's pod and waits until it is gone.
func (c *cluster) endClient(ctx context.Context, name string) error {
	pods := c.api.CoreV1().Pods(space)
	if err := pods.Delete(ctx, name, metav1.DeleteOptions{}); apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	return until(ctx, soon, "pod "+name+" is gone", func() error {
		_, err := pods.Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(err, errors.New("it is still there"))
	})
}

// counts are what a client's pod counted, by way of the API server.
func (c *cluster) counts(ctx context.Context, pod string) (map[string]load.Count, error) {
	b, err := c.api.CoreV1().RESTClient().Get().Namespace(space).Resource("pods").Name(pod + ":9000").SubResource("proxy").Suffix("counts").DoRaw(ctx)
	if err != nil {
		return nil, err
	}
	var out map[string]load.Count
	return out, json.Unmarshal(b, &out)
}
