#!/usr/bin/env bash
# Walks through the first steps of a new user, from installing the package to removing it.
#
#   scripts/walk-through.sh [--force] [--out FOLDER] [FILE.deb]
#
#   --force        remove an existing installation, including its configuration, instead of skipping
#   --out FOLDER   new or empty directory for the results [default: target/walk-through, which is overwritten]
#   FILE.deb       package to install [default: the latest from scripts/package.sh]
#
# Installs the package, runs `tickcast check`, starts the server with the default configuration on free ports, publishes prices,
# scrapes the metrics, opens the page, runs `tickcast top` in tmux, adds the simulator and an ECG to the configuration and reloads it,
# drains the server under a subscriber, restarts it, opens the page with the ECG and removes the package. The results are
# screenshots of the page (light and dark, desktop and phone), top.txt, metrics.txt, check.txt and server.log. Afterwards the machine
# is as before, except for dpkg's log. Takes about a minute.
#
# Steps that need a browser, tmux or promtool are skipped if these are missing; scripts/test.sh installs them. Exits with 77 if the
# walk-through is not possible: without root, dpkg or curl, or if tickcast is installed.
set -euo pipefail
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/trial.sh
source scripts/trial.sh

out=""
while (($# > 0)); do
    case $1 in
        --force) force=yes ;;
        --out)
            [[ -n ${2:-} ]] || fail "--out requires a folder"
            out=$2
            [[ $out == /* ]] || out=$called_from/$out
            # Never overwrite files in a directory that the user chose.
            [[ ! -e $out && ! -L $out ]] || [[ -d $out && -z $(ls -A -- "$out") ]] ||
                fail "--out $out must be a new or empty directory"
            shift
            ;;
        -h | --help) usage ;;
        -*) fail "unknown option $1; see --help" ;;
        *) select_package "$1" ;;
    esac
    shift
done
command -v curl >/dev/null || skip "curl not found"
begin_trial
if [[ -z $out ]]; then
    out=${CARGO_TARGET_DIR:-target}/walk-through
    rm -rf -- "$out"
fi
mkdir -p -- "$out"

session=tickcast-walk-through-$$
own=()
end_own() {
    ((${#own[@]} == 0)) || kill "${own[@]}" 2>/dev/null || true
    ! command -v tmux >/dev/null || tmux -L "$session" kill-server 2>/dev/null || true
}

ask() { curl --silent --show-error --max-time 10 "http://$admin$1"; }
status_of() { curl --silent --max-time 10 --output /dev/null --write-out '%{http_code}' "http://$admin$1"; }
is_status() { [[ $(status_of "$1") == "$2" ]]; }

step "dpkg -i $(basename "$deb")"
install_package
echo "the following steps replace: systemctl enable --now tickcast, systemctl reload tickcast, systemctl stop tickcast"

step "tickcast check"
status=0
timeout --foreground "$command_s_max" tickcast check >"$out/check.txt" 2>&1 || status=$?
((status <= 1)) || fail "tickcast check exited with $status: $(cat "$out/check.txt")"
cat "$out/check.txt"

step "tickcast serve --config $configuration, on free ports"
start_server
is_status /healthz 200 || fail "GET /healthz is not 200"
is_status /readyz 200 || fail "GET /readyz is not 200"

prices() { # seed; prints ten prices per second until its reader, which end_own stops, is gone
    awk -v seed="$1" 'BEGIN {
        srand(seed); price = 100 * (1 + rand())
        while (1) {
            price *= 1 + (rand() - 0.5) / 500
            printf "{\"price\":%.2f,\"size\":%d}\n", price, 1 + 90 * rand()
            fflush(); system("sleep 0.1")
        }
    }' 2>/dev/null
}
step "publishers, a subscriber and a scrape"
for topic in metals.gold metals.silver fx.eurusd fx.usdjpy energy.gas energy.oil; do
    tickcast pub "$topic" - --server "$tcp" < <(prices "${#topic}$RANDOM") 2>>"$work/publishers" &
    own+=($!)
done
timeout --foreground "$command_s_max" tickcast sub '>' --count 5 --server "$tcp"
ask /metrics >"$out/metrics.txt"
echo "$(grep -vc '^#' "$out/metrics.txt") samples"
if command -v promtool >/dev/null; then
    promtool check metrics <"$out/metrics.txt" || fail "promtool rejects /metrics"
    echo "promtool: passed"
fi

screenshots() { # folder
    local browser
    if ! command -v node >/dev/null || ! browser=$(node tests/clients/find-browser.mjs 2>/dev/null); then
        echo "skipped: browser not found (scripts/test.sh installs one)"
        return
    fi
    timeout --foreground "$command_s_max" node tests/clients/shots.mjs "http://$http/" "$out/$1" "$browser" || fail "the page failed: see above"
}
step "the page"
screenshots page

step "tickcast top"
if command -v tmux >/dev/null; then
    tmux -u -L "$session" -f /dev/null new-session -d -x 130 -y 40 \
        "timeout --foreground $command_s_max tickcast top --admin $admin; echo \"top exited with \$?\"; sleep $command_s_max"
    shows() { tmux -L "$session" capture-pane -p >"$out/top.txt" && grep -q "$1" "$out/top.txt"; }
    wait_for "a screen with rates" shows ' [1-9][0-9,.]* ticks/s in'
    cat "$out/top.txt"
    cp "$out/top.txt" "$out/top-screen.txt"
    tmux -L "$session" send-keys q
    wait_for "top to exit" shows 'top exited with 0'
    mv "$out/top-screen.txt" "$out/top.txt"
    tmux -L "$session" kill-server
else
    echo "tmux not found (scripts/test.sh installs it); running top --once instead:"
    timeout --foreground "$command_s_max" tickcast top --once --admin "$admin" | tee "$out/top.txt"
fi

step "change the configuration and send SIGHUP, as systemctl reload does"
sed -i '/^source = \[\]$/d; s/^\[delivery\]$/&\nbehind_time = "250ms"/' "$configuration"
printf '[[source]]\nkind = "simulator"\n[[source]]\nkind = "ecg"\nrecord = "synthetic"\n' >>"$configuration"
tickcast serve --config "$configuration" --check-config
kill -HUP "$server"
wait_for "the change in the log" grep -q 'SIGHUP: delivery.behind_time: 250ms' "$log"
grep 'SIGHUP' "$log"
grep -q 'SIGHUP: source.*takes effect at the next start' "$log" || fail "the log does not say that the ECG takes effect at the next start"
echo 'behind_mss = 1' >>"$configuration"
kill -HUP "$server"
wait_for "the rejection in the log" grep -q 'SIGHUP: nothing changed' "$log"
grep 'nothing changed' "$log"
sed -i '$d' "$configuration"

step "SIGTERM: drain"
timeout --foreground "$command_s_max" tickcast sub '>' --server "$tcp" >"$work/ticks" 2>"$work/subscriber" &
own+=($!)
wait_for "the subscriber to receive a tick" test -s "$work/ticks"
stop_server
echo "last line of the subscriber: $(tail -1 "$work/subscriber")"
end_own
wait "${own[@]}" 2>/dev/null || true
own=()

step "start with the new configuration: an ECG"
start_server
timeout --foreground "$command_s_max" tickcast process ecg --server "$tcp" >"$work/beats" 2>&1 &
own+=($!)
wait_for "a beat" grep -q '^beat' "$work/beats"
head -3 "$work/beats"
screenshots page-with-ecg
end_own
own=()
stop_server

step "dpkg -r, dpkg -P"
cp "$log" "$out/server.log"
run_dpkg -r tickcast
[[ -e $configuration ]] || fail "removing the package removed the configuration"
purge_package
printf '\nresults in %s\n' "$out"
