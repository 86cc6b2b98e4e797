#!/bin/sh
# Installs the peers that the suite compares tickcast with, from Debian or Ubuntu packages. Needs root.
set -eu
apt-get install -y --no-install-recommends nats-server redis-server nginx libnginx-mod-nchan golang-go
# The packages start the servers as services, which would compete for the measured cores.
for service in nats-server redis-server nginx; do
    if command -v systemctl >/dev/null && systemctl is-active --quiet "$service"; then
        echo "note: $service runs as a service; stop it before you measure: systemctl stop $service"
    fi
done
