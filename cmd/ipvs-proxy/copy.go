package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
)

// pathCopy is where an agent hands out what it goes by: its configuration, and a copy of the cluster's objects.
const pathCopy = "/v1/copy"

// mostCopy is how many bytes a copy may have: 10,000 Services of 10 endpoints are some 10 MB.
const mostCopy = 1 << 30

// goesBy is the first line of a copy.
type goesBy struct {
	Node   string
	Config *config.Config
}

// withCopy adds the copy to what an agent answers.
func withCopy(mux *http.ServeMux, c *config.Config, name string, model *cluster.Model, log *zap.Logger) *http.ServeMux {
	mux.HandleFunc("GET "+pathCopy, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/jsonl")
		err := json.NewEncoder(w).Encode(goesBy{name, c})
		if err == nil {
			err = model.WriteCopy(w)
		}
		if err != nil { // who asked finds that the last part is missing
			log.Info("a copy of what the agent goes by was not read to its end", zap.Error(err))
		}
	})
	return mux
}

// byAgentsCopy goes through a start by what the agent of this node goes by. It is nil where no agent answers, or where flags say
// which configuration and which objects are meant.
func (s sources) byAgentsCopy(cmd *cobra.Command, l *lookFlags) (in *preview.Input, err error) {
	if !onlyGiven(cmd, "output", "all", "timeout") {
		return nil, nil
	}
	ctx, stop := context.WithTimeout(cmd.Context(), l.timeout)
	defer stop()
	agent, err := s.agentHere(ctx)
	if agent == nil || err != nil {
		return nil, err
	}
	defer agent.Close()
	var by goesBy
	var model *cluster.Model
	err = agent.Read(ctx, pathCopy, nil, mostCopy, func(r io.Reader) (err error) {
		by, model, err = readCopy(r)
		return err
	})
	if err != nil {
		return nil, err
	}
	found, err := s.rehearse(cmd.Context(), by.Config, by.Node, func(context.Context) (*cluster.Model, error) { return model, nil })
	return &found, err
}

func readCopy(r io.Reader) (by goesBy, m *cluster.Model, err error) {
	first := json.NewDecoder(r)
	if err := first.Decode(&by); err != nil {
		return by, nil, err
	}
	if by.Config == nil {
		return by, nil, errors.New("no configuration: it may be another version")
	}
	m, err = cluster.ReadCopy(io.MultiReader(first.Buffered(), r), cluster.Options{NodeName: by.Node, ServiceProxyName: by.Config.Own.ServiceProxyName})
	return by, m, err
}
