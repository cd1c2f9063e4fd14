package node

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// SetOOMScore sets how readily the kernel ends this process when memory runs out, -1000 (never) to 1000. It
// needs CAP_SYS_RESOURCE where the value is below the least one that the process ever had (fs/proc/base.c).
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
	if err != nil {
		return fmt.Errorf("set oom_score_adj to %s (it is %s): %w", want, strings.TrimSpace(string(have)), err)
	}
	return nil
}
