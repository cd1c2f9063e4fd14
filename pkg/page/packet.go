package page

import (
	"errors"
	"net/http"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
)

type packetView struct {
	// Client and To are what was asked, as it was written.
	Client, To string
	// Wrong is what of it cannot be understood; "": nothing.
	Wrong  string
	Answer *preview.Answer // nil: nothing was asked
	// Backends and LeftOut are as many as a page has; the numbers of the rest stand beside them.
	Backends              []preview.Backend
	LeftOut               []preview.Endpoint
	MoreBackends, MoreOut int
}

// packet is the page on which one asks what becomes of a packet.
func (p *pages) packet(r *http.Request) (v view, err error) {
	values := r.URL.Query()
	is := packetView{Client: strings.TrimSpace(values.Get("client")), To: strings.TrimSpace(values.Get("to"))}
	v = view{Title: "What becomes of a packet", name: "packet"}
	if is.Client == "" { // a link gives the address alone
		v.Body = is
		return v, nil
	}
	q, err := preview.ParseQuestion([]string{shortened(is.Client), shortened(is.To)})
	var wrong *preview.QuestionError
	if errors.As(err, &wrong) {
		is.Wrong, v.wrong = wrong.Wrong, true
		v.Body = is
		return v, nil
	}
	if err != nil {
		return v, err
	}
	if is.Answer, err = p.Answers.Packet(r.Context(), q); err != nil {
		return v, err
	}
	is.Backends, is.MoreBackends = firstOf(is.Answer.Backends, pageBackends)
	is.LeftOut, is.MoreOut = firstOf(is.Answer.LeftOut, pageBackends)
	v.Body, v.live = is, true
	return v, nil
}

// firstOf are as many of a list as a page has, and how many are left.
func firstOf[T any](list []T, most int) (first []T, left int) {
	n := min(len(list), most)
	return list[:n], len(list) - n
}
