package page

import (
	"context"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// Answers is who knows what this node serves, as [inspect.Node] does. Each method may be called by several goroutines at once.
type Answers interface {
	// Head is the node in a few numbers.
	Head(context.Context) (inspect.Head, error)
	// List is a page of frontends, in the order of their Services, without what the kernel counts.
	List(context.Context, inspect.Query) (inspect.List, error)
	// Service is one Service, without what the kernel counts. The error is a preview.UnknownServiceError where there is none.
	Service(context.Context, cluster.ID) (*inspect.Service, error)
	// Log gives writes to the kernel.
	Log(context.Context, sync.Selection) (inspect.Log, error)
	// Packet says what becomes of a packet.
	Packet(context.Context, preview.Question) (*preview.Answer, error)
}

// Health is how the agent fares.
type Health struct {
	OK bool
	// APIAge is how old the last word of the API server is; below 0: the objects come from files.
	APIAge time.Duration
	// Problems are what of the node is wrong, a line each.
	Problems []string
}
