package node

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/u-root/u-root/pkg/kmodule"
	"golang.org/x/sys/unix"
)

// loader loads kernel modules from the files that a distribution keeps in /lib/modules.
type loader struct {
	root    string                  // the directory in which lib/modules is
	release string                  // of the running kernel
	there   func() map[string]bool  // names of the modules that are loaded
	insert  func(file string) error // loads one
}

func newLoader(root string) (loader, error) {
	release, err := KernelRelease()
	if err != nil {
		return loader{}, err
	}
	return loader{root: root, release: release, there: loadedModules, insert: insertModule}, nil
}

// load loads a module after those that it needs, and lists the files that it took. Its error says what is to be
// done, unless that is to give the machine the module.
func (l loader) load(name string) (files []string, err error) {
	order, err := l.order(name)
	if err != nil {
		return nil, err
	}
	there := l.there()
	for _, file := range order {
		if there[moduleName(file)] {
			continue
		}
		if err := l.insert(file); err != nil {
			return files, explain(file, err)
		}
		files = append(files, file)
	}
	return files, nil
}

// explain says what an errno of loading a module is about.
func explain(file string, err error) error {
	why := ""
	switch {
	case errors.Is(err, unix.EPERM):
		why = " (that needs CAP_SYS_MODULE, and a kernel that still takes modules: kernel.modules_disabled=0)"
	case errors.Is(err, unix.ENOKEY), errors.Is(err, unix.EKEYREJECTED):
		why = " (this kernel takes signed modules only)"
	case errors.Is(err, unix.ENOEXEC):
		why = " (it is for another kernel)"
	}
	return fmt.Errorf("load %s: %w%s", file, err, why)
}

// order lists the files of a module and of all that it needs, each after those that it needs.
func (l loader) order(name string) (files []string, err error) {
	if err := l.readable(); err != nil {
		return nil, err
	}
	var mu sync.Mutex // the library walks dependencies in parallel
	p, err := kmodule.NewProber(kmodule.ProbeOpts{RootDir: l.root, KVer: l.release,
		IgnoreProcMods: true, // it fails at a loaded module without a file; there knows them
		DryRunCB: func(file string) {
			mu.Lock()
			defer mu.Unlock()
			files = append(files, file)
		}})
	if err == nil {
		err = p.Probe(name, "")
	}
	if err != nil {
		return nil, fmt.Errorf("look for module %s of kernel %s in %s: %w", name, l.release, filepath.Join(l.root, "lib/modules"), err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("module %s is built into kernel %s, says modules.builtin, and yet does not answer", name, l.release)
	}
	return files, nil
}

// readable reads modules.dep for what the library cannot bear: a line without a colon makes it panic.
func (l loader) readable() error {
	var missing error
	for _, lib := range []string{"lib/modules", "usr/lib/modules"} {
		f, err := os.Open(filepath.Join(l.root, lib, l.release, "modules.dep"))
		if err != nil {
			missing = errors.Join(missing, err)
			continue
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		for n := 1; lines.Scan(); n++ {
			if !strings.Contains(lines.Text(), ":") {
				return fmt.Errorf("%s, line %d: %.100q is no dependency; depmod -a writes it anew", f.Name(), n, lines.Text())
			}
		}
		return lines.Err()
	}
	if errors.Is(missing, fs.ErrNotExist) {
		return fmt.Errorf("the files of kernel %s's modules are not there (in a container, mount the node's /lib/modules): %w", l.release, missing)
	}
	return missing
}

// moduleName is a module's name as the kernel knows it: files use dashes and underscores as their authors liked,
// and may be compressed.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// loadedModules are the names in /proc/modules; none where the kernel has no modules.
func loadedModules() map[string]bool {
	names := map[string]bool{}
	b, err := os.ReadFile("/proc/modules")
	if err != nil {
		return names
	}
	for line := range strings.Lines(string(b)) {
		name, _, _ := strings.Cut(line, " ")
		names[name] = true
	}
	return names
}

// parameters keep a module from making what nobody asked for.
var parameters = map[string]string{"dummy": "numdummies=0"}

// insertModule loads a module from its file. The kernel reads it itself where it can; a compressed one is
// unpacked here, since most kernels cannot.
func insertModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	params := parameters[moduleName(file)]
	if strings.HasSuffix(file, ".ko") {
		err = unix.FinitModule(int(f.Fd()), params, 0)
	} else {
		err = kmodule.FileInit(f, params, 0)
	}
	if errors.Is(err, unix.EEXIST) { // somebody else was faster
		return nil
	}
	return err
}
