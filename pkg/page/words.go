package page

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
)

// size is a number of bytes in three digits.
func size(n uint64) string {
	f, units := float64(n), []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}
	i := 0
	for f >= 999.5 && i < len(units)-1 {
		f /= 1000
		i++
	}
	if i > 0 && f < 9.95 {
		return fmt.Sprintf("%.1f %s", f, units[i])
	}
	return fmt.Sprintf("%.0f %s", f, units[i])
}

// span is a time in its two largest units.
func span(d time.Duration) string {
	d = max(d, 0)
	for _, u := range []struct {
		large, small time.Duration
		a, b         string
	}{{24 * time.Hour, time.Hour, "d", "h"}, {time.Hour, time.Minute, "h", "m"}, {time.Minute, time.Second, "m", "s"}} {
		if d >= u.large {
			text := strconv.Itoa(int(d/u.large)) + u.a
			if rest := int(d % u.large / u.small); rest > 0 {
				text += strconv.Itoa(rest) + u.b
			}
			return text
		}
	}
	if d < time.Second {
		return "less than 1 s"
	}
	return strconv.Itoa(int(d/time.Second)) + " s"
}

// percent is a share; what is there is never 0.
func percent(share float64) string {
	if share > 0 && share < 0.01 {
		return "<1 %"
	}
	return strconv.Itoa(int(share*100+0.5)) + " %"
}

// kind is how a state looks: ok, wait, off or bad. The word is always there as well.
func kind(state string) string {
	word, _, _ := strings.Cut(state, " ")
	switch word {
	case string(inspect.Open), string(inspect.Ready):
		return "ok"
	case string(inspect.Waiting), string(inspect.NoEndpoints), string(inspect.Draining), string(inspect.Missing), string(inspect.Stray):
		return "wait"
	case string(inspect.Failing), string(inspect.Taken), string(inspect.Forbidden):
		return "bad"
	}
	return "off" // no-local, as on most nodes of a cluster, foreign, left out
}

// todo is what to do about a reason. Where that is nothing, it goes without saying.
func todo(text string) string {
	if strings.HasPrefix(text, "Nothing") {
		return ""
	}
	return text
}
