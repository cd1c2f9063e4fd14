package main

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

// imageFile is the image's root file system among the job's files; LAB_IMAGE names it to tests.
const imageFile = "image.tar"

// imageTest begins the names of the tests that want the image: for others it is not made.
const imageTest = "TestImageRunsTheAgent"

// addImage makes the agent's image for this machine and adds its root file system to the job.
func addImage(ctx context.Context, o testOptions, job *machine.Job, dir string) error {
	first, _, _ := strings.Cut(o.run, "/")
	if wanted, err := regexp.MatchString(first, imageTest); err != nil || !wanted {
		return err
	}
	source, err := filepath.Abs(".")
	if err != nil {
		return err
	}
	out := filepath.Join(dir, imageFile)
	cmd := goCommand(ctx, []string{"GO=" + machine.GoTool()}, "run", "./image", "--source", source, "--platform", "linux/"+runtime.GOARCH, "--rootfs", out)
	cmd.Dir = releaseModule
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, text)
	}
	job.Files[imageFile] = out
	return nil
}
