#!/bin/sh
# Builds the page: web/dist, or the folder named as the argument.
#
# The same sources give the same bytes on every machine: esbuild's version is fixed by tools/go.sum,
# JsSIP's by package-lock.json, and each name holds the hash of its content. Needs Go, and Node from 18.
# `go build` needs neither this script nor Node: dist is committed.
set -eu
LC_ALL=C
export LC_ALL
cd "$(dirname "$0")"
out=${1:-dist}

say() { printf 'web: %s\n' "$*" >&2; }
command -v node >/dev/null && command -v npm >/dev/null || {
	say "node and npm are needed to rebuild the page; on Debian: apt-get install nodejs npm"
	exit 1
}

# Packages, only when the lock is newer than what is there.
if [ ! -f node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
	say "npm ci"
	npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2
	touch node_modules/.package-lock.json
fi

say "type check"
node node_modules/typescript/bin/tsc --noEmit -p .

esbuild() { GOFLAGS= go tool -modfile=../tools/go.mod esbuild "$@"; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

say "tests"
esbuild test/*.test.ts --bundle --platform=node --format=esm --target=node18 --alias:debug=./src/quiet.cjs --log-level=warning \
	--outdir="$work/test" --out-extension:.js=.mjs
node --test "$work"/test/*.mjs >"$work/test.log" 2>&1 || {
	cat "$work/test.log" >&2
	exit 1
}

say "bundle"
page="$work/page"
mkdir -p "$page/assets"
# "debug" would log SIP messages with their tokens; quiet.cjs takes its place.
esbuild src/main.ts src/style.css --bundle --minify --format=esm --charset=utf8 \
	--target=es2022,chrome109,firefox115,safari16.4 --alias:debug=./src/quiet.cjs \
	--legal-comments=none --log-level=warning --entry-names='[name]-[hash]' --outdir="$page/assets"

# What esbuild does not name: the same scheme by hand.
keep() { # keep SOURCE STEM EXT
	h=$(sha256sum "$1" | cut -c1-8 | tr a-f A-F)
	cp "$1" "$page/assets/$2-$h.$3"
}
keep src/icon.svg icon svg
{
	printf 'wicgate itself: Apache-2.0, see LICENSE in its source. This page also holds the following.\n'
	for p in jssip events sdp-transform; do
		printf '\n== %s %s ==\n\n' "$p" "$(node -p "require('./node_modules/$p/package.json').version")"
		cat node_modules/$p/LICENSE* | tr -d '\r'
	done
} >"$work/licences.txt"
keep "$work/licences.txt" licences txt

# The entries refer to the hashed names.
for html in index 404; do
	cp "src/$html.html" "$work/$html.html"
	for f in "$page"/assets/*; do
		name=$(basename "$f")
		sed -i "s|{{${name%-*}.${name##*.}}}|/assets/$name|g" "$work/$html.html"
	done
	if grep -n '{{' "$work/$html.html" >&2; then
		say "src/$html.html names a file that was not built"
		exit 1
	fi
	# Indentation and comments are for us, not for the wire.
	sed -e 's/^[[:space:]]*//' -e '/^$/d' "$work/$html.html" >"$page/$html.html"
done

rm -rf "$out"
mkdir -p "$out"
cp -R "$page/." "$out/"
say "$(cd "$out" && find . -type f | wc -l | tr -d ' ') files, $(du -sb "$out" | cut -f1) bytes in $out"
