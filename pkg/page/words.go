package page

import (
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
)

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
