package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
)

// sourceFlags are the flags about where the cluster comes from that are no keys of the configuration.
type sourceFlags struct {
	dir, master string
	kubeconfig  func() bool // --kubeconfig is given
}

func addSourceFlags(cmd *cobra.Command) *sourceFlags {
	s := &sourceFlags{kubeconfig: func() bool { return cmd.Flags().Changed("kubeconfig") }}
	f := cmd.Flags()
	f.StringVar(&s.dir, "source-dir", "", "take the cluster from a directory of YAML or JSON files with Services, EndpointSlices and Nodes, as kubectl prints them, and not from the API server; changes are followed")
	f.StringVar(&s.master, "master", "", "URL of the API server; it counts over the one in the kubeconfig, and beside --config")
	return s
}

// source is where the cluster comes from.
type source struct {
	name string // for the log
	run  func(context.Context) error
	api  *cluster.Kubernetes // nil: a directory
}

// open makes the source, which tells a log of what goes wrong. The API server need not be there.
func (s *sourceFlags) open(c *config.Config, model *cluster.Model, log *zap.Logger) (source, error) {
	return s.openTelling(c, model, log, func(err error) {
		if t := (cluster.Trouble{}); errors.As(err, &t) && (t.Mended || t.Note()) {
			log.Info("source", zap.Error(err))
			return
		}
		log.Warn("source", zap.Error(err))
	})
}

// openTelling makes the source, which reports to whoever asks what goes wrong.
func (s *sourceFlags) openTelling(c *config.Config, model *cluster.Model, log *zap.Logger, report func(error)) (source, error) {
	conn := &c.Proxy.ClientConnection
	if s.dir != "" {
		if s.master != "" || s.kubeconfig() {
			return source{}, errors.New("--source-dir stands by itself: not with --kubeconfig or --master")
		}
		if conn.Kubeconfig != "" {
			log.Warn("clientConnection has no effect: --source-dir is given")
		}
		return source{name: s.dir, run: cluster.NewDirectory(s.dir, model, report).Run}, nil
	}
	api, err := cluster.NewKubernetes(cluster.Connection{
		Kubeconfig: conn.Kubeconfig, Master: s.master, ContentType: conn.ContentType, AcceptContentTypes: conn.AcceptContentTypes,
		QPS: conn.QPS, Burst: int(conn.Burst), UserAgent: fmt.Sprintf("ipvs-proxy/%s (%s/%s)", version, runtime.GOOS, runtime.GOARCH),
	}, model, report)
	if err != nil {
		return source{}, fmt.Errorf("the API server, see --kubeconfig and --master, or --source-dir for another source: %w", err)
	}
	return source{name: api.Server(), run: api.Run, api: api}, nil
}
