package machine

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
)

// A job's files come out alike on both ways to a kernel: links as what they point at, and modes kept.
func TestFilesOfAJob(t *testing.T) {
	from := filepath.Join(t.TempDir(), "job")
	for name, text := range map[string]string{"agent": "#!/bin/sh", "sub/deep/data.yaml": "kind: Service"} {
		file := filepath.Join(from, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(from, "agent"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../agent", filepath.Join(from, "sub", "link")); err != nil {
		t.Fatal(err)
	}
	want := []string{"agent -rwxr-xr-x #!/bin/sh", "sub/deep/data.yaml -rw-r--r-- kind: Service", "sub/link -rwxr-xr-x #!/bin/sh"}

	im := newImage()
	if err := im.tree("lab", from); err != nil {
		t.Fatal(err)
	}
	var got []string
	for name, r := range im.files {
		if r.Mode&cpio.S_IFMT == cpio.S_IFDIR {
			continue
		}
		text := make([]byte, r.FileSize)
		if _, err := r.ReadAt(text, 0); err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.TrimPrefix(name, "lab/")+" "+os.FileMode(r.Mode&0o777).String()+" "+string(text))
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("in the image: %q, want %q", got, want)
	}

	to := filepath.Join(t.TempDir(), "lab")
	if err := copyTree(to, from); err != nil {
		t.Fatal(err)
	}
	got = nil
	err := filepath.WalkDir(to, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		fi, err := os.Lstat(p)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(p)
		rel, _ := filepath.Rel(to, p)
		got = append(got, rel+" "+fi.Mode().String()+" "+string(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("in the copy: %q, want %q", got, want)
	}
	if err := copyTree(to, filepath.Join(from, "missing")); err == nil {
		t.Error("a missing file was copied")
	}
}
