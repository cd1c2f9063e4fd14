// Package files writes the files of a release so that they are the same each time.
package files

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

// SourceDate is the time of all that is in a release: SOURCE_DATE_EPOCH (reproducible-builds.org), in seconds since
// 1970, or else 1970.
func SourceDate() (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH=%s: want seconds since 1970", text)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// Write makes a file, or none when write fails.
func Write(file string, write func(io.Writer) error) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", file, err), os.Remove(file))
	}
	return nil
}

// Entry is a file in an archive.
type Entry struct {
	Name    string
	Content []byte
	Mode    int64 // its rights, such as 0o644
}

// TarGz writes an archive of entries, in their order, all of one time and of root.
func TarGz(w io.Writer, at time.Time, entries []Entry) error {
	z, err := gzip.NewWriterLevel(w, gzip.BestCompression)
	if err != nil {
		return err
	}
	t := tar.NewWriter(z)
	for _, e := range entries {
		h := tar.Header{Name: e.Name, Mode: e.Mode, Size: int64(len(e.Content)), ModTime: at, Format: tar.FormatUSTAR}
		if err := t.WriteHeader(&h); err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
		if _, err := t.Write(e.Content); err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	return errors.Join(t.Close(), z.Close())
}
