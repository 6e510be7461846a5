#!/bin/sh
# Rebuilds the page beside web/dist and compares: exit 1, with the names, where they differ.
set -eu
cd "$(dirname "$0")"
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT INT TERM
./build.sh "$fresh/dist"
if ! diff -rq "$fresh/dist" dist >"$fresh/diff" 2>&1; then
	sed -e "s|$fresh/dist|a fresh build|g" -e 's|^|web: |' "$fresh/diff" >&2
	printf 'web: web/dist is not what web/src builds to; run web/build.sh and commit web/dist\n' >&2
	exit 1
fi
printf 'web: dist is what the sources build to\n' >&2
