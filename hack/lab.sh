#!/bin/sh
# Becomes the lab's command, e2e/lab/cmd/lab, with the given arguments. Gets Go where there is none, and the modules
# without a line for each.
set -eu
cd "$(dirname "$0")/.."
GO=$(hack/go.sh)
# As the programs for the lab are built: what one step has compiled the next need not compile again.
CGO_ENABLED=0 GOFLAGS="$($GO env GOFLAGS) -trimpath"
export GO CGO_ENABLED GOFLAGS
if ! said=$($GO list -deps ./e2e/lab/cmd/lab 2>&1 >/dev/null); then
	echo "$said" >&2
	echo "lab.sh: the Go modules that the lab is made of cannot be had, see above: is there a network?" >&2
	exit 1
fi
exec "$GO" run ./e2e/lab/cmd/lab "$@"
