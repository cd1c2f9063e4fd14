package results

import (
	"crypto/sha256"
	"encoding/hex"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Source is a test function of the repository.
type Source struct {
	Package string // below the repository's root
	File    string // in the package's directory
	Name    string
	Doc     string // its comment
	Print   string // of its text without the comment: another text, another print
}

// Sources finds all test functions and fuzz targets below the repository's root.
func Sources(root string) (list []Source, err error) {
	err = filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && file != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(file, "_test.go") {
			return nil
		}
		dir, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		found, err := sourcesOf(file)
		for i := range found {
			found[i].Package, found[i].File = filepath.ToSlash(dir), filepath.Base(file)
		}
		list = append(list, found...)
		return err
	})
	return list, err
}

func sourcesOf(file string) (list []Source, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	files := token.NewFileSet()
	parsed, err := parser.ParseFile(files, file, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	for _, decl := range parsed.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if !ok || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "Test") && !strings.HasPrefix(f.Name.Name, "Fuzz") {
			continue
		}
		sum := sha256.Sum256(text[files.Position(f.Pos()).Offset:files.Position(f.End()).Offset])
		list = append(list, Source{Name: f.Name.Name, Doc: f.Doc.Text(), Print: hex.EncodeToString(sum[:6])})
	}
	return list, nil
}
