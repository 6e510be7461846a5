#!/usr/bin/env bash
# build.sh BINARY VERSION FILE: makes a Debian package of the binary, the systemd unit and a configuration to begin with.
set -eu
bin=$(realpath "$1") version=$2 out=$(realpath -m "$3")
cd "$(dirname "$0")/../.."
umask 022
root=$(mktemp -d)
chmod 755 "$root"
trap 'rm -rf "$root"' EXIT
put() { install -D -m "$1" "$2" "$root/$3"; } # mode, file, place

put 755 "$bin" usr/bin/wicgate
put 644 deploy/systemd/wicgate.service usr/lib/systemd/system/wicgate.service
sed -i 's,/usr/local/bin/,/usr/bin/,' "$root/usr/lib/systemd/system/wicgate.service"
put 644 deploy/deb/sysusers.conf usr/lib/sysusers.d/wicgate.conf
put 640 deploy/deb/wicgate.yaml etc/wicgate/wicgate.yaml
put 644 deploy/deb/default etc/default/wicgate
doc=usr/share/doc/wicgate
for f in wicgate.yaml README.md docs/turn.md docs/ops/*.md; do put 644 "$f" "$doc/$f"; done
put 644 CHANGELOG.md "$doc/changelog"
gzip -9n "$root/$doc/changelog"

# What is linked in asks for its copyright notices to go along.
{
	cat LICENSE
	printf '\n\nThe Go standard library\n\n'
	cat "$(go env GOROOT)/LICENSE"
	go list -m -f '{{.Path}} {{.Version}} {{.Dir}}' $(go version -m "$bin" | awk '$1 == "dep" { print $2 }') | while read -r path v dir; do
		printf '\n\n%s %s\n\n' "$path" "$v"
		find "$dir" -maxdepth 1 -type f \( -iname 'LICEN[CS]E*' -o -iname 'COPYING*' -o -iname 'NOTICE*' \) -exec cat {} +
	done
} >"$root/$doc/copyright"

mkdir "$root/DEBIAN"
cp deploy/deb/conffiles "$root/DEBIAN/"
for f in postinst prerm postrm; do put 755 "deploy/deb/$f" "DEBIAN/$f"; done
size=$(du -sk --exclude=DEBIAN "$root" | cut -f1)
sed "s/@VERSION@/$version/; s/@ARCH@/$(dpkg --print-architecture)/; s/@SIZE@/$size/" deploy/deb/control >"$root/DEBIAN/control"
(cd "$root" && find etc usr -type f -exec md5sum {} +) >"$root/DEBIAN/md5sums"
mkdir -p "$(dirname "$out")"
dpkg-deb --root-owner-group -Zgzip --build "$root" "$out" >/dev/null
echo "$out"
