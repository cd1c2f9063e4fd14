package preview

import "github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"

// UnknownService is the error that there is no such Service among all; it names those that may have been meant.
func UnknownService(id cluster.ID, all []cluster.ID) *UnknownServiceError {
	return &UnknownServiceError{Service: id, Near: near(id, all)}
}
