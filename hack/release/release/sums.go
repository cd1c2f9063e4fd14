package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
)

// sums writes the checksums of all that is there, as sha256sum --check reads them.
func (d *dist) sums() error {
	entries, err := os.ReadDir(d.dir) // in the order of their names
	if err != nil {
		return err
	}
	var out bytes.Buffer
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(d.dir, e.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "%x  %s\n", sha256.Sum256(content), e.Name())
	}
	return d.write(sumsName, out.Bytes())
}
