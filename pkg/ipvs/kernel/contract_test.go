package kernel

import (
	"context"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/contract"
)

func TestContract(t *testing.T) {
	needsIPVS(t)
	for _, binding := range []Binding{BindAddress, BindRoute} {
		t.Run(string(binding), func(t *testing.T) {
			contract.Run(t, func(t *testing.T) contract.Kernel { return openHere(t, binding) })
		})
	}
}

// Row B91: elements do not depend on the binding.
func TestB91Contract(t *testing.T) {
	needsIPVS(t)
	contract.ManyElements(t, func(t *testing.T) contract.Kernel { return openHere(t, BindAddress) })
}

// patient has a kernel take its time, which an emulated one with other work does.
func patient(t *testing.T) {
	usual := requestTimeout
	requestTimeout = 30 * time.Second
	t.Cleanup(func() { requestTimeout = usual })
}

// openHere opens the kernel in a network namespace of its own.
func openHere(t *testing.T, binding Binding) *Kernel {
	t.Helper()
	inNetns(t)
	patient(t)
	k, err := Open(context.Background(), Config{Binding: binding})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}
