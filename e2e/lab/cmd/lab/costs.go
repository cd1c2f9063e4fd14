package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"time"
)

// part is a part of a run and what it took.
type part struct {
	name string
	took time.Duration
}

// parts of a run, in their order.
type parts []part

// time runs a part.
func (p *parts) time(name string, f func()) {
	began := time.Now()
	f()
	*p = append(*p, part{name, time.Since(began)})
}

func (p parts) print(w io.Writer) {
	for _, one := range p {
		fmt.Fprintf(w, "%-40s %6.0f s\n", one.name, one.took.Seconds())
	}
}

// longest prints the packages and the tests without subtests that took longest. Packages run side by side.
func (r *recorder) longest(w io.Writer, packages, tests int) {
	var pkgs, singles []part
	for _, p := range r.pkgs {
		pkgs = append(pkgs, part{short(p.id.pkg), p.took})
	}
	for _, o := range r.order {
		if !o.parent && o.id.pkg != "" {
			singles = append(singles, part{short(o.id.pkg) + " " + o.id.test, o.took})
		}
	}
	for _, list := range []struct {
		all []part
		n   int
	}{{pkgs, packages}, {singles, tests}} {
		slices.SortFunc(list.all, func(a, b part) int { return cmp.Or(cmp.Compare(b.took, a.took), cmp.Compare(a.name, b.name)) })
		for _, one := range list.all[:min(list.n, len(list.all))] {
			if one.took >= time.Second {
				fmt.Fprintf(w, "  %-72s %6.1f s\n", r.where+" "+one.name, one.took.Seconds())
			}
		}
	}
}
