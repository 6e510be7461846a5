#!/usr/bin/env bash
# Installs what the tests need and this machine lacks: one line per step.
set -eu
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

need=()
want() { # command or file, package
	if [ -e "$1" ] || [ -x "/usr/bin/$1" ] || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] || command -v "$1" >/dev/null; then
		echo "setup: $1 is here"
	else
		echo "setup: $1 is missing: package $2"
		need+=("$2")
	fi
}
command -v go >/dev/null || { echo "setup: Go is missing; install the version that go.mod names, see https://go.dev/doc/install" >&2; exit 1; }
want chromium chromium
want firefox-esr firefox-esr
want certutil libnss3-tools
want ip iproute2
want nft nftables
want unshare util-linux
want node nodejs
want npm npm
want gcc gcc
want git git
want turnutils_uclient coturn
want stun stun-client
want kamailio kamailio
want "/usr/lib/$(uname -m)-linux-gnu/kamailio/modules/ims_registrar_scscf.so" kamailio-ims-modules
want "/usr/lib/$(uname -m)-linux-gnu/kamailio/modules/presence.so" kamailio-presence-modules
want promtool prometheus
want systemd-analyze systemd
want dpkg-deb dpkg
want sqlite3 sqlite3
want redis-server redis-server
want pg_lsclusters postgresql
if [ ${#need[@]} -gt 0 ]; then
	if ! as_root true 2>/dev/null; then
		echo "setup: run as root: apt-get install ${need[*]}" >&2
		exit 1
	fi
	echo "setup: apt-get install ${need[*]}"
	as_root apt-get update -qq
	# promtool comes with a server that its package would start.
	case " ${need[*]} " in *" prometheus "*) command -v systemctl >/dev/null && as_root systemctl mask prometheus 2>/dev/null || true ;; esac
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
	# The tests start their own; services would take their ports.
	for s in kamailio coturn redis-server postgresql; do
		case " ${need[*]} " in *" $s "*) command -v systemctl >/dev/null && as_root systemctl disable --now "$s" 2>/dev/null || true ;; esac
	done
fi
# The CA for tests of ACME, in the version that tools/go.mod and test/interop/pebble.go name.
cd "$(dirname "$0")/.."
for tool in pebble pebble-challtestsrv; do
	bin=bin/tools/$tool-v2.10.1
	if [ -x "$bin" ]; then
		echo "setup: $bin is here"
	else
		echo "setup: build $bin"
		(cd tools && CGO_ENABLED=0 go build -trimpath -o "../$bin" "github.com/letsencrypt/pebble/v2/cmd/$tool")
	fi
done
echo "setup: done"
