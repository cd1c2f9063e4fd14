package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// kubeletsOOMScore is what the kubelet gives the containers of pods of priority system-node-critical
// (guaranteedOOMScoreAdj in pkg/kubelet/qos/policy.go), after all but a few processes of the node.
const kubeletsOOMScore = -997

// SetOOMScore sets how readily the kernel ends this process when memory runs out, -1000 (never) to 1000. It
// needs CAP_SYS_RESOURCE where the value is below the least one that the process ever had (fs/proc/base.c). To be
// refused that is no error where the kubelet has seen to it: kube-proxy's default is below what the kubelet gives.
func SetOOMScore(score int32) error { return setOOMScore("/proc/self/oom_score_adj", score) }

func setOOMScore(file string, score int32) error {
	have, err := os.ReadFile(file)
	want := strconv.Itoa(int(score))
	if err == nil && strings.TrimSpace(string(have)) == want {
		return nil
	}
	if err == nil {
		err = os.WriteFile(file, []byte(want), 0)
	}
	// What is no number counts as 0, which is not low enough.
	if given, _ := strconv.Atoi(strings.TrimSpace(string(have))); given <= kubeletsOOMScore && errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set oom_score_adj to %s (it is %s): %w", want, strings.TrimSpace(string(have)), err)
	}
	return nil
}
