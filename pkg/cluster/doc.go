// Package cluster is the cluster as one node's service proxy needs it: a
// compact model of Services, their endpoints and the own Node, the sanitiser
// that everything passes on its way in, and the sources that fill the model.
//
// Sources hand API objects to a [Model]; what comes out of it is checked once
// and for all: ports are in range, addresses are plain unicast addresses of
// the right family, nil means what Kubernetes says it means. Nothing after
// this package has to look at an API object, and nothing in an API object can
// panic. What could not be used is a [Problem] of its object and costs only
// itself.
package cluster
