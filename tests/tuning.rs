//! `tuning/tickcast-tune` on a fake machine in a folder, and on real network settings in a network namespace of its own.
//! The settings of the machine that runs the tests do not change.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{
        fs::{PermissionsExt, symlink},
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

const CPUS: usize = 8;
const STATE: &str = "var/lib/tickcast/tune.saved";

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Output and end of a run.
struct Run {
    code: Option<i32>,
    signal: Option<i32>,
    out: String,
    errors: String,
}

impl Run {
    fn of(output: Output) -> Run {
        Run {
            code: output.status.code(),
            signal: output.status.signal(),
            out: String::from_utf8(output.stdout).unwrap(),
            errors: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    fn ends(self, code: i32) -> Run {
        assert_eq!(self.code, Some(code), "out:\n{}\nerrors:\n{}", self.out, self.errors);
        self
    }

    #[track_caller]
    fn says(self, text: &str) -> Run {
        let has = self.out.contains(text) || self.errors.contains(text);
        assert!(has, "nothing says {text:?}\nout:\n{}\nerrors:\n{}", self.out, self.errors);
        self
    }
}

/// An untuned machine with eight CPUs in four cores, and an interface with four queues.
struct Machine {
    root: PathBuf,
}

impl Machine {
    fn bare(name: &str) -> Machine {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tuning-{name}"));
        if root.exists() {
            fs::remove_dir_all(&root).unwrap();
        }
        fs::create_dir_all(root.join("proc/sys")).unwrap();
        Machine { root }
    }

    fn new(name: &str) -> Machine {
        let machine = Machine::bare(name);
        for (key, value) in [
            ("net/core/somaxconn", "4096"),
            ("net/core/netdev_max_backlog", "1000"),
            ("net/core/busy_read", "0"),
            ("net/core/busy_poll", "0"),
            ("net/core/rps_sock_flow_entries", "0"),
            ("net/ipv4/tcp_max_syn_backlog", "512"),
            ("net/ipv4/tcp_wmem", "4096\t20000\t8388608"),
            ("net/ipv4/tcp_notsent_lowat", "4294967295"),
            ("net/ipv4/tcp_slow_start_after_idle", "1"),
            ("net/ipv4/tcp_tw_reuse", "2"),
            ("net/ipv4/ip_local_port_range", "32768\t60999"),
            ("net/netfilter/nf_conntrack_max", "262144"),
            ("fs/nr_open", "65536"),
            ("kernel/numa_balancing", "1"),
            ("kernel/nmi_watchdog", "1"),
            ("kernel/random/boot_id", "first"),
        ] {
            machine.write(&format!("proc/sys/{key}"), value);
        }
        machine.write("sys/kernel/mm/transparent_hugepage/enabled", "always");
        machine.write("sys/kernel/mm/transparent_hugepage/defrag", "always");
        machine.write("sys/devices/system/cpu/online", "0-7");
        for cpu in 0..CPUS {
            let topology = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            machine.write(&topology, &format!("{},{}", cpu % 4, cpu % 4 + 4));
            let policy = format!("sys/devices/system/cpu/cpufreq/policy{cpu}");
            machine.write(&format!("{policy}/scaling_governor"), "powersave");
            machine.write(&format!("{policy}/scaling_available_governors"), "performance powersave");
        }
        machine.write("proc/net/route", "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\neth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000");
        let mut interrupts = "           CPU0       CPU1\n 39:   1   0   PCI-MSI 0-edge   eth0\n".to_owned();
        for queue in 0..4 {
            let number = 40 + queue;
            interrupts.push_str(&format!(" {number}:   1   0   PCI-MSI {queue}-edge   eth0-TxRx-{queue}\n"));
            machine.write(&format!("sys/devices/nic/msi_irqs/{number}"), "msix");
            machine.write(&format!("proc/irq/{number}/smp_affinity_list"), "0-7");
            machine.write(&format!("sys/class/net/eth0/queues/rx-{queue}/rps_cpus"), "00");
            machine.write(&format!("sys/class/net/eth0/queues/rx-{queue}/rps_flow_cnt"), "0");
            machine.write(&format!("sys/class/net/eth0/queues/tx-{queue}/xps_cpus"), "00");
        }
        machine.write("sys/devices/nic/msi_irqs/39", "msix");
        machine.write("proc/irq/39/smp_affinity_list", "0-7");
        machine.write("proc/interrupts", &interrupts);
        symlink("../../../devices/nic", machine.root.join("sys/class/net/eth0/device")).unwrap();
        machine.write("sys/class/net/dummy0/mtu", "1500");
        for (name, value) in [("rx", "512"), ("tx", "512"), ("adaptive-rx", "on"), ("rx-usecs", "50")] {
            machine.write(&format!("ethtool/{name}"), value);
        }
        machine.write("ethtool.sh", FAKE_ETHTOOL);
        fs::set_permissions(machine.root.join("ethtool.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        machine
    }

    fn write(&self, path: &str, value: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{value}\n")).unwrap();
    }

    fn read(&self, path: &str) -> String {
        let text = fs::read_to_string(self.root.join(path)).unwrap();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn has_state(&self) -> bool {
        self.root.join(STATE).exists()
    }

    /// Every setting of the machine, by path.
    fn values(&self) -> BTreeMap<PathBuf, String> {
        fn collect(folder: &Path, values: &mut BTreeMap<PathBuf, String>) {
            for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let path = entry.path();
                if entry.file_type().unwrap().is_dir() {
                    collect(&path, values);
                } else if let Ok(text) = fs::read_to_string(&path) {
                    values.insert(path, text.split_whitespace().collect::<Vec<_>>().join(" "));
                }
            }
        }
        let mut values = BTreeMap::new();
        for folder in ["proc", "sys", "ethtool"] {
            if self.root.join(folder).exists() {
                collect(&self.root.join(folder), &mut values);
            }
        }
        values
    }

    fn run(&self, arguments: &str) -> Run {
        let mut command = Command::new(project("tuning/tickcast-tune"));
        command.args(arguments.split_whitespace()).arg("--root").arg(&self.root);
        if self.root.join("ethtool.sh").exists() {
            command.arg("--ethtool").arg(self.root.join("ethtool.sh"));
        }
        // In a process group of its own, so that a signal to the group acts like Ctrl-C.
        Run::of(command.process_group(0).output().unwrap())
    }

    /// The items of `check --json`, by name.
    fn items(&self, arguments: &str) -> BTreeMap<String, Value> {
        let run = self.run(&format!("check --json {arguments}"));
        let parse = |line: &str| {
            let item: Value = serde_json::from_str(line).unwrap();
            assert_eq!(item.as_object().unwrap().len(), 5, "{item}");
            (item["name"].as_str().unwrap().to_owned(), item)
        };
        run.out.lines().map(parse).collect()
    }

    fn state_of(&self, name: &str) -> String {
        self.items("")[name]["state"].as_str().unwrap().to_owned()
    }
}

/// Keeps its values in files. A file `signal` names a signal to send to the process group when a value is set; a file `refuse`
/// names a value that cannot be set.
const FAKE_ETHTOOL: &str = r#"#!/bin/sh
folder=$(dirname "$0")/ethtool
case $1 in
    -g)
        printf 'Ring parameters for %s:\nPre-set maximums:\nRX:\t\t8192\nRX Mini:\tn/a\nTX:\t\t2048\n' "$2"
        printf 'Current hardware settings:\nRX:\t\t%s\nRX Mini:\tn/a\nTX:\t\t%s\n' "$(cat "$folder/rx")" "$(cat "$folder/tx")"
        ;;
    -c)
        printf 'Coalesce parameters for %s:\nAdaptive RX: %s  TX: n/a\n' "$2" "$(cat "$folder/adaptive-rx")"
        printf 'stats-block-usecs:\tn/a\n\nrx-usecs:\t%s\nrx-frames:\tn/a\n' "$(cat "$folder/rx-usecs")"
        ;;
    -G | -C)
        if [ "$(cat "$folder/../refuse" 2>/dev/null)" = "$3" ]; then
            echo "netlink error: Operation not supported" >&2
            exit 1
        fi
        echo "$4" >"$folder/$3"
        if [ -e "$folder/../signal" ]; then
            trap "" TERM
            kill -s "$(cat "$folder/../signal")" 0
        fi
        ;;
esac
"#;

#[test]
fn check_lists_every_item_and_changes_nothing() {
    let machine = Machine::new("check");
    let before = machine.values();
    machine.run("check").ends(1).says("supported   net.core.somaxconn: now 4096, wanted at least 65535: ");
    let items = machine.items("");
    assert_eq!(machine.values(), before);
    assert!(!machine.has_state());
    for name in [
        "net.core.somaxconn",
        "net.ipv4.tcp_wmem",
        "fs.nr_open",
        "net.core.busy_poll",
        "kernel.numa_balancing",
        "kernel.nmi_watchdog",
        "governor policy7",
        "transparent_hugepage/enabled",
        "irq eth0 43 eth0-TxRx-3",
        "rps eth0 rx-3",
        "xps eth0 tx-3",
        "ring eth0 rx",
        "coalescing eth0 rx-usecs",
    ] {
        let item = items.get(name).unwrap_or_else(|| panic!("{name} of {:?}", items.keys()));
        assert_eq!(item["state"], "supported", "{item}");
        assert!(item["reason"].as_str().unwrap().len() > 20, "{item}");
    }
    assert_eq!(items["net.ipv4.tcp_wmem"]["now"], "4096 20000 8388608");
    assert_eq!(items["ring eth0 tx"]["wanted"], "at least 2048", "the most that the driver has");
    assert!(!items.contains_key("net.ipv4.ip_local_port_range"), "that is for client hosts");
    assert!(!items.contains_key("irq eth0 39 eth0"), "the interrupt of no queue");
}

#[test]
fn apply_enables_every_item_and_is_idempotent() {
    let machine = Machine::new("apply");
    let before = machine.values();
    machine.run("apply").ends(0).says("set net.core.somaxconn: 4096 -> 65535").says(" 0 skipped");
    machine.run("check").ends(0);
    assert_eq!(machine.read("proc/sys/net/ipv4/tcp_wmem"), "4096 16384 4194304");
    assert_eq!(machine.read("sys/devices/system/cpu/cpufreq/policy3/scaling_governor"), "performance");
    assert_eq!(machine.read("sys/kernel/mm/transparent_hugepage/enabled"), "madvise");
    assert_eq!(machine.read("ethtool/rx"), "4096");
    assert_eq!(machine.read("ethtool/rx-usecs"), "8");
    let (after, saved) = (machine.values(), machine.read(STATE));
    machine.run("apply").ends(0).says("0 set");
    assert_eq!((machine.values(), machine.read(STATE)), (after, saved));
    machine.run("revert").ends(0);
    assert_eq!(machine.values(), before, "put back to the last value");
    assert!(!machine.has_state());
    machine.run("revert").ends(0).says("nothing to restore");
    assert_eq!(machine.values(), before);
}

#[test]
fn a_dry_run_reports_and_changes_nothing() {
    let machine = Machine::new("dry-run");
    let before = machine.values();
    for arguments in ["apply --dry-run", "--dry-run", "--dry-run eth0"] {
        machine.run(arguments).ends(0).says("would set ring eth0 rx: 512 -> 4096");
    }
    assert_eq!(machine.values(), before);
    assert!(!machine.root.join("var").exists());
    machine.run("apply").ends(0);
    let (after, saved) = (machine.values(), machine.read(STATE));
    machine.run("revert --dry-run").ends(0).says("would restore /proc/sys/net/core/somaxconn: 65535 -> 4096");
    assert_eq!((machine.values(), machine.read(STATE)), (after, saved));
}

#[test]
fn missing_features_are_skipped_with_a_reason() {
    let machine = Machine::bare("lacks");
    machine.write("proc/sys/net/core/somaxconn", "128");
    machine
        .run("apply")
        .ends(0)
        .says("set net.core.somaxconn: 128 -> 65535")
        .says("skipped kernel.numa_balancing: /proc/sys/kernel/numa_balancing does not exist")
        .says("skipped governor: no cpufreq")
        .says("skipped nic: no interface was specified");
    machine.run("check").ends(0);
    assert_eq!(machine.state_of("kernel.numa_balancing"), "unsupported");
    assert_eq!(machine.items("")["fs.nr_open"]["now"], Value::Null);
    machine.run("revert").ends(0);
    assert_eq!(machine.read("proc/sys/net/core/somaxconn"), "128");
}

#[test]
fn a_virtual_interface_is_recognised() {
    let machine = Machine::new("virtual");
    machine
        .run("check dummy0 --only irq,rps,xps")
        .ends(0)
        .says("dummy0 has no interrupts of its own")
        .says("dummy0 has no receive queues");
    fs::remove_file(machine.root.join("ethtool.sh")).unwrap();
    machine.run("check --only rings,coalescing").ends(0).says("--root disables ethtool");
    machine.run("check --only rings --ethtool /nowhere/ethtool").ends(0).says("is not installed");
}

#[test]
fn better_values_are_left_alone() {
    let machine = Machine::new("better");
    machine.write("proc/sys/net/core/somaxconn", "100000");
    machine.write("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]");
    machine.write("ethtool/rx", "8192");
    machine.write("ethtool/rx-usecs", "0");
    for name in
        ["net.core.somaxconn", "transparent_hugepage/enabled", "ring eth0 rx", "coalescing eth0 rx-usecs"]
    {
        assert_eq!(machine.state_of(name), "enabled", "{name}");
    }
    machine.run("apply").ends(0);
    assert_eq!(machine.read("proc/sys/net/core/somaxconn"), "100000");
}

#[test]
fn unreadable_and_read_only_settings_are_unsupported() {
    let machine = Machine::new("read-only");
    let somaxconn = machine.root.join("proc/sys/net/core/somaxconn");
    fs::set_permissions(&somaxconn, fs::Permissions::from_mode(0o444)).unwrap();
    let lowat = machine.root.join("proc/sys/net/ipv4/tcp_notsent_lowat");
    fs::remove_file(&lowat).unwrap();
    // A folder is not readable even for root.
    fs::create_dir(&lowat).unwrap();
    machine.write("proc/sys/net/ipv4/tcp_max_syn_backlog", "");
    machine
        .run("check")
        .ends(1)
        .says("unsupported net.core.somaxconn: now 4096, wanted at least 65535: /proc/sys/net/core/somaxconn is read-only")
        .says("tcp_notsent_lowat cannot be read: Is a directory")
        .says("tcp_max_syn_backlog is empty");
    machine.run("apply").ends(0).says("skipped net.core.somaxconn");
    assert_eq!(machine.read("proc/sys/net/core/somaxconn"), "4096");
    machine.run("check").ends(0);
}

#[test]
fn a_refused_value_is_reported_and_the_rest_is_set() {
    let machine = Machine::new("refused");
    let before = machine.values();
    machine.write("refuse", "adaptive-rx");
    machine
        .run("apply")
        .ends(0)
        .says("skipped coalescing eth0 adaptive-rx: refused: Operation not supported")
        .says("set coalescing eth0 rx-usecs: 50 -> 8");
    fs::remove_file(machine.root.join("refuse")).unwrap();
    machine.run("revert").ends(0);
    assert_eq!(machine.values(), before);
}

#[test]
fn values_that_cannot_be_restored_are_kept_for_the_next_revert() {
    let machine = Machine::new("kept");
    let before = machine.values();
    machine.run("apply").ends(0);
    machine.write("refuse", "rx-usecs");
    machine.run("revert").ends(1).says("1 not restored");
    assert_eq!(machine.read("proc/sys/net/core/somaxconn"), "4096");
    assert_eq!(machine.read("ethtool/rx-usecs"), "8");
    fs::remove_file(machine.root.join("refuse")).unwrap();
    machine.run("revert").ends(0).says("1 restored");
    assert_eq!(machine.values(), before);
    assert!(!machine.has_state());
}

#[test]
fn settings_that_vanished_do_not_stop_a_revert() {
    let machine = Machine::new("gone");
    machine.run("apply").ends(0);
    fs::remove_file(machine.root.join("proc/sys/net/core/busy_poll")).unwrap();
    machine.run("revert").ends(0).says("gone: /proc/sys/net/core/busy_poll does not exist");
    assert_eq!(machine.read("proc/sys/net/core/busy_read"), "0");
    assert!(!machine.root.join("proc/sys/net/core/busy_poll").exists());
}

#[test]
fn an_interrupted_apply_can_be_reverted() {
    for (signal, code) in [("TERM", Some(143)), ("KILL", None)] {
        let machine = Machine::new(&format!("signal-{signal}"));
        let before = machine.values();
        machine.write("signal", signal);
        let run = machine.run("apply");
        assert_eq!((run.code, run.signal), (code, code.is_none().then_some(9)), "{}", run.errors);
        assert_eq!(machine.read("proc/sys/net/core/somaxconn"), "65535", "some of it was set");
        assert_eq!(machine.read("ethtool/rx-usecs"), "50", "some of it was not");
        fs::remove_file(machine.root.join("signal")).unwrap();
        machine.run("revert").ends(0);
        assert_eq!(machine.values(), before);
        assert!(!machine.has_state());
    }
}

#[test]
fn an_apply_after_an_interruption_keeps_the_original_values() {
    let machine = Machine::new("goes-on");
    let before = machine.values();
    machine.write("signal", "KILL");
    machine.run("apply");
    fs::remove_file(machine.root.join("signal")).unwrap();
    machine.run("apply").ends(0);
    machine.run("check").ends(0);
    machine.run("revert").ends(0);
    assert_eq!(machine.values(), before);
}

#[test]
fn a_later_apply_extends_the_save_and_overwrites_nothing() {
    let machine = Machine::new("adds");
    let before = machine.values();
    machine.run("apply --only backlog").ends(0);
    machine.write("proc/sys/net/core/somaxconn", "1");
    machine.run("apply --only backlog,latency").ends(0).says("set net.core.somaxconn: 1 -> 65535");
    assert_eq!(machine.read(STATE).matches("somaxconn").count(), 1, "the value from before the first");
    machine.run("revert").ends(0);
    assert_eq!(machine.values(), before);
}

#[test]
fn a_save_from_an_earlier_boot_is_not_restored() {
    let machine = Machine::new("boot");
    machine.run("apply").ends(0);
    // After a reboot, settings have values that the save does not know.
    machine.write("proc/sys/kernel/random/boot_id", "second");
    machine.write("proc/sys/net/core/somaxconn", "2048");
    machine.run("apply").ends(0).says("is from an earlier boot");
    assert!(machine.root.join(format!("{STATE}.earlier-boot")).exists());
    machine.run("revert").ends(0);
    assert!(!machine.root.join("var/lib/tickcast").exists(), "nothing of the tool is left");
    assert_eq!(machine.read("proc/sys/net/core/somaxconn"), "2048");
    machine.run("apply").ends(0);
    machine.write("proc/sys/kernel/random/boot_id", "third");
    machine.write("proc/sys/net/core/somaxconn", "1024");
    machine.run("revert").ends(0).says("is from an earlier boot");
    assert_eq!(machine.read("proc/sys/net/core/somaxconn"), "1024");
    assert!(!machine.has_state());
}

#[test]
fn a_damaged_save_blocks_every_command_and_is_kept() {
    let machine = Machine::new("damaged");
    machine.run("apply").ends(0);
    machine.write("proc/sys/net/core/somaxconn", "1");
    let after = machine.values();
    let good = fs::read_to_string(machine.root.join(STATE)).unwrap();
    let cut = &good[..good.len() / 2];
    let edited = good.replacen("\t4096", "\t4097", 1);
    let other_version = good.replacen("tickcast-tune 1", "tickcast-tune 2", 1);
    for bad in ["", "\n", "nonsense", "\0\0\0", cut, &edited, &other_version] {
        fs::write(machine.root.join(STATE), bad).unwrap();
        for command in ["apply", "revert", "apply --dry-run"] {
            machine.run(command).ends(1).says("is damaged").says("nothing was changed");
            assert_eq!(machine.values(), after);
            assert_eq!(fs::read_to_string(machine.root.join(STATE)).unwrap(), bad);
        }
    }
    machine.run("check").ends(1);
}

#[test]
fn a_save_may_name_only_what_this_tool_sets() {
    let machine = Machine::new("foreign");
    machine.write("proc/sys/kernel/core_pattern", "core");
    fs::create_dir_all(machine.root.join("var/lib/tickcast")).unwrap();
    for target in [
        "/proc/sys/kernel/core_pattern",
        "/etc/passwd",
        "/sys/class/net/../../../etc/queues/rx-0/rps_cpus",
        "ethtool:eth0:-E:rx",
    ] {
        let body = format!("tickcast-tune 1\nboot first\n{target}\tvalue");
        let sum =
            Command::new("sh").args(["-c", "printf '%s\\n' \"$1\" | cksum", "sh", &body]).output().unwrap();
        let sum = String::from_utf8(sum.stdout).unwrap();
        let sum = sum.split(' ').next().unwrap();
        fs::write(machine.root.join(STATE), format!("{body}\nend 1 {sum}\n")).unwrap();
        machine.run("revert").ends(1).says("contains an unknown setting");
    }
    assert_eq!(machine.read("proc/sys/kernel/core_pattern"), "core");
}

#[test]
fn two_runs_at_once_exclude_each_other() {
    let machine = Machine::new("lock");
    machine.run("apply --only backlog").ends(0);
    let before = machine.values();
    let folder = fs::File::open(machine.root.join("var/lib/tickcast")).unwrap();
    folder.lock().unwrap();
    for command in ["apply", "revert"] {
        machine.run(command).ends(1).says("another tickcast-tune is running");
    }
    machine.run("check").ends(1);
    machine.run("apply --dry-run").ends(0);
    assert_eq!(machine.values(), before);
    drop(folder);
    machine.run("revert").ends(0);
}

#[test]
fn nothing_is_changed_when_the_save_cannot_be_written() {
    let machine = Machine::new("unwritable");
    let before = machine.values();
    machine.write("var/lib/tickcast", "a file where the folder belongs");
    machine.run("apply").ends(1).says("cannot be created: nothing was changed");
    fs::remove_file(machine.root.join("var/lib/tickcast")).unwrap();
    // A folder blocks the path of the partial save.
    fs::create_dir_all(machine.root.join(format!("{STATE}.partial"))).unwrap();
    machine.run("apply").ends(1).says("cannot be written: nothing was changed");
    fs::create_dir_all(machine.root.join(STATE)).unwrap();
    machine.run("apply").ends(1).says("is not a regular file owned by this user");
    assert_eq!(machine.values(), before);
}

#[test]
fn a_wrong_command_line_is_answered_with_the_right_one() {
    let machine = Machine::new("misuse");
    for (arguments, answer) in [
        ("", "specify a command: check, apply or revert"),
        ("check apply", "specify one command"),
        ("check --fast", "unknown option --fast"),
        ("apply --json", "--json is valid only with check"),
        ("check eth7", "no network interface eth7; available: dummy0 eth0"),
        ("apply ../../../etc", "no network interface"),
        ("apply aninterfacenamethatistoolong", "no network interface"),
        ("check --role broker", "--role must be server, client or both"),
        ("check --mode all", "--mode must be auto, mq, sq or sq_split"),
        ("check --only disks", "unknown group disks; groups: backlog"),
        ("check --only irq --without irq", "--only and --without exclude every group"),
        ("check --cpus 3-1", "--cpus must be a CPU list such as 0-3,8"),
        ("check --cpus all", "--cpus must be a CPU list such as 0-3,8"),
        ("check --cpus 0-8", "CPU 8 is not online (online: 0-7)"),
        ("check --cpus 0 --mode sq", "leaves no CPU for tickcast (--cpus 0)"),
        ("check --state", "--state requires a value"),
    ] {
        let before = machine.values();
        machine.run(arguments).ends(2).says(answer);
        assert_eq!(machine.values(), before);
        assert!(!machine.has_state());
    }
    machine.run("--help").ends(0).says("Usage: tickcast-tune");
    let mut elsewhere = Command::new(project("tuning/tickcast-tune"));
    Run::of(elsewhere.args(["check", "--root", "/nowhere"]).output().unwrap())
        .ends(2)
        .says("has no proc/sys");
}

#[test]
fn groups_and_roles_select_the_items() {
    let machine = Machine::new("groups");
    let names = |arguments: &str| machine.items(arguments).into_keys().collect::<Vec<_>>();
    assert_eq!(names("--only latency"), ["net.ipv4.tcp_slow_start_after_idle"]);
    assert_eq!(names("--only client"), ["net.ipv4.ip_local_port_range", "net.ipv4.tcp_tw_reuse"]);
    assert!(
        !names("--without busy-poll,thp").iter().any(|name| name.contains("busy") || name.contains("huge"))
    );
    let client = names("--role client");
    assert!(client.iter().any(|name| name.contains("ip_local_port_range")));
    assert!(!client.iter().any(|name| name.contains("somaxconn")));
    assert_eq!(names("--role both").len(), names("").len() + 2);
}

/// CPUs of the four interrupts, and masks of the first receive queue and of the four transmit queues.
fn placement(machine: &Machine, arguments: &str) -> (Vec<String>, String, Vec<String>) {
    let items = machine.items(arguments);
    let wanted = |name: String| items[&name]["wanted"].as_str().unwrap().to_owned();
    let irqs = (0..4).map(|queue| wanted(format!("irq eth0 {} eth0-TxRx-{queue}", 40 + queue))).collect();
    let xps = (0..4).map(|queue| wanted(format!("xps eth0 tx-{queue}"))).collect();
    (irqs, wanted("rps eth0 rx-0".to_owned()), xps)
}

#[test]
fn the_mode_places_interrupts_and_packets() {
    let machine = Machine::new("modes");
    // With eight CPUs in four cores and four queues, the first CPU handles interrupts only.
    let sq = placement(&machine, "--mode sq");
    assert_eq!(sq.0, ["0", "0", "0", "0"]);
    assert_eq!(sq.1, "fe");
    assert_eq!(sq.2, ["11", "22", "44", "88"]);
    assert_eq!(placement(&machine, ""), sq);
    machine.run("check --mode sq").says("start tickcast with --cores 1,2,3,4,5,6,7");

    let split = placement(&machine, "--mode sq_split");
    assert_eq!((split.0, split.1.as_str()), (["0", "4", "0", "4"].map(str::to_owned).to_vec(), "ee"));

    let mq = placement(&machine, "--mode mq");
    assert_eq!((mq.0, mq.1.as_str()), (["0", "1", "2", "3"].map(str::to_owned).to_vec(), "ff"));

    // With a queue per CPU, packets need no steering.
    let (irqs, rps, xps) = placement(&machine, "--cpus 0-3");
    assert_eq!((irqs, rps.as_str()), (["0", "1", "2", "3"].map(str::to_owned).to_vec(), "0"));
    assert_eq!(xps, ["1", "2", "4", "8"]);
    assert!(!machine.items("--cpus 0-3").contains_key("rfs eth0 rx-0"));
    machine.run("check --cpus 5 --only rps").ends(0).says("only one CPU: packets cannot be steered");
}

#[test]
fn more_than_32_cpus_are_a_mask_in_groups() {
    let machine = Machine::new("many");
    machine.write("sys/devices/system/cpu/online", "0-71");
    let (_, rps, xps) = placement(&machine, "--mode mq");
    assert_eq!(rps, "ff,ffffffff,ffffffff");
    assert_eq!(xps[0], "11,11111111,11111111");
    // Leading zeros, which the kernel prints, make no difference.
    machine.write("sys/class/net/eth0/queues/rx-0/rps_cpus", "00000000,000000ff,ffffffff,ffffffff");
    let items = machine.items("--mode mq");
    assert_eq!(items["rps eth0 rx-0"]["state"], "enabled");
    assert_eq!(items["rps eth0 rx-1"]["state"], "supported");
}

#[test]
fn virtio_irqbalance_and_bonds_are_recognised() {
    let machine = Machine::new("virtio");
    let device = machine.root.join("sys/class/net/eth0/device");
    fs::remove_file(&device).unwrap();
    machine.write("sys/devices/nic/virtio2/modalias", "virtio:d00000001v00001AF4");
    symlink("../../../devices/nic/virtio2", &device).unwrap();
    machine.write(
        "proc/interrupts",
        "  CPU0\n 39: 1 x virtio2-config\n 40: 1 x virtio2-input.0\n 41: 1 x virtio2-output.0\n 42: 1 x virtio2-input.1\n 43: 1 x virtio2-output.1",
    );
    let items = machine.items("--mode mq --only irq");
    let wanted = |name: &str| items[name]["wanted"].as_str().unwrap().to_owned();
    assert_eq!(items.len(), 4, "{:?}", items.keys());
    assert_eq!(wanted("irq eth0 40 virtio2-input.0"), "0");
    assert_eq!(wanted("irq eth0 41 virtio2-output.0"), "0");
    assert_eq!(wanted("irq eth0 43 virtio2-output.1"), "1");

    machine.write("proc/17/comm", "irqbalance");
    machine.run("check --only irq").says("unsupported irqbalance: now -, wanted not running");
    machine.write("sys/class/net/bond0/bonding/slaves", "eth0");
    assert!(machine.items("--only irq bond0").contains_key("irq eth0 40 virtio2-input.0"));
}

/// Runs a shell script in a network namespace of its own; `$1` is the tool, `$2` a file for the save.
fn in_namespace(folder: &Machine, script: &str) -> Run {
    // Machine-wide settings are not visible in a namespace. If they are, stop before anything is changed.
    let alone = "[ ! -e /proc/sys/net/core/netdev_max_backlog ]\nmount -t sysfs sysfs /sys";
    let output = Command::new("unshare")
        .args(["-n", "-m", "sh", "-c", &format!("set -eu\n{alone}\n{script}"), "sh"])
        .arg(project("tuning/tickcast-tune"))
        .arg(folder.root.join("saved"))
        .output();
    Run::of(output.unwrap())
}

#[test]
#[ignore = "needs root and a network namespace (unshare -n -m)"]
fn network_settings_of_a_namespace_are_set_and_restored() {
    let folder = Machine::bare("namespace");
    let outside = || fs::read_to_string("/proc/sys/net/ipv4/tcp_notsent_lowat").unwrap();
    let before = outside();
    // Only groups that a namespace has for itself; machine-wide settings are not available in it.
    let script = r#"
        all() { sysctl net.core.somaxconn net.ipv4 2>/dev/null | sort; }
        tune() { "$1" "$2" --only backlog,memory,latency,client --state "$3"; }
        before=$(all)
        tune "$1" apply "$2"
        sysctl -n net.core.somaxconn net.ipv4.tcp_slow_start_after_idle net.ipv4.ip_local_port_range
        tune "$1" check "$2" >/dev/null && echo all enabled
        tune "$1" apply "$2" | grep -F '0 set'
        tune "$1" revert "$2" >/dev/null
        [ "$(all)" = "$before" ] && echo ended where it started
        [ ! -e "$2" ] && echo no save left
    "#;
    in_namespace(&folder, script)
        .ends(0)
        .says("set net.core.somaxconn: ")
        .says("\n65535\n0\n10240\t65535\n")
        .says("all enabled")
        .says("ended where it started")
        .says("no save left");
    assert_eq!(outside(), before);
}

#[test]
#[ignore = "needs root and a network namespace (unshare -n -m)"]
fn queues_of_a_real_interface_are_set_and_restored() {
    let folder = Machine::bare("veth");
    let script = r#"
        ip link add tuned numrxqueues 1 numtxqueues 2 type veth peer name other
        all() { cat /sys/class/net/tuned/queues/*/?ps_cpus /sys/class/net/tuned/queues/*/rps_flow_cnt; }
        tune() { "$1" "$2" --only irq,rps,xps --mode mq --state "$3" tuned; }
        before=$(all)
        tune "$1" apply "$2"
        tune "$1" check "$2" >/dev/null && echo all enabled
        [ "$(all)" != "$before" ] && echo something was set
        tune "$1" revert "$2"
        [ "$(all)" = "$before" ] && echo ended where it started
    "#;
    in_namespace(&folder, script)
        .ends(0)
        .says("tuned has no interrupts of its own")
        .says("set xps tuned tx-0: ")
        .says("all enabled")
        .says("something was set")
        .says("ended where it started");
}

#[test]
fn shellcheck_accepts_the_scripts() {
    let output = Command::new("shellcheck").arg("-x").arg(project("tuning/tickcast-tune")).output();
    Run::of(output.expect("shellcheck: scripts/test.sh installs it")).ends(0);
}

#[test]
fn every_sysctl_has_its_reason() {
    let files = fs::read_dir(project("tuning")).unwrap().map(|entry| entry.unwrap().path());
    for path in files.filter(|path| path.extension().is_some_and(|is| is == "conf")) {
        let text = fs::read_to_string(&path).unwrap();
        let mut explained = false;
        for line in text.lines() {
            let is_setting = !line.starts_with('#') && !line.is_empty();
            assert!(!is_setting || explained, "{}: {line} has no reason", path.display());
            explained = line.starts_with('#');
        }
    }
}
