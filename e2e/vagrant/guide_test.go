package main

import (
	"slices"
	"testing"
)

func TestBlocks(t *testing.T) {
	page := "# A\n\n## B\n\ntext\n\n```\none\ntwo\n```\n\n### C\n\n```sh\nthree\n```\n\n## D\n\n```\nfour\n```\n"
	got, err := blocks(page, "## B")
	if want := []string{"one\ntwo", "three"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	if _, err := blocks(page, "## E"); err == nil {
		t.Error("no error for a heading that is not there")
	}
}

// The steps that the cluster follows are on their pages.
func TestGuide(t *testing.T) {
	c := &cluster{root: "../.."}
	for _, want := range []struct {
		file, heading string
		blocks        int
	}{
		{guideFile, "## kubeadm", 3},
		{guideFile, "## The way back", 2},
		{installFile, "## Once on every node", 2},
	} {
		if _, err := c.guide(want.file, want.heading, want.blocks); err != nil {
			t.Error(err)
		}
	}
}
