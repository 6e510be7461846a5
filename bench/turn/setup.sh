#!/usr/bin/env bash
# Installs what the bench needs and this machine lacks.
set -eu
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

need=()
for pair in turnserver:coturn ip:iproute2 taskset:util-linux; do
	[ -x "/usr/bin/${pair%:*}" ] || [ -x "/usr/sbin/${pair%:*}" ] || [ -x "/sbin/${pair%:*}" ] || command -v "${pair%:*}" >/dev/null || need+=("${pair#*:}")
done
[ ${#need[@]} -gt 0 ] || exit 0
echo "bench/turn: apt-get install ${need[*]}"
as_root apt-get update -qq
as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
# The bench starts its own; a service would only be load.
case " ${need[*]} " in *" coturn "*) command -v systemctl >/dev/null && as_root systemctl disable --now coturn 2>/dev/null || true ;; esac
