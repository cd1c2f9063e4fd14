package controlplane

import (
	"encoding/json"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// deployment is one whose pods are replaced one by one, a new one first.
func deployment(name string, n int32, spec corev1.PodSpec) *appsv1.Deployment {
	none, one := intstr.FromInt32(0), intstr.FromInt32(1)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxUnavailable: &none, MaxSurge: &one}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name}}, Spec: spec}},
	}
}

func (s *stage) createDeployment(namespace string, d *appsv1.Deployment) {
	s.t.Helper()
	if _, err := s.api.AppsV1().Deployments(namespace).Create(s.ctx, d, metav1.CreateOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// rollOut changes the template of a Deployment, as kubectl rollout restart does.
func (s *stage) rollOut(namespace, name, what string) {
	s.t.Helper()
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"template": map[string]any{
		"metadata": map[string]any{"annotations": map[string]string{"e2e/version": what}}}}})
	if err == nil {
		_, err = s.api.AppsV1().Deployments(namespace).Patch(s.ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// rolledOut waits until a Deployment's pods are all of its newest template, and nothing is left of others.
func (s *stage) rolledOut(namespace, name string, n int) []*lab.Pod {
	s.t.Helper()
	lab.Eventually(s.t, 3*time.Minute, name+" is rolled out", func() error {
		d, err := s.api.AppsV1().Deployments(namespace).Get(s.ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		st := d.Status
		if st.ObservedGeneration < d.Generation || int(st.UpdatedReplicas) != n || int(st.AvailableReplicas) != n || int(st.Replicas) != n {
			return fmt.Errorf("%d replicas, %d updated, %d available", st.Replicas, st.UpdatedReplicas, st.AvailableReplicas)
		}
		return nil
	})
	return s.pods(namespace, name, n)
}
