package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

// imageFile is the image's root file system among the job's files.
const imageFile = "image.tar"

// addImage makes the agent's image for the tests that run it; the program in it gives way to the mutant.
func addImage(ctx context.Context, m mutant, job *machine.Job, tmp string) error {
	if job.Files[imageFile] != "" || !strings.HasPrefix(m.test, "TestImage") {
		return nil
	}
	source, err := os.Getwd()
	if err != nil {
		return err
	}
	out := filepath.Join(tmp, imageFile)
	cmd := exec.CommandContext(ctx, machine.GoTool(), "run", "./image", "--source", source, "--platform", "linux/"+runtime.GOARCH, "--rootfs", out)
	cmd.Dir, cmd.Env = "hack/release", append(os.Environ(), "GO="+machine.GoTool())
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build of the image: %w\n%s", err, text)
	}
	job.Files[imageFile] = out
	return nil
}
