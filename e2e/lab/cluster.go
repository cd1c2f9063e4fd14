package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// Cluster is a directory of YAML files, read by agents in place of an API
// server. Its methods return what went wrong; in a test they also end it, so
// that a test need not look.
type Cluster struct {
	Dir string
	tb  testing.TB // nil outside tests
}

// Cluster makes the cluster of a test: a temporary directory with the world's
// nodes in it.
func (w *World) Cluster(t testing.TB) *Cluster {
	t.Helper()
	c, err := w.NewCluster(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c.tb = t
	return c
}

// NewCluster makes a cluster in an existing directory.
func (w *World) NewCluster(dir string) (*Cluster, error) {
	c := &Cluster{Dir: dir}
	var docs []string
	for _, n := range w.Nodes {
		b, err := yaml.Marshal(n.document())
		if err != nil {
			return nil, fmt.Errorf("node %s as YAML: %w", n.Name, err)
		}
		docs = append(docs, string(b))
	}
	return c, c.Write("nodes.yaml", strings.Join(docs, "---\n"))
}

func (n *Node) document() map[string]any {
	address := func(kind, a string) map[string]any { return map[string]any{"type": kind, "address": a} }
	return map[string]any{
		"apiVersion": "v1",
		"kind":       "Node",
		"metadata": map[string]any{"name": n.Name,
			"labels": map[string]any{"kubernetes.io/hostname": n.Name}},
		"spec": map[string]any{
			"podCIDR":  n.PodCIDR4.String(),
			"podCIDRs": []string{n.PodCIDR4.String(), n.PodCIDR6.String()},
		},
		"status": map[string]any{"addresses": []any{
			address("InternalIP", n.V4.String()), address("InternalIP", n.V6.String()),
			address("Hostname", n.Name),
		}},
	}
}

// fail ends the test, where there is one.
func (c *Cluster) fail(err error) error {
	if err != nil && c.tb != nil {
		c.tb.Helper()
		c.tb.Fatal(err)
	}
	return err
}

// Write puts a file in place at once: readers see the old content or the new.
// The temporary file is hidden and not called .yaml, so that they skip it.
func (c *Cluster) Write(file, content string) error {
	f, err := os.CreateTemp(c.Dir, ".writing-*.tmp")
	if err != nil {
		return c.fail(fmt.Errorf("writing %s of the cluster: %w", file, err))
	}
	_, err = f.WriteString(content)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(c.Dir, file))
	}
	if err != nil {
		return c.fail(fmt.Errorf("writing %s of the cluster: %w", file, errors.Join(err, os.Remove(f.Name()))))
	}
	return nil
}

// Remove deletes a file.
func (c *Cluster) Remove(file string) error {
	if err := os.Remove(filepath.Join(c.Dir, file)); err != nil {
		return c.fail(fmt.Errorf("removing %s from the cluster: %w", file, err))
	}
	return nil
}

// Apply writes objects, each to a file of its own.
func (c *Cluster) Apply(objs ...Object) error {
	for _, o := range objs {
		text, err := YAML(o)
		if err != nil {
			return c.fail(err)
		}
		if err := c.Write(o.file()+".yaml", text); err != nil {
			return err
		}
	}
	return nil
}

// Delete removes what Apply wrote.
func (c *Cluster) Delete(objs ...Object) error {
	for _, o := range objs {
		if err := c.Remove(o.file() + ".yaml"); err != nil {
			return err
		}
	}
	return nil
}
