#!/bin/sh
# Prints the path of a Chromium, and gets Debian's where there is none. BROWSER names another one.
set -eu

say() { echo "browser.sh: $*" >&2; }
die() { say "$*"; exit 1; }

find_browser() {
	for name in chromium chromium-browser google-chrome; do
		command -v "$name" && return
	done
	return 1
}

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

if [ -n "${BROWSER:-}" ]; then
	command -v "$BROWSER" || die "BROWSER=$BROWSER: there is no such program"
	exit
fi
if ! browser=$(find_browser); then
	command -v apt-get >/dev/null || die "this is not Debian: please install Chromium by hand, or name it: BROWSER=/path/to/it"
	[ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null ||
		die "there is no Chromium here, and neither root nor password-less sudo to install it: please install the package chromium by hand"
	say "installing chromium and a font"
	get="env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600"
	as_root $get install -y --no-install-recommends chromium fonts-dejavu-core >/dev/null 2>&1 ||
		{ as_root $get update >&2 && as_root $get install -y --no-install-recommends chromium fonts-dejavu-core >&2; } ||
		die "cannot install chromium, apt-get says why above: is there a network, and a mirror in /etc/apt?"
	browser=$(find_browser) || die "installed chromium, and it is not found"
fi
echo "$browser"
