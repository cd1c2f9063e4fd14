package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"time"
)

// runNative runs the job on this machine's own kernel, in namespaces that
// end with it.
func runNative(ctx context.Context, s *session, dir string) error {
	as, err := asRoot()
	if err != nil {
		return err
	}
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	if err := ensure(ctx, cache, s.job.Log, s.job.tools()...); err != nil {
		return err
	}
	guest, err := BuildGuest(ctx, dir)
	if err != nil {
		return err
	}
	lab := filepath.Join(dir, "lab")
	if err := os.Mkdir(lab, 0o755); err != nil {
		return err
	}
	for name, host := range s.job.Files {
		if err := copyTree(filepath.Join(lab, filepath.FromSlash(clean(name))), host); err != nil {
			return fmt.Errorf("file %s of the job: %w", name, err)
		}
	}
	host := filepath.Join(dir, "host")
	closeHost, err := forwardPorts(host, s.job.HostPorts)
	if err != nil {
		return err
	}
	defer closeHost()
	spec, err := json.Marshal(s.job.spec(lab, s.nonce, host))
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "lab.json")
	if err := os.WriteFile(file, spec, 0o600); err != nil {
		return err
	}
	args := append(append([]string{}, as...), guest, "native", file)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = s.job.Log
	return s.drive(ctx, cmd, time.Minute)
}

// copyTree copies a file or a directory, following links.
func copyTree(to, from string) error {
	return walkFiles(from, func(file, rel string, fi fs.FileInfo) error {
		dst := filepath.Join(to, rel)
		if fi.IsDir() {
			return os.MkdirAll(dst, 0o755)
		}
		if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
			return err
		}
		return copyFile(dst, file, fi.Mode().Perm())
	})
}

func copyFile(to, from string, mode fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		return fmt.Errorf("copy to %s: %w", path.Base(to), err)
	}
	return out.Close()
}
