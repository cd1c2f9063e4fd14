package fake_test

import (
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/contract"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
)

func TestContract(t *testing.T) {
	contract.Run(t, func(*testing.T) ipvs.Kernel { return fake.New() })
}
