package machine

import (
	"io/fs"
	"os"
	"path/filepath"
)

// walkFiles visits a file, or a directory and all that is in it, directories before their files. rel is the
// path below root, "." for root itself; fi is what a link points at.
func walkFiles(root string, visit func(file, rel string, fi fs.FileInfo) error) error {
	return filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		fi, err := os.Stat(p)
		if err != nil {
			return err
		}
		return visit(p, rel, fi)
	})
}
