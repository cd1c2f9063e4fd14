package main

import (
	"context"
	"fmt"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

// nestedModules are the parts of the tree with a go.mod of their own, whose tests need neither a kernel nor a
// control plane. "./..." of the main module does not see them.
var nestedModules = []string{releaseModule}

// releaseModule makes releases, and tests the manifests.
const releaseModule = "hack/release"

// nestedTests runs go vet and the tests of the nested modules.
func nestedTests(ctx context.Context, o testOptions, r *recorder) {
	if err := machine.EnsureGit(ctx, r.w); err != nil {
		r.failed("git for the tests of "+releaseModule, err.Error())
		return
	}
	for _, dir := range nestedModules {
		fmt.Fprintf(r.w, "== host tests of the module %s\n", dir)
		pkgs, err := listIn(ctx, dir, "./...")
		if err != nil {
			r.failed(dir, err.Error())
			continue
		}
		vet := goCommand(ctx, nil, "vet", "./...")
		vet.Dir = dir
		if out, err := vet.CombinedOutput(); err != nil {
			r.failed("go vet of "+dir, string(out))
		}
		// What they test is outside of the module, where Go does not see that a file changed since a result was kept.
		args := []string{"test", "-json", "-count=1", "-timeout", o.timeout.String()}
		if o.run != "" {
			args = append(args, "-run", o.run)
		}
		before := r.count().failed
		test := goCommand(ctx, nil, append(args, "./...")...)
		test.Dir = dir
		err = recordAs(test, r, lowPriority)
		for _, p := range pkgs {
			r.endPackage(p.ImportPath, nil, p.hasTests() && o.run == "")
		}
		if err != nil && r.count().failed == before {
			r.failed("go test of "+dir, err.Error())
		}
	}
}
