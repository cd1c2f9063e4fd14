package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// cacheDir is where kernels and base images stay between runs.
func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil { // neither XDG_CACHE_HOME nor HOME: a bare container
		base = filepath.Join(os.TempDir(), fmt.Sprintf("cache-%d", os.Getuid()))
	}
	dir := filepath.Join(base, "ipvs-proxy-lab")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make cache directory: %w", err)
	}
	return dir, nil
}

// locked runs f while no other run of the lab, in this process or another,
// does so with the same name.
func locked(dir, name string, f func() error) error {
	file, err := os.OpenFile(filepath.Join(dir, name+".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	for {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	return f()
}

// into builds a directory aside and moves it to its place when it is whole,
// so that nobody ever finds half of one.
func into(dir string, build func(tmp string) error) error {
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := build(tmp); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// Cached returns the directory of that name in the lab's cache. Where there is none, build fills one; the name
// should tell all that goes into it.
func Cached(name string, build func(dir string) error) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, name)
	err = locked(cache, name, func() error {
		if _, err := os.Stat(dir); err == nil {
			return nil
		}
		return into(dir, build)
	})
	return dir, err
}

// InCache is where something is in the lab's cache; empty: it is not there.
func InCache(name string) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	file := filepath.Join(cache, name)
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	return file, nil
}
