#!/usr/bin/env bash
# Runs every fuzz target of the tree for the time given, one after the other. A new target is found
# by its name; nothing needs to be added here.
set -eu
time=${1:-1m}
grep -rlE '^func Fuzz[A-Z]' --include='*_test.go' . | xargs -n1 dirname | sort -u | while read -r dir; do
	grep -hoE '^func Fuzz[A-Za-z0-9]+' "$dir"/*_test.go | awk '{print $2}' | while read -r target; do
		echo "== $dir $target for $time"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 10x "$dir" </dev/null
	done
done
