// Kubeproxyflags prints the flags that kube-proxy's source registers on Linux, one a line, sorted. It reads the source,
// which the Go module proxy has, and builds nothing of it:
//
//	go run ./hack/kubeproxyflags 1.37.2 > pkg/config/testdata/flags/1.37
//
// What comes from elsewhere (cobra's help, cadvisor's two id files, which kube-proxy's server.go names) it adds by itself.
package main

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "want one argument: a version like 1.37.2")
		os.Exit(2)
	}
	flags, err := flagsOf(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("# kube-proxy %s, by hack/kubeproxyflags\n%s\n", os.Args[1], strings.Join(flags, "\n"))
}

func flagsOf(version string) ([]string, error) {
	flags := []string{"help", "version", "boot-id-file", "machine-id-file"}
	_, minor, _ := strings.Cut(version, ".")
	for _, from := range []struct{ module, dir string }{
		{"k8s.io/kubernetes@v" + version, "cmd/kube-proxy/app"},
		{"k8s.io/component-base@v0." + minor, "logs/api/v1"},
	} {
		root, err := download(from.module)
		if err != nil {
			return nil, err
		}
		found, err := registered(filepath.Join(root, from.dir))
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("%s: no flags in %s", from.module, from.dir)
		}
		flags = append(flags, found...)
	}
	slices.Sort(flags)
	return slices.Compact(flags), nil
}

// download has the go command fetch a module, and says where it is.
func download(module string) (dir string, err error) {
	out, err := exec.Command("go", "mod", "download", "-json", module).Output()
	var got struct{ Dir, Error string }
	if jsonErr := json.Unmarshal(out, &got); jsonErr != nil || got.Dir == "" {
		return "", fmt.Errorf("download %s: %v %s", module, err, got.Error)
	}
	return got.Dir, nil
}

// registered finds the names in calls like fs.StringVar(&x, "name", …) in a directory's files for Linux.
func registered(dir string) (flags []string, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	constants := map[string]string{}
	var calls []*ast.CallExpr
	for _, name := range files {
		base := strings.TrimSuffix(filepath.Base(name), ".go")
		if strings.HasSuffix(base, "_test") || strings.HasSuffix(base, "_windows") || strings.HasSuffix(base, "_other") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			return nil, err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				if len(n.Values) == 1 && text(n.Values[0], nil) != "" {
					constants[n.Names[0].Name] = text(n.Values[0], nil)
				}
			case *ast.CallExpr:
				calls = append(calls, n)
			}
			return true
		})
	}
	for _, c := range calls {
		method, ok := c.Fun.(*ast.SelectorExpr)
		if !ok || len(c.Args) < 3 || !strings.Contains(method.Sel.Name, "Var") {
			continue
		}
		if set, ok := method.X.(*ast.Ident); ok && set.Name == "fs" {
			if name := text(c.Args[1], constants); name != "" {
				flags = append(flags, name)
			}
		}
	}
	return flags, nil
}

// text is the value of a literal or of a constant; empty where it is neither.
func text(e ast.Expr, constants map[string]string) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, _ := strconv.Unquote(e.Value)
		return s
	case *ast.Ident:
		return constants[e.Name]
	}
	return ""
}
