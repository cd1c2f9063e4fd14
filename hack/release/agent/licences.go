package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/licensecheck"
)

// Licences are those of one module's packages that are in the program.
type Licences struct {
	IDs   []string          // of the SPDX list, in order
	Texts map[string]string // by file, below the module's root
}

// standard is the name under which Go's own packages stand among the modules, as in a program's build information.
const standard = "std"

// boring is a package of Go's whose directory has the licence of an archive that goes into programs made with cgo alone.
const boring = "crypto/internal/boring"

// listed is what `go list -json` says of a package.
type listed struct {
	Dir, ImportPath, Root string
	Standard              bool
	Module                *struct {
		Path, Dir string
		Main      bool
	}
}

// Licences reads, by module, the licences of all that goes into the program for a platform. A module without one, or with
// one that is not recognised, is an error: nobody may hand on what he has no licence for.
func (s Source) Licences(ctx context.Context, p *v1.Platform) (map[string]Licences, error) {
	out, err := s.goCommand(ctx, p, "list", "-deps", "-json=Dir,ImportPath,Root,Standard,Module", mainPackage)
	if err != nil {
		return nil, fmt.Errorf("list the packages for %s: %w", p, err)
	}
	files := map[string]map[string]string{} // by module and name
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var l listed
		if err := d.Decode(&l); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("read the list of packages: %w", err)
		}
		module, root := standard, l.Root
		if !l.Standard {
			if l.Module == nil {
				return nil, fmt.Errorf("package %s is of no module", l.ImportPath)
			}
			module, root = l.Module.Path, l.Module.Dir
		}
		if files[module] == nil {
			files[module] = map[string]string{}
		}
		if l.ImportPath == boring {
			continue
		}
		if err := collect(files[module], root, l.Dir); err != nil {
			return nil, fmt.Errorf("read the licences of %s: %w", l.ImportPath, err)
		}
	}
	all := map[string]Licences{}
	for _, module := range slices.Sorted(maps.Keys(files)) {
		ids, err := identify(files[module])
		if err != nil {
			return nil, fmt.Errorf("module %s: %w", module, err)
		}
		all[module] = Licences{IDs: ids, Texts: files[module]}
	}
	return all, nil
}

// licenceName is how files with a licence are called.
var licenceName = regexp.MustCompile(`(?i)^(licen[cs]e|copying|unlicense)([-._].*)?$`)

// noticeName is how files are called that go along with a licence and are none.
var noticeName = regexp.MustCompile(`(?i)^(notice|patents)([-._].*)?$`)

// collect reads the licences that stand beside a package and above it, up to its module's root.
func collect(into map[string]string, root, dir string) error {
	for {
		rel, err := filepath.Rel(root, dir)
		if err != nil || strings.HasPrefix(rel, "..") {
			return err
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if name := filepath.ToSlash(filepath.Join(rel, e.Name())); !e.IsDir() && into[name] == "" && (licenceName.MatchString(e.Name()) || noticeName.MatchString(e.Name())) {
				text, err := os.ReadFile(filepath.Join(dir, e.Name()))
				if err != nil {
					return err
				}
				into[name] = string(text)
			}
		}
		if rel == "." {
			return nil
		}
		dir = filepath.Dir(dir)
	}
}

// recognised is the percentage of a file's words that known licences must cover; the rest is a copyright line or two.
const recognised = 75

// identify names the licences in files.
func identify(files map[string]string) ([]string, error) {
	ids := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !licenceName.MatchString(filepath.Base(name)) {
			continue
		}
		found := licensecheck.Scan([]byte(files[name]))
		if found.Percent < recognised {
			return nil, fmt.Errorf("%s: no known licence: %.0f %% of it is recognised, want %d", name, found.Percent, recognised)
		}
		for _, m := range found.Match {
			ids[m.ID] = true
		}
	}
	if len(ids) == 0 {
		return nil, errors.New("no licence: there is no such file")
	}
	return slices.Sorted(maps.Keys(ids)), nil
}

// Notices is the text that goes along with the program: what it is made of, and under which licences. Files with the
// same text stand there once.
func Notices(all map[string]Licences) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s is made of these modules, each with the licences named beside it. Their texts follow.\n\n", Name)
	users := map[string][]string{}
	for _, module := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&out, "%s: %s\n", module, strings.Join(all[module].IDs, ", "))
		for _, name := range slices.Sorted(maps.Keys(all[module].Texts)) {
			text := all[module].Texts[name]
			users[text] = append(users[text], module+"/"+name)
		}
	}
	texts := slices.SortedFunc(maps.Keys(users), func(a, b string) int { return strings.Compare(users[a][0], users[b][0]) })
	for _, text := range texts {
		fmt.Fprintf(&out, "\n%s\n%s\n\n%s\n", strings.Repeat("=", 100), strings.Join(users[text], "\n"), strings.TrimSpace(text))
	}
	return out.String()
}
