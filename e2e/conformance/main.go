// Command conformance writes the table of docs/security.md (e2e/attacks), docs/reliability.md (e2e/faults) and
// docs/conformance.md: what the tests hold, by row of behaviour and by test of
// Kubernetes' own suite, in which family and on which kernel. All of it comes from files that tests and people
// write: e2e/results, e2e/upstream.yaml, e2e/behaviour.yaml, the headers of e2e/mutants, and the tests' source.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// page is the file that is written, below the repository's root.
const page = "docs/conformance.md"

func main() {
	if err := run("."); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func run(root string) error {
	in, err := read(root)
	if err != nil {
		return err
	}
	if err := in.agree(); err != nil {
		return err
	}
	if err := errors.Join(in.writeSecurity(root), in.writeReliability(root)); err != nil {
		return err
	}
	if err := in.current(); err != nil {
		return fmt.Errorf("%w\nmake test-kernels renews them; %s stays as it is", err, page)
	}
	return os.WriteFile(filepath.Join(root, page), []byte(in.page()), 0o644)
}
