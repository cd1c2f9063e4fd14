package ipvs

import "context"

// Leaving is something that another proxy left in the kernel, as the one write that takes it out.
type Leaving struct {
	// Text is the write, as one says it.
	Text string
	// Apart: what comes after it does not rest on it.
	Apart bool
	// Take does it. What is gone already is no error.
	Take func(context.Context) error
}
