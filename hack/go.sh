#!/bin/sh
# Prints the path of a Go that is new enough for go.mod, and gets one if there
# is none: Debian's golang-go, which then fetches the right toolchain as a
# module. Needs Debian's packages and the Go module proxy, nothing else, no git.
# Fails with the reason on standard error and prints no path then.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
cache=${XDG_CACHE_HOME:-${HOME:-/tmp/cache-$(id -u)}/.cache}/ipvs-proxy-lab
[ -n "${HOME:-}" ] || { HOME=$cache && export HOME; }
unset GOROOT

say() { echo "go.sh: $*" >&2; }
die() { say "$*"; exit 1; }

# least is the oldest Go that go.mod bears, and want the one that it asks for: whoever has an older one of at
# least that switches to it by itself. Since 1.21 a release always has three numbers.
least=$(awk '$1 == "go" { print $2; exit }' "$root/go.mod")
want=$(awk '$1 == "toolchain" { print substr($2, 3); exit }' "$root/go.mod")
case $least,$want in
*.*.*,*.*.*) ;;
*) die "want lines like 'go 1.26.0' and 'toolchain go1.26.11' in $root/go.mod" ;;
esac

version() { # of a go command, without switching to another
	v=$(cd / && GOTOOLCHAIN=local "$1" version 2>/dev/null) || return 1
	echo "$v" | sed -n 's/^go version go\([0-9][0-9.]*\).*/\1/p'
}

at_least() { # at_least HAVE WANT
	[ -n "$1" ] && [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}

candidates() {
	echo "${GO:-}"
	command -v go || true
	printf '%s\n' "$cache/go$want/bin/go" /usr/local/go/bin/go /usr/lib/go/bin/go /usr/lib/go-*/bin/go
}

find_go() { # find_go MINIMUM
	candidates | while read -r go; do
		[ -n "$go" ] && go=$(command -v "$go") && at_least "$(version "$go")" "$1" && echo "$go" && break
	done || true
}

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

install() {
	say "installing $*"
	command -v apt-get >/dev/null || die "this is not Debian: please install Go $least or later by hand"
	[ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null ||
		die "there is no Go $least or later here, and neither root nor password-less sudo to install $*: please install it by hand"
	get="env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600"
	as_root $get install -y --no-install-recommends "$@" >/dev/null 2>&1 && return
	# A fresh machine has no package lists, an old one has old ones.
	as_root $get update >&2 && as_root $get install -y --no-install-recommends "$@" >&2 ||
		die "cannot install $*, apt-get says why above: is there a network, and a mirror in /etc/apt?"
}

arch() {
	case $(uname -m) in
	x86_64) echo amd64 ;;
	aarch64) echo arm64 ;;
	*) die "no Go toolchain for $(uname -m)" ;;
	esac
}

cleanup() {
	chmod -R u+w "$tmp" && rm -rf "$tmp"
}

# toolchain OLDGO gets the wanted Go as the module golang.org/toolchain. A Go
# since 1.21 could switch to it by itself; this way works with all that know
# modules, and leaves the choice of GOTOOLCHAIN to the caller.
toolchain() {
	mod=golang.org/toolchain@v0.0.1-go$want.linux-$(arch)
	say "getting go$want with $1 ($(version "$1"))"
	mkdir -p "$cache"
	tmp=$(mktemp -d "$cache/.new-go-XXXXXX")
	trap cleanup EXIT
	# A module cache of its own goes away with tmp; the copy is what stays.
	(cd "$tmp" && GOTOOLCHAIN=local GO111MODULE=on GOFLAGS= GOMODCACHE="$tmp/mod" "$1" mod download -json "$mod") >"$tmp/json" ||
		die "cannot download $mod, is there a network? $(cat "$tmp/json")"
	dir=$(sed -n 's/^[[:space:]]*"Dir": "\(.*\)",*$/\1/p' "$tmp/json")
	[ -d "$dir" ] || die "no directory for $mod: $(cat "$tmp/json")"
	cp -R "$dir" "$tmp/go"
	chmod -R u+w "$tmp/go"
	# Modules know no executable files.
	chmod +x "$tmp"/go/bin/* "$tmp"/go/pkg/tool/*/*
	rm -rf "$cache/go$want"
	mv "$tmp/go" "$cache/go$want"
	cleanup
	trap - EXIT
}

go=$(find_go "$least")
if [ -z "$go" ]; then
	old=$(find_go 1.16)
	# The module proxy speaks TLS.
	[ -e /etc/ssl/certs/ca-certificates.crt ] || install ca-certificates
	if [ -z "$old" ]; then
		install golang-go
		old=$(find_go 1.16)
		[ -n "$old" ] || die "installed golang-go, and it is too old or not found"
	fi
	toolchain "$old"
	go=$(find_go "$want")
	[ -n "$go" ] || die "go$want in $cache/go$want does not run"
fi
echo "$go"
