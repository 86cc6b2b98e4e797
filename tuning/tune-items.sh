# shellcheck shell=bash
# shellcheck disable=SC2154  # the options are set by tickcast-tune
# Reads the machine's settings into the arrays of items that tickcast-tune checks, applies and prints. Sourced by
# tickcast-tune. Only `write_value` changes anything.

# Highest number of CPUs that Linux supports.
readonly CPUS_MAX=8192
# RFS flow table entries, in total over all queues; the value of Seastar's perftune.
readonly FLOWS=32768
# Descriptors per ring: enough for a burst, while a larger ring would no longer fit the cache.
readonly RING_DESCRIPTORS=4096
# Longest interrupt coalescing delay for a received packet, in microseconds.
readonly COALESCE_RX_US=8

# --- CPU lists and masks ---------------------------------------------------------------------------------------------

is_cpu_list() {
    [[ $1 =~ ^[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*$ ]] || return 1
    local part
    for part in ${1//,/ }; do
        ((10#${part%-*} <= 10#${part#*-} && 10#${part#*-} < CPUS_MAX)) || return 1
    done
}

# Expands a CPU list: 0-2,8 becomes "0 1 2 8".
expand() {
    local part cpu all=()
    for part in ${1//,/ }; do
        for ((cpu = 10#${part%-*}; cpu <= 10#${part#*-}; cpu++)); do
            all+=("$cpu")
        done
    done
    echo "${all[*]}"
}

# Prints the hexadecimal mask of the given CPUs, in groups of 32 bits like the kernel.
mask_of() {
    local cpu group highest=0 groups=() text=""
    for cpu in "$@"; do
        group=$((cpu / 32))
        groups[group]=$((${groups[group]:-0} | 1 << (cpu % 32)))
        ((group > highest)) && highest=$group
    done
    text=$(printf '%x' "${groups[highest]:-0}")
    for ((group = highest - 1; group >= 0; group--)); do
        text+=$(printf ',%08x' "${groups[group]:-0}")
    done
    echo "$text"
}

# Removes commas and leading zeros from a mask, for comparison.
plain_mask() {
    local digits=${1//,/}
    digits=${digits#"${digits%%[!0]*}"}
    echo "${digits:-0}"
}

# --- Values ----------------------------------------------------------------------------------------------------------

# Runs `ethtool -g NIC` or `ethtool -c NIC` once and caches the output. Sets `answer`; on failure, sets `why`.
declare -A answers=()
ask_ethtool() {
    local nic=$1 flag=$2
    if [[ -n $root && $ethtool == ethtool ]]; then
        why="--root disables ethtool"
    elif ! command -v "$ethtool" >/dev/null; then
        why="$ethtool is not installed"
    elif [[ -n ${answers[$nic$flag]:-} ]]; then
        answer=${answers[$nic$flag]}
        return
    elif answer=$("$ethtool" "$flag" "$nic" 2>&1); then
        answers[$nic$flag]=$answer
        return
    else
        why="ethtool failed: ${answer##*$'\n'}"
    fi
    return 1
}

# Prints one word of a line of `answer`: `ethtool_line PATTERN FIELD [SECTION]`, with FIELD counted from 1.
ethtool_line() {
    awk -v line="$1" -v field="$2" -v section="${3:-}" '
        section != "" && index($0, section) == 1 { inside = 1 }
        (section == "" || inside) && $0 ~ line { print $field; exit }' <<<"$answer"
}

# Reads a target into `value`. On failure, sets `why`.
read_value() {
    local target=$1 text="" nic flag name words
    value="" why=""
    if [[ $target == ethtool:* ]]; then
        IFS=: read -r _ nic flag name <<<"$target"
        ask_ethtool "$nic" "${flag,,}" || return 1
        case $name in
            rx | tx) value=$(ethtool_line "^${name^^}:" 2 "Current hardware settings") ;;
            adaptive-rx) value=$(ethtool_line "^Adaptive RX:" 3) ;;
            rx-usecs) value=$(ethtool_line "^rx-usecs:" 2) ;;
        esac
        [[ $value =~ ^([0-9]+|on|off)$ ]] && return
        value="" why="not supported by the driver"
        return 1
    fi
    if [[ ! -e $root$target ]]; then
        why="$target does not exist"
        return 1
    fi
    # The value is a single line. If it cannot be read, `cat` tells why.
    IFS= read -r text 2>/dev/null <"$root$target"
    if [[ -z $text ]] && ! text=$(cat -- "$root$target" 2>&1); then
        why="$target cannot be read: ${text##*: }"
        return 1
    fi
    # The file lists all choices, with the active one in brackets.
    [[ $target == */transparent_hugepage/* && $text =~ \[([^]]+)\] ]] && text=${BASH_REMATCH[1]}
    read -ra words <<<"$text"
    value="${words[*]}"
    [[ -n $value ]] && return
    why="$target is empty"
    return 1
}

# Prints why even root cannot write a target. Prints nothing if it looks writable.
read_only() {
    local target=$1 bits
    [[ $target == ethtool:* ]] && return
    bits=$(stat -L -c %a -- "$root$target" 2>/dev/null) || return
    if (((8#$bits & 8#222) == 0)) || { ((EUID == 0)) && [[ ! -w $root$target ]]; }; then
        echo "$target is read-only"
    fi
}

# Writes a target. On failure, sets `why`.
write_value() {
    local target=$1 new=$2 nic flag name
    why=""
    if [[ $target == ethtool:* ]]; then
        IFS=: read -r _ nic flag name <<<"$target"
        unset "answers[$nic${flag,,}]"
        why=$("$ethtool" "$flag" "$nic" "$name" "$new" 2>&1) && return
    elif [[ ! -e $root$target ]]; then
        why="$target does not exist"
        return 1
    else
        why=$({ printf '%s\n' "$new" >"$root$target"; } 2>&1) && return
    fi
    why=${why##*$'\n'}
    why=${why##*: }
    return 1
}

is_number() { [[ $1 =~ ^[0-9]{1,18}$ ]]; }

# Whether the current value satisfies the wanted one: `is_wanted TARGET NOW RELATION WANTED`.
is_wanted() {
    local target=$1 now=$2 wanted=$4
    case $3 in
        least) is_number "$now" && ((10#$now >= 10#$wanted)) ;;
        most) is_number "$now" && ((10#$now <= 10#$wanted)) ;;
        # Any of the listed values is fine; `apply` sets the first.
        among) [[ " $wanted " == *" $now "* ]] ;;
        *)
            case $target in
                */[rx]ps_cpus) [[ $(plain_mask "$now") == "$(plain_mask "$wanted")" ]] ;;
                *) [[ $now == "$wanted" ]] ;;
            esac
            ;;
    esac
}

# --- Items -----------------------------------------------------------------------------------------------------------

names=() targets=() relations=() wanteds=() reasons=() states=() nows=()

is_chosen() { [[ " $chosen " == *" $1 "* ]]; }

# add GROUP NAME TARGET RELATION WANTED REASON: adds an item with its current value and state.
add() {
    is_chosen "$1" || return 0
    local target=$3 value why state=supported reason=$6
    if ! read_value "$target"; then
        state=unsupported reason=$why
    elif is_wanted "$target" "$value" "$4" "$5"; then
        state=enabled
    elif why=$(read_only "$target") && [[ -n $why ]]; then
        state=unsupported reason=$why
    fi
    names+=("$2") targets+=("$target") relations+=("$4") wanteds+=("$5") reasons+=("$reason")
    states+=("$state") nows+=("$value")
}

# add_unsupported GROUP NAME WANTED WHY: adds an item that has no target on this machine.
add_unsupported() {
    is_chosen "$1" || return 0
    names+=("$2") targets+=("") relations+=(same) wanteds+=("$3") reasons+=("$4") states+=(unsupported) nows+=("")
}

add_sysctls() {
    local group=$1 file="$here/60-tickcast-$1.conf" line reason="" relation=same key target wanted
    is_chosen "$group" || return 0
    [[ -r $file ]] || misuse "$file cannot be read: it must be in the same directory as this script"
    while IFS= read -r line || [[ -n $line ]]; do
        if [[ $line == "#: at least" ]]; then
            relation=least
        elif [[ $line == "#"* ]]; then
            line=${line#\#}
            reason+="${reason:+ }${line# }"
        elif [[ $line =~ ^-?([a-z0-9_.]+)\ *=\ *(.*[^\ ])\ *$ ]]; then
            key=${BASH_REMATCH[1]} wanted=${BASH_REMATCH[2]}
            target=/proc/sys/${key//.//}
            [[ $target =~ ^$SYSCTLS$ ]] || misuse "$file: tickcast-tune may not set $key"
            add "$group" "$key" "$target" "$relation" "$wanted" "$reason"
            reason="" relation=same
        elif [[ -z $line ]]; then
            reason="" relation=same
        else
            misuse "$file: invalid line: $line"
        fi
    done <"$file"
}

add_governors() {
    is_chosen governor || return 0
    local reason="an idle CPU lowers its frequency and delays the first ticks of the next burst"
    local governor policy available found=no
    for governor in "$root"/sys/devices/system/cpu/cpufreq/policy*/scaling_governor; do
        [[ -e $governor ]] || continue
        found=yes policy=${governor%/*} available=""
        read -r available 2>/dev/null <"$policy/scaling_available_governors"
        if [[ -n $available && " $available " != *" performance "* ]]; then
            add_unsupported governor "governor ${policy##*/}" performance "the driver has no performance governor, only: $available"
        else
            add governor "governor ${policy##*/}" "${governor#"$root"}" same performance "$reason"
        fi
    done
    [[ $found == yes ]] ||
        add_unsupported governor governor performance "no cpufreq driver: this is a virtual machine, or the firmware controls the frequency"
}

add_huge_pages() {
    local folder=/sys/kernel/mm/transparent_hugepage
    add thp "transparent_hugepage/enabled" $folder/enabled among "madvise never" \
        "with always, barely used pages of 2 MiB inflate memory; programs that want huge pages use madvise"
    add thp "transparent_hugepage/defrag" $folder/defrag among "madvise never defer defer+madvise" \
        "with always, a page fault waits for memory compaction, which stalls a shard for milliseconds"
}

# --- CPUs and network interfaces -------------------------------------------------------------------------------------

# divide_cpus QUEUES: sets all_cpus, irq_cpus and compute_cpus for an interface with this many receive queues.
divide_cpus() {
    local queues=$1 cpu siblings first_core="" chosen_mode=$mode
    local -A cores=()
    read -ra all_cpus <<<"$(expand "$cpus")"
    for cpu in "${all_cpus[@]}"; do
        siblings=$cpu
        read -r siblings 2>/dev/null <"$root/sys/devices/system/cpu/cpu$cpu/topology/thread_siblings_list"
        is_cpu_list "$siblings" || siblings=$cpu
        cores[$siblings]=1
        [[ -n $first_core ]] || first_core=$(expand "$siblings")
    done
    if [[ $mode == auto ]]; then
        if ((${#all_cpus[@]} <= 4 || queues == ${#all_cpus[@]})); then
            chosen_mode=mq
        elif ((${#cores[@]} <= 4)); then
            chosen_mode=sq
        else
            chosen_mode=sq_split
        fi
    fi
    [[ $chosen_mode == sq ]] && first_core=${all_cpus[0]}
    irq_cpus=() compute_cpus=()
    for cpu in "${all_cpus[@]}"; do
        if [[ $chosen_mode == mq ]]; then
            irq_cpus+=("$cpu") compute_cpus+=("$cpu")
        elif [[ " $first_core " == *" $cpu "* ]]; then
            irq_cpus+=("$cpu")
        else
            compute_cpus+=("$cpu")
        fi
    done
    ((${#compute_cpus[@]} > 0)) || misuse "--mode $mode leaves no CPU for tickcast (--cpus $cpus)"
    [[ $chosen_mode == mq ]] ||
        warn "mode $chosen_mode: interrupts go to CPUs ${irq_cpus[*]}; start tickcast with --cores $(IFS=, && echo "${compute_cpus[*]}")"
}

# Prints the interrupts of an interface, one `NUMBER NAME` per line; only those of queues if the names identify them.
interrupts_of() {
    local device=$root/sys/class/net/$1/device modalias="" folder="" single="" numbers=()
    read -r modalias 2>/dev/null <"$device/modalias"
    if [[ -d $device/msi_irqs ]]; then
        folder=$device/msi_irqs
    elif [[ $modalias == virtio* && -d $device/../msi_irqs ]]; then
        folder=$device/../msi_irqs
    fi
    if [[ -n $folder ]]; then
        mapfile -t numbers < <(find "$folder/" -mindepth 1 -maxdepth 1 -printf '%f\n' 2>/dev/null | sort -n)
    elif read -r single 2>/dev/null <"$device/irq" && [[ $single != 0 ]]; then
        numbers=("$single")
    fi
    awk -v numbers="${numbers[*]}" '
        BEGIN { count = split(numbers, order, " ") }
        $1 ~ /^[0-9]+:$/ { name[$1 + 0] = $NF }
        END {
            for (at = 1; at <= count; at++) {
                if (!(order[at] + 0 in name)) continue
                line = order[at] " " name[order[at] + 0]
                all = all line "\n"
                if (line ~ /(-TxRx-|-fp-|-Tx-Rx-|mlx4-[0-9]+@|mlx5_comp[0-9]+@|virtio[0-9]+-(input|output))/ &&
                    line !~ /fdir/) fast = fast line "\n"
            }
            printf "%s", fast == "" ? all : fast
        }' "$root/proc/interrupts" 2>/dev/null
}

add_interrupts() {
    local nic=$1 number name queue next=0 found=no
    is_chosen irq || return 0
    while read -r number name; do
        found=yes
        # The receive and transmit interrupts of a queue go to the same CPU.
        if [[ $name =~ (TxRx-|fp-|Tx-Rx-|mlx4-|mlx5_comp|input\.|output\.)([0-9]{1,4}) ]]; then
            queue=$((10#${BASH_REMATCH[2]}))
        else
            queue=$((next++))
        fi
        add irq "irq $nic $number $name" "/proc/irq/$number/smp_affinity_list" same \
            "${irq_cpus[queue % ${#irq_cpus[@]}]}" "one CPU per queue: queues do not share a CPU by chance, and no CPU handles all interrupts"
    done < <(interrupts_of "$nic")
    [[ $found == yes ]] ||
        add_unsupported irq "irq $nic" "one CPU per queue" "$nic has no interrupts of its own: it is a virtual interface"
    local comm
    for comm in "$root"/proc/[0-9]*/comm; do
        if [[ $(cat -- "$comm" 2>/dev/null) == irqbalance ]]; then
            add_unsupported irq irqbalance "not running" "irqbalance moves interrupts back: stop it, or ban these interrupts in its configuration"
            break
        fi
    done
}

add_receive_steering() {
    local nic=$1 mask queue queues=("$root/sys/class/net/$1/queues"/rx-*)
    if ((${#all_cpus[@]} == 1)); then
        add_unsupported rps "rps $nic" "every CPU" "only one CPU: packets cannot be steered to another"
        return
    fi
    [[ -d ${queues[0]} ]] || { add_unsupported rps "rps $nic" "every CPU" "$nic has no receive queues"; return; }
    mask=$(mask_of "${compute_cpus[@]}")
    # With one queue per CPU, the NIC already spreads the load; RPS would only add overhead.
    ((${#queues[@]} >= ${#all_cpus[@]} && ${#compute_cpus[@]} == ${#all_cpus[@]})) && mask=0
    for queue in "${queues[@]}"; do
        queue=${queue#"$root"}
        add rps "rps $nic ${queue##*/}" "$queue/rps_cpus" same "$mask" \
            "fewer queues than CPUs: RPS spreads TCP processing over the CPUs of the shards"
        [[ $mask == 0 ]] || add rps "rfs $nic ${queue##*/}" "$queue/rps_flow_cnt" least "$((FLOWS / ${#queues[@]}))" \
            "this queue's share of the RFS flow table: packets go to the CPU whose shard reads the connection"
    done
    [[ $mask == 0 || " ${names[*]:-} " == *" net.core.rps_sock_flow_entries "* ]] ||
        add rps net.core.rps_sock_flow_entries /proc/sys/net/core/rps_sock_flow_entries least "$FLOWS" \
            "size of the RFS flow table, which records the CPU that reads each flow"
}

add_transmit_steering() {
    local nic=$1 queue at cpu queues=("$root/sys/class/net/$1/queues"/tx-*) mine=()
    if ((${#queues[@]} == 1)); then
        add_unsupported xps "xps $nic" "one queue per CPU" "$nic has only one transmit queue"
        return
    fi
    for ((queue = 0; queue < ${#queues[@]} && queue < ${#all_cpus[@]}; queue++)); do
        mine=()
        for ((at = queue; at < ${#all_cpus[@]}; at += ${#queues[@]})); do
            cpu=${all_cpus[at]}
            mine+=("$cpu")
        done
        add xps "xps $nic tx-$queue" "/sys/class/net/$nic/queues/tx-$queue/xps_cpus" same "$(mask_of "${mine[@]}")" \
            "each shard sends on its own queue, without lock contention with other CPUs"
    done
}

add_driver_settings() {
    local nic=$1 name most wanted
    for name in rx tx; do
        is_chosen rings || break
        if ! ask_ethtool "$nic" -g; then
            add_unsupported rings "ring $nic $name" "$RING_DESCRIPTORS" "$why"
            continue
        fi
        most=$(ethtool_line "^${name^^}:" 2 "Pre-set maximums")
        wanted=$RING_DESCRIPTORS
        is_number "$most" && ((most < wanted)) && wanted=$most
        add rings "ring $nic $name" "ethtool:$nic:-G:$name" least "$wanted" \
            "a larger ring absorbs bursts instead of dropping packets; changing it may take the link down briefly"
    done
    add coalescing "coalescing $nic adaptive-rx" "ethtool:$nic:-C:adaptive-rx" same off \
        "adaptive coalescing delays packets most just after the load changes"
    add coalescing "coalescing $nic rx-usecs" "ethtool:$nic:-C:rx-usecs" most "$COALESCE_RX_US" \
        "limits how many microseconds the NIC may delay a received packet to save interrupts"
}

# Sets `nics` to the named interfaces, or to the one of the default route. Replaces a bond by its members.
find_nics() {
    local named=("${nics[@]}") nic members
    if ((${#named[@]} == 0)); then
        nic=$(awk '$2 == "00000000" && $8 == "00000000" { print $1; exit }' "$root/proc/net/route" 2>/dev/null)
        [[ -n $nic && -d $root/sys/class/net/$nic ]] && named=("$nic")
    fi
    nics=()
    for nic in "${named[@]}"; do
        [[ $nic =~ ^$NIC_NAME$ && -d $root/sys/class/net/$nic ]] ||
            misuse "no network interface $nic; available: $(cd "$root/sys/class/net" 2>/dev/null && echo *)"
        if read -ra members 2>/dev/null <"$root/sys/class/net/$nic/bonding/slaves"; then
            nics+=("${members[@]}")
        else
            nics+=("$nic")
        fi
    done
}

add_all() {
    local group nic queues
    for group in backlog memory connections latency busy-poll scheduling client; do
        add_sysctls "$group"
    done
    add_governors
    add_huge_pages
    [[ " $chosen " =~ \ (irq|rps|xps|rings|coalescing)\  ]] || return 0
    ((${#nics[@]} > 0)) ||
        add_unsupported "${BASH_REMATCH[1]}" nic "an interface" "no interface was specified, and there is no default route"
    for nic in "${nics[@]}"; do
        queues=("$root/sys/class/net/$nic/queues"/rx-*)
        divide_cpus "${#queues[@]}"
        add_interrupts "$nic"
        add_receive_steering "$nic"
        add_transmit_steering "$nic"
        add_driver_settings "$nic"
    done
}
