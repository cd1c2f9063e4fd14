package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// manuals: the man pages of the tree are in a release, and completions that know the program's commands and flags.
func manuals(t *testing.T, archive, programs []byte) {
	t.Helper()
	have := untar(t, archive)
	pages, err := filepath.Glob(filepath.Join(root, "docs", "man", "*"))
	if err != nil || len(pages) < 5 {
		t.Fatalf("%d man pages, %v", len(pages), err)
	}
	if len(have) != len(pages)+len(completions) {
		t.Errorf("%d files, want %d man pages and %d completions", len(have), len(pages), len(completions))
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if name := "share/man/man1/" + filepath.Base(page); err != nil || string(have[name]) != string(text) {
			t.Errorf("%s is not %s (%v)", name, page, err)
		}
	}
	for file, want := range map[string]string{
		"share/bash-completion/completions/ipvs-proxy":    "# bash completion V2 for ipvs-proxy",
		"share/zsh/site-functions/_ipvs-proxy":            "#compdef ipvs-proxy\n",
		"share/fish/vendor_completions.d/ipvs-proxy.fish": "complete -c ipvs-proxy ",
	} {
		if !strings.Contains(string(have[file]), want) {
			t.Errorf("%s does not say %q:\n%.300s", file, want, have[file])
		}
	}
	dir := t.TempDir()
	program, script := filepath.Join(dir, "ipvs-proxy"), filepath.Join(dir, "completion")
	if err := errors.Join(os.WriteFile(program, untar(t, programs)["ipvs-proxy"], 0o700), os.WriteFile(script, have["share/bash-completion/completions/ipvs-proxy"], 0o600)); err != nil {
		t.Fatal(err)
	}
	for typed, want := range map[string]string{"ipvs-proxy sh": "show", "ipvs-proxy show --sta": "--state", "ipvs-proxy show -o js": "json"} {
		if got := completed(t, dir, script, typed); !slices.Contains(got, want) {
			t.Errorf("bash completes %q by %q, want %s", typed, got, want)
		}
	}
}

// completed is how bash completes a line, with what the package bash-completion gives a script put in its place.
func completed(t *testing.T, dir, script, line string) []string {
	t.Helper()
	const ask = `_init_completion() { words=("${COMP_WORDS[@]}"); cword=$COMP_CWORD; cur=${words[cword]}; prev=${words[cword-1]}; }
compopt() { :; }
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9
__start_ipvs-proxy
printf '%s\n' "${COMPREPLY[@]}"`
	cmd := exec.Command("bash", append([]string{"-c", ask, "bash", script}, strings.Fields(line)...)...)
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("bash, %q: %v", line, err)
	}
	var list []string
	for l := range strings.Lines(string(out)) {
		list = append(list, strings.TrimSpace(l))
	}
	return list
}
