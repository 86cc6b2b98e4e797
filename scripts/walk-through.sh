#!/usr/bin/env bash
# What a new user does, from the package to its removal: scripts/walk-through.sh [--force] [--out FOLDER] [FILE.deb], the
# newest that scripts/package.sh has made unless said otherwise.
#
# Installs the package; reads `tickcast check`; starts it with the shipped configuration, on free ports; publishes prices;
# scrapes it; opens the page; looks at `tickcast top` in tmux; adds the simulator and a heart to the configuration and
# reloads; drains it under a subscriber; starts it again, and the wave is on the page; removes it. What was seen is in FOLDER
# (walk-through below the target folder unless said otherwise): screenshots of the page in light and dark on a desktop and
# a phone, top.txt, metrics.txt, check.txt, server.log. The machine is then as it was, but for dpkg's log. About a minute.
#
# What the browser, tmux and promtool are for is left out where they are missing (scripts/test.sh installs them). Exits with
# 77 where nothing can be tried: not as root, without dpkg or curl, or where tickcast is installed.
#
#   --force        do it where tickcast is installed, too: that is taken away, with its configuration
#   --out FOLDER   where to put what was seen: a new folder, or an empty one
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
            [[ -n ${2:-} ]] || fail "--out takes a folder"
            out=$2
            [[ $out == /* ]] || out=$called_from/$out
            # Nothing in a folder that somebody names is this script's to take away.
            [[ ! -e $out && ! -L $out ]] || [[ -d $out && -z $(ls -A -- "$out") ]] ||
                fail "--out $out: there is something; name a new folder, or an empty one"
            shift
            ;;
        -h | --help) usage ;;
        -*) fail "no option $1; there are --force, --out FOLDER and a package to be named" ;;
        *) name_package "$1" ;;
    esac
    shift
done
command -v curl >/dev/null || cannot "there is no curl here"
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
echo "from here on systemd would do: systemctl enable --now tickcast, systemctl reload tickcast, systemctl stop tickcast"

step "tickcast check"
status=0
timeout --foreground "$command_s_max" tickcast check >"$out/check.txt" 2>&1 || status=$?
((status <= 1)) || fail "tickcast check ended with $status: $(cat "$out/check.txt")"
cat "$out/check.txt"

step "tickcast serve --config $configuration, on free ports"
start_server
is_status /healthz 200 || fail "it is not healthy"
is_status /readyz 200 || fail "it is not ready"

prices() { # seed: ten a second, until nobody reads them: end_own ends who does
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
    promtool check metrics <"$out/metrics.txt" || fail "promtool complains"
    echo "promtool: good"
fi

pictures() { # folder
    local browser
    if ! command -v node >/dev/null || ! browser=$(node tests/clients/find-browser.mjs 2>/dev/null); then
        echo "left out: no browser (scripts/test.sh installs one)"
        return
    fi
    timeout --foreground "$command_s_max" node tests/clients/shots.mjs "http://$http/" "$out/$1" "$browser" || fail "the page: see above"
}
step "the page"
pictures page

step "tickcast top"
if command -v tmux >/dev/null; then
    tmux -u -L "$session" -f /dev/null new-session -d -x 130 -y 40 \
        "timeout --foreground $command_s_max tickcast top --admin $admin; echo \"top ended with \$?\"; sleep $command_s_max"
    shows() { tmux -L "$session" capture-pane -p >"$out/top.txt" && grep -q "$1" "$out/top.txt"; }
    waits_for "a screen with rates" shows ' [1-9][0-9,.]* ticks/s in'
    cat "$out/top.txt"
    cp "$out/top.txt" "$out/top-screen.txt"
    tmux -L "$session" send-keys q
    waits_for "its end" shows 'top ended with 0'
    mv "$out/top-screen.txt" "$out/top.txt"
    tmux -L "$session" kill-server
else
    echo "left out: no tmux (scripts/test.sh installs it); as text:"
    timeout --foreground "$command_s_max" tickcast top --once --admin "$admin" | tee "$out/top.txt"
fi

step "another configuration, and SIGHUP, as systemctl reload sends it"
sed -i 's/^no_sim = true$/no_sim = false/' "$configuration"
printf 'behind_ms = 250\necg = "synthetic"\n' >>"$configuration"
tickcast serve --config "$configuration" --check-config
kill -HUP "$server"
waits_for "the change" grep -q 'SIGHUP: behind_ms: 250' "$log"
grep 'SIGHUP' "$log"
grep -q 'SIGHUP: ecg: .*takes effect at the next start' "$log" || fail "it does not say that the heart waits"
echo 'behind_mss = 1' >>"$configuration"
kill -HUP "$server"
waits_for "a refusal" grep -q 'SIGHUP: nothing is changed' "$log"
grep 'nothing is changed' "$log"
sed -i '$d' "$configuration"

step "SIGTERM: it drains"
timeout --foreground "$command_s_max" tickcast sub '>' --server "$tcp" >"$work/ticks" 2>"$work/subscriber" &
own+=($!)
waits_for "the subscriber" test -s "$work/ticks"
stop_server
echo "the subscriber says: $(tail -1 "$work/subscriber")"
end_own
wait "${own[@]}" 2>/dev/null || true
own=()

step "the new configuration: a heart"
start_server
timeout --foreground "$command_s_max" tickcast process ecg --server "$tcp" >"$work/beats" 2>&1 &
own+=($!)
waits_for "a beat" grep -q '^beat' "$work/beats"
head -3 "$work/beats"
pictures page-with-ecg
end_own
own=()
stop_server

step "dpkg -r, dpkg -P"
cp "$log" "$out/server.log"
run_dpkg -r tickcast
[[ -e $configuration ]] || fail "the configuration is gone before it is purged"
purge_package
printf '\nwhat was seen is in %s\n' "$out"
