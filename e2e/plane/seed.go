package plane

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// seeders is how many requests are under way at once when the cluster is filled.
const seeders = 16

// Seed fills the namespace default with Services, each with an EndpointSlice of as many endpoints, through the API.
// The cluster of lab nodes knows none of the pods: nobody asks them.
func (p *Plane) Seed(ctx context.Context, services, endpoints int) error {
	c, err := p.adminClient()
	if err != nil {
		return err
	}
	work, errs := make(chan int), make(chan error, seeders)
	var wg sync.WaitGroup
	for range seeders {
		wg.Go(func() {
			for i := range work {
				if err := errors.Join(
					p.post(ctx, c, "/api/v1/namespaces/default/services", seedService(i)),
					p.post(ctx, c, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", seedSlice(i, endpoints)),
				); err != nil {
					select {
					case errs <- err:
					default:
					}
				}
			}
		})
	}
	for i := range services {
		work <- i
	}
	close(work)
	wg.Wait()
	select {
	case err := <-errs:
		return fmt.Errorf("fill the cluster: %w", err)
	default:
		return nil
	}
}

func seedService(i int) map[string]any {
	return map[string]any{
		"apiVersion": "v1", "kind": "Service",
		"metadata": map[string]any{"name": fmt.Sprintf("seed-%d", i), "labels": map[string]string{"app": fmt.Sprintf("seed-%d", i), "team": "memory"}},
		"spec":     map[string]any{"ports": []any{map[string]any{"name": "http", "port": 80, "targetPort": 8080}}},
	}
}

// seedSlice is as the EndpointSlice controller makes them.
func seedSlice(i, endpoints int) map[string]any {
	list := make([]any, 0, endpoints)
	for j := range endpoints {
		n := i*endpoints + j
		list = append(list, map[string]any{
			"addresses":  []string{fmt.Sprintf("10.245.%d.%d", n/250%250, n%250+1)},
			"conditions": map[string]bool{"ready": true, "serving": true, "terminating": false},
			"nodeName":   fmt.Sprintf("far-%d", n%500),
			"targetRef":  map[string]string{"kind": "Pod", "namespace": "default", "name": fmt.Sprintf("seed-%d-%05x", i, n), "uid": fmt.Sprintf("6f1c6e0e-0000-4000-8000-%012d", n)},
			"zone":       fmt.Sprintf("zone-%d", n%3),
		})
	}
	name := fmt.Sprintf("seed-%d", i)
	return map[string]any{
		"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
		"metadata": map[string]any{"name": name + "-abcde", "labels": map[string]string{
			"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "seed"}},
		"addressType": "IPv4", "ports": []any{map[string]any{"name": "http", "port": 8080, "protocol": "TCP"}}, "endpoints": list,
	}
}

func (p *Plane) adminClient() (*http.Client, error) {
	id, err := p.ca.client("seed", "seed", "system:masters")
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(id.cert, id.key)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(p.ca.cert)
	return &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}}}}, nil
}

func (p *Plane) post(ctx context.Context, c *http.Client, path string, obj any) error {
	b, err := json.Marshal(obj)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("https://127.0.0.1:%d%s", p.Port, path), bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusCreated {
		err = fmt.Errorf("%s: %s: %.300s", path, resp.Status, text)
	}
	return err
}
