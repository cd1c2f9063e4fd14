package main

import (
	"context"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/page"
)

// pageOptions is what the status page shows, but for its Counter.
func pageOptions(c *config.Config, name string, src source, h *healthz.Health, is page.Answers, log *zap.Logger) page.Options {
	return page.Options{Node: name, Answers: is, Everyone: c.Own.StatusPage == config.StatusPageAlways, Links: pageLinks(c), Log: log,
		Health: func() page.Health {
			is := page.Health{OK: h.Healthy(), APIAge: -1}
			is.Problems, _ = h.Trouble() // that nothing is written the Head says
			if src.api != nil {
				is.APIAge = src.api.Age()
			}
			return is
		}}
}

// pageLinks are the other pages of the port.
func pageLinks(c *config.Config) []page.Link {
	links := []page.Link{{Path: "/metrics", Text: "Metrics"}, {Path: "/healthz?verbose", Text: "Health"}, {Path: "/configz", Text: "Configuration"}}
	if gate(c, "ComponentFlagz") {
		links = append(links, page.Link{Path: "/flagz", Text: "Flags"})
	}
	if gate(c, "ComponentStatusz") {
		links = append(links, page.Link{Path: "/statusz", Text: "Process"})
	}
	if c.Proxy.EnableProfiling {
		links = append(links, page.Link{Path: "/debug/pprof/", Text: "Profiles"})
	}
	return links
}

// addPage puts the status page on the metrics port, unless nobody is to have it. Where the door to the kernel's counters
// cannot be opened, the page has no numbers and says so.
func addPage(ctx context.Context, c *config.Config, list []healthz.Server, o page.Options) (done func()) {
	if c.Own.StatusPage == config.StatusPageNever {
		return func() {}
	}
	done = func() {}
	if door, err := kernel.OpenStatistics(ctx); err != nil {
		o.Log.Warn("the status page has no numbers", zap.Error(err))
	} else {
		o.Counter, done = door, door.Close
	}
	for i := range list {
		if list[i].Name == metricsServer {
			list[i].Handler = page.Over(list[i].Handler, o)
		}
	}
	return done
}
