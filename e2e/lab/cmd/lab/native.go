package main

import (
	"context"
	"regexp"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

// nativeTest is the test that runs the lab inside of the lab, and nativePackage has it. It needs all of a job's files.
const (
	nativeTest    = "TestNativeWay"
	nativePackage = "e2e/native"
)

// addNative adds what that test runs, beside the agent and the traffic tests, if it was asked for.
func addNative(ctx context.Context, o testOptions, job *machine.Job, dir string) error {
	first, _, _ := strings.Cut(o.run, "/")
	if wanted, err := regexp.MatchString(first, nativeTest); err != nil || !wanted {
		return err
	}
	if job.Files["demo"] == "" {
		if err := addDemo(ctx, job, dir); err != nil {
			return err
		}
	}
	guest, err := machine.BuildGuest(ctx, dir)
	if err != nil {
		return err
	}
	job.Files["guest"] = guest
	return nil
}
