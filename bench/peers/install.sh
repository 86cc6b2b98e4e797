#!/bin/sh
# Installs the peers that the suite compares tickcast with, from Debian or Ubuntu packages. Needs root.
set -eu
apt-get install -y --no-install-recommends nats-server redis-server nginx libnginx-mod-nchan golang-go
# Bun comes from npm, into its own folder.
if command -v npm >/dev/null; then
    npm install --prefix "$(dirname "$0")/bun" --no-package-lock --no-audit --no-fund
else
    echo "note: without npm there is no peer 'bun'; install Node.js with npm, then run this script again"
fi
# The packages start the servers as services, which would compete for the measured cores.
for service in nats-server redis-server nginx; do
    if command -v systemctl >/dev/null && systemctl is-active --quiet "$service"; then
        echo "note: $service runs as a service; stop it before you measure: systemctl stop $service"
    fi
done
# The servers in Node come from npm, into a folder of their own.
if command -v npm >/dev/null; then
    npm install --prefix "$(dirname "$0")/node" --no-package-lock --no-audit --no-fund
else
    echo "note: without npm there are no peers 'socketio-node' and 'ws-node'; install Node.js with npm, then run this script again"
fi
command -v cargo >/dev/null || echo "note: without cargo there is no peer 'socketioxide'; install Rust with rustup"
