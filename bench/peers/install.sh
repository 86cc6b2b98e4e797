#!/bin/sh
# Installs the servers that tickcast is measured beside, from the distribution (Debian or Ubuntu); needs root.
set -eu
apt-get install -y --no-install-recommends nats-server redis-server nginx libnginx-mod-nchan golang-go
# The packages start services of their own, which would share the cores that are measured.
for service in nats-server redis-server nginx; do
    if command -v systemctl >/dev/null && systemctl is-active --quiet "$service"; then
        echo "note: $service runs as a service: stop it while you measure (systemctl stop $service)"
    fi
done
