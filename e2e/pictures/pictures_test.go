package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

// The picture is what the tests measured.
func TestPictureAgrees(t *testing.T) {
	want, err := proof(filepath.Join(root, "e2e", "results"))
	if err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile(filepath.Join(root, picture))
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != want {
		t.Errorf("%s is not what the tests measured: run make conformance", picture)
	}
}

// So are those of scheduling that the page shows.
func TestSchedulingPicturesAgree(t *testing.T) {
	want, missing, err := schedulingPictures(filepath.Join(root, measurements))
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs/scheduling.md"))
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile(`\]\((scheduling-[a-z-]+\.svg)\)`).FindAllStringSubmatch(string(page), -1)
	if len(shown) == 0 {
		t.Fatal("the page shows no picture")
	}
	for _, match := range shown {
		file := "docs/" + match[1]
		if have, err := os.ReadFile(filepath.Join(root, file)); err != nil || want[file] == "" || string(have) != want[file] {
			t.Errorf("%s is not what was measured: run go run ./e2e/pictures --scheduling (%v, %v)", file, err, missing)
		}
		for d := xml.NewDecoder(strings.NewReader(want[file])); want[file] != ""; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
		}
	}
}

// A picture is XML, says its numbers to who cannot see it, and the longest bar of a panel is as long as there is room.
func TestDraw(t *testing.T) {
	text := draw([]panel{{title: "a <b> & c", bars: []bar{{label: "some", value: 0, text: "0 of 7", good: true}, {label: "most", value: 9, text: "9 of 7"}}}}, "note")
	for d := xml.NewDecoder(strings.NewReader(text)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v:\n%s", err, text)
		}
	}
	for _, want := range []string{`aria-label="a &lt;b&gt; &amp; c, some: 0 of 7. a &lt;b&gt; &amp; c, most: 9 of 7"`, `class="good" x="236" y="46" width="0"`, `class="bad" x="236" y="70" width="380"`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}

// Figures that are missing are named, and no picture is made without them.
func TestNoPictureWithoutFigures(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "6.1.json"), []byte(`{"kernel":"6.1.0","tests":{},"figures":{"e2e/traffic TestB33RollingUpdate":{"ipvs-proxy, requests lost":0}}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := proof(dir)
	if err == nil || !strings.Contains(err.Error(), "TestB33RollingUpdate: ipvs-proxy, requests sent") || strings.Contains(err.Error(), "ipvs-proxy, requests lost") {
		t.Errorf("%v", err)
	}
}
