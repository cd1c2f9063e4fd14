package kernel

import (
	"context"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/contract"
)

func TestContract(t *testing.T) {
	needsIPVS(t)
	contract.Run(t, func(t *testing.T) ipvs.Kernel {
		inNetns(t)
		k, err := Open(context.Background(), Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(k.Close)
		return k
	})
}
