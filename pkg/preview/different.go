package preview

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// differences are the Services that behave differently from how kube-proxy's ipvs mode serves them (docs/limits.md).
func (b *because) differences(ids []cluster.ID) []Different {
	list := []Different{}
	for _, id := range ids {
		svc := b.services[id]
		if svc == nil {
			continue
		}
		e := b.explained[id]
		points := slices.Concat(b.notItsOwn(e), b.policies(svc, e), b.ranges(svc))
		if len(points) > 0 {
			list = append(list, Different{Service: id.String(), Points: points})
		}
	}
	return list
}

// notItsOwn is what kube-proxy gives a Service, and the agent does not: addresses, ports, endpoints.
func (b *because) notItsOwn(e desk.Explanation) (points []Finding) {
	for _, r := range e.Refused {
		switch r.Why {
		case desk.FamilyMissing, desk.IPv6Off: // kube-proxy does not serve it either
		case desk.CheckPortTaken:
			points = append(points, Finding{r.Field + " is not answered for it", Coded(r.Why)})
		default:
			points = append(points, Finding{fmt.Sprintf("%s of %s is not served", r.Addr, r.Field), Coded(r.Why)})
		}
	}
	virtual := map[netip.AddrPort]bool{}
	for _, f := range e.Frontends {
		if f.Owner != (cluster.ID{}) {
			points = append(points, Finding{fmt.Sprintf("%s is %s's", f.Key, f.Owner), Coded(f.Why)})
		}
		for _, ep := range f.Endpoints {
			if ep.Why == desk.VirtualEndpoint && !virtual[ep.Addr] {
				virtual[ep.Addr] = true
				points = append(points, Finding{fmt.Sprintf("endpoint %s is left out", ep.Addr), Coded(ep.Why)})
			}
		}
	}
	return points
}

// policies is what the Local policies mean here.
func (b *because) policies(svc *cluster.Service, e desk.Explanation) (points []Finding) {
	barred := func(clusterIP bool) bool {
		return slices.ContainsFunc(e.Frontends, func(f desk.Explained) bool {
			return f.Why == desk.NoneForSome && (f.Rank == desk.RankClusterIP) == clusterIP
		})
	}
	if svc.ExternalLocal {
		if barred(false) {
			points = append(points, Finding{"clients from outside are dropped on this node, not refused", Coded(desk.NoneForSome)})
		}
		what := "clients inside the cluster reach all endpoints by its external addresses, not this node's alone"
		if svc.InternalLocal {
			what = "clients inside the cluster reach this node's endpoints by its external addresses as long as it has any, and then all"
		}
		points = append(points, Finding{What: what})
	}
	if svc.InternalLocal && barred(true) {
		points = append(points, Finding{"clients of its ClusterIP are dropped on this node, not refused", Coded(desk.NoneForSome)})
	}
	return points
}

// ranges is what loadBalancerSourceRanges of one family mean for addresses of the other.
func (b *because) ranges(svc *cluster.Service) (points []Finding) {
	if !svc.SourceRangesGiven {
		return nil
	}
	for _, a := range svc.LoadBalancerIPs {
		if !slices.ContainsFunc(svc.SourceRanges, func(p netip.Prefix) bool { return p.Addr().Is4() == a.Is4() }) {
			points = append(points, Finding{fmt.Sprintf("%s takes nobody", a),
				Reason{Why: "None of its loadBalancerSourceRanges is of that family.", Do: "Give it ranges of both families."}})
		}
	}
	return points
}
