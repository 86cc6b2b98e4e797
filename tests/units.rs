//! The systemd units and the scripts that install and remove them, below a folder of their own: no unit is started, and
//! nothing is written outside that folder.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The installed units.
const UNITS: [&str; 4] =
    ["tickcast.service", "tickcast.socket", "tickcast-http.socket", "tickcast-tune.service"];
/// Highest exposure that `systemd-analyze security` may give the server, times ten: 1.5 of 10.
const EXPOSURE_MAX: &str = "--threshold=15";

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs a tool that `scripts/test.sh` installs.
fn run(tool: &mut Command) -> Output {
    tool.output().unwrap_or_else(|error| panic!("{tool:?}: {error}: scripts/test.sh installs it"))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A folder to install into, and wrapper scripts that call the built binaries.
struct Target {
    folder: PathBuf,
}

impl Target {
    fn new(name: &str) -> Target {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("units-{name}"));
        if folder.exists() {
            fs::remove_dir_all(&folder).unwrap();
        }
        for (program, built) in [
            ("tickcast", env!("CARGO_BIN_EXE_tickcast")),
            ("tickcast-c10k", env!("CARGO_BIN_EXE_tickcast-c10k")),
        ] {
            let path = folder.join("built").join(program);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            // install.sh runs the programs for their man pages and completions.
            fs::write(&path, format!("#!/bin/sh\nexec '{built}' \"$@\"\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::create_dir_all(folder.join("root")).unwrap();
        Target { folder }
    }

    fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    fn script(&self, name: &str, arguments: &[&str]) -> Output {
        Command::new(project("scripts").join(name))
            .args(arguments)
            .env("DESTDIR", self.root())
            .env_remove("PREFIX")
            .output()
            .unwrap()
    }

    #[track_caller]
    fn install(&self) {
        let built = self.folder.join("built");
        let output = self.script("install.sh", &["--from", built.to_str().unwrap()]);
        assert!(output.status.success(), "{}", said(&output));
    }

    #[track_caller]
    fn uninstall(&self, arguments: &[&str]) {
        let output = self.script("uninstall.sh", arguments);
        assert!(output.status.success(), "{}", said(&output));
    }

    /// Path and content of every file below the root.
    fn files(&self) -> Vec<(String, Vec<u8>)> {
        fn collect(folder: &Path, root: &Path, files: &mut Vec<(String, Vec<u8>)>) {
            for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let path = entry.path();
                if path.is_dir() {
                    collect(&path, root, files);
                } else {
                    let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                    files.push((name, fs::read(&path).unwrap()));
                }
            }
        }
        let mut files = Vec::new();
        collect(&self.root(), &self.root(), &mut files);
        files.sort();
        files
    }

    /// Copies of the installed units for `systemd-analyze`, with paths below the root.
    fn units(&self) -> [PathBuf; 4] {
        UNITS.map(|name| {
            let text = fs::read_to_string(self.root().join("etc/systemd/system").join(name)).unwrap();
            let path = self.folder.join(name);
            let usr = format!("{}/usr/local/", self.root().display());
            fs::write(&path, text.replace("/usr/local/", &usr)).unwrap();
            path
        })
    }
}

#[test]
fn everything_is_installed_where_the_units_expect_it() {
    let target = Target::new("install");
    target.install();
    let names: Vec<_> = target.files().into_iter().map(|(name, _)| name).collect();
    for name in [
        "usr/local/bin/tickcast",
        "usr/local/bin/tickcast-c10k",
        "usr/local/sbin/tickcast-tune",
        "usr/local/lib/tickcast/tuning/60-tickcast-backlog.conf",
        "usr/local/lib/tickcast/tuning/README.md",
        "usr/local/lib/tickcast/monitoring/tickcast-dashboard.json",
        "usr/local/lib/tickcast/monitoring/tickcast-alerts.yml",
        "usr/local/share/man/man1/tickcast.1.gz",
        "usr/local/share/man/man1/tickcast-check.1.gz",
        "usr/local/share/man/man1/tickcast-c10k.1.gz",
        "usr/local/share/man/man8/tickcast-tune.8.gz",
        "usr/local/share/bash-completion/completions/tickcast",
        "usr/local/share/zsh/site-functions/_tickcast",
        "usr/local/share/fish/vendor_completions.d/tickcast.fish",
        "etc/systemd/system/tickcast.service",
        "etc/systemd/system/tickcast.socket",
        "etc/systemd/system/tickcast-http.socket",
        "etc/systemd/system/tickcast-tune.service",
        "etc/default/tickcast-tune",
        "etc/tickcast/tickcast.toml",
    ] {
        assert!(names.iter().any(|has| has == name), "{name} in {names:?}");
    }
    let text = |name: &str| fs::read_to_string(target.root().join(name)).unwrap();
    assert!(
        text("etc/systemd/system/tickcast.service")
            .contains("\nExecStart=/usr/local/bin/tickcast serve --config /etc/tickcast/tickcast.toml\n")
    );
    assert!(text("usr/local/share/bash-completion/completions/tickcast").contains("--drain-deadline"));
    assert!(
        text("etc/systemd/system/tickcast-tune.service").contains("=/usr/local/sbin/tickcast-tune apply")
    );
    // The tool finds its sysctl files through the link. It checks a fake machine with one setting.
    let knob = target.folder.join("machine/proc/sys/net/core/somaxconn");
    fs::create_dir_all(knob.parent().unwrap()).unwrap();
    fs::write(&knob, "128\n").unwrap();
    let check = Command::new(target.root().join("usr/local/sbin/tickcast-tune"))
        .args(["check", "--only", "backlog", "--root"])
        .arg(target.folder.join("machine"))
        .output()
        .unwrap();
    assert_eq!(check.status.code(), Some(1), "{}", said(&check));
    assert!(said(&check).contains("supported   net.core.somaxconn: now 128"), "{}", said(&check));
}

#[test]
fn installing_again_changes_nothing_and_keeps_configuration() {
    let target = Target::new("again");
    target.install();
    let options = target.root().join("etc/default/tickcast-tune");
    fs::write(&options, "TUNE=--mode sq\n").unwrap();
    fs::write(target.root().join("etc/tickcast/tickcast.toml"), "shards = 1\n").unwrap();
    let before = target.files();
    target.install();
    assert_eq!(target.files(), before);
}

#[test]
fn uninstall_keeps_the_configuration_and_purge_removes_it() {
    let target = Target::new("uninstall");
    let others = ["usr/local/bin/other", "usr/local/share/man/man1/tick.1.gz"];
    for other in others {
        let path = target.root().join(other);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "not ours").unwrap();
    }
    let names = || target.files().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    target.install();
    fs::write(target.root().join("etc/tickcast/mine.toml"), "").unwrap();
    // A save that the tool kept from an earlier boot.
    let saved = "var/lib/tickcast/tune.saved.earlier-boot";
    fs::create_dir_all(target.root().join("var/lib/tickcast")).unwrap();
    fs::write(target.root().join(saved), "").unwrap();
    for _ in 0..2 {
        target.uninstall(&[]);
        let kept = ["etc/default/tickcast-tune", "etc/tickcast/mine.toml", "etc/tickcast/tickcast.toml"];
        assert_eq!(names(), [&kept[..], &others, &[saved]].concat());
    }
    for _ in 0..2 {
        target.uninstall(&["--purge"]);
        assert_eq!(names(), others);
        assert!(!target.root().join("etc/tickcast").exists());
        assert!(!target.root().join("var/lib/tickcast").exists());
        assert!(!target.root().join("usr/local/lib/tickcast").exists());
    }
}

#[test]
fn a_failed_installation_names_the_remedy_and_writes_nothing() {
    let target = Target::new("wrong");
    let file = target.folder.join("built/tickcast");
    for (script, arguments, answer) in [
        ("install.sh", &["--from", "/nowhere"][..], "/nowhere/tickcast not found: run cargo build --release"),
        ("install.sh", &["--from"], "--from requires a folder"),
        ("install.sh", &["--quick"], "unknown option --quick"),
        ("uninstall.sh", &["--all"], "unknown option --all"),
        ("package.sh", &["--quick"], "unknown option --quick"),
        ("package.sh", &["--profile", "fast"], "--profile must be release or dev"),
        ("try-package.sh", &["--quick"], "unknown option --quick"),
        ("walk-through.sh", &["--quick"], "unknown option --quick"),
        ("walk-through.sh", &["--out"], "--out requires a folder"),
        ("walk-through.sh", &["--out", target.folder.to_str().unwrap()], "must be a new or empty directory"),
        ("walk-through.sh", &["--out", file.to_str().unwrap()], "must be a new or empty directory"),
    ] {
        let output = target.script(script, arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains(answer), "{}", said(&output));
    }
    for (variable, value) in [("PREFIX", "usr"), ("PREFIX", "/usr/$HOME"), ("DESTDIR", "here")] {
        for script in ["install.sh", "uninstall.sh"] {
            let mut command = Command::new(project("scripts").join(script));
            command.env("DESTDIR", target.root()).env(variable, value);
            let output = command.output().unwrap();
            assert_eq!(output.status.code(), Some(1));
            assert!(
                said(&output).contains(&format!("{variable} must be an absolute path")),
                "{}",
                said(&output)
            );
        }
    }
    assert!(target.files().is_empty() && file.is_file());
}

#[test]
fn systemd_accepts_the_units() {
    let target = Target::new("verify");
    target.install();
    let output = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).args(target.units()));
    assert!(output.status.success() && said(&output).is_empty(), "{}", said(&output));
}

#[test]
fn the_server_unit_is_sandboxed() {
    let target = Target::new("security");
    target.install();
    let [server, ..] = target.units();
    let options = ["security", "--offline=yes", "--no-pager", EXPOSURE_MAX];
    let output = run(Command::new("systemd-analyze").args(options).arg(server));
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn the_server_may_pin_its_threads_and_use_io_uring() {
    let unit = fs::read_to_string(project("systemd/tickcast.service")).unwrap();
    let filters: Vec<_> = unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")).collect();
    // @system-service has io_uring in @aio. The order matters: the last match wins.
    assert_eq!(filters, ["@system-service", "~@privileged @resources", "sched_setaffinity setpriority"]);
    assert!(unit.contains("\nLimitMEMLOCK=infinity\n") && unit.contains("\nLimitNOFILE=1048576\n"));
}

#[test]
fn the_server_unit_uses_notify_reload_and_watchdog() {
    let unit = fs::read_to_string(project("systemd/tickcast.service")).unwrap();
    for line in [
        "Type=notify",
        "NotifyAccess=main",
        "WatchdogSec=10",
        "Restart=on-failure",
        "RestartPreventExitStatus=2",
        "ExecReload=kill -HUP $MAINPID",
    ] {
        assert!(unit.lines().any(|has| has == line), "{line}");
    }
}

#[test]
fn the_configuration_of_the_containers_is_valid() {
    let file = project("systemd/container/tickcast.toml");
    let checked = Command::new(env!("CARGO_BIN_EXE_tickcast"))
        .args(["serve", "--check-config", "--config"])
        .arg(file)
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let compose = fs::read_to_string(project("systemd/container/compose.yaml")).unwrap();
    for part in ["seccomp=seccomp.json", "cpuset:", "memlock: -1", "stop_grace_period: 20s"] {
        assert!(compose.contains(part), "{part}");
    }
}

#[test]
fn the_socket_units_match_the_configuration_and_the_servers_names() {
    let configuration = fs::read_to_string(project("systemd/tickcast.toml")).unwrap();
    for (unit, name) in [("tickcast.socket", "tcp"), ("tickcast-http.socket", "http")] {
        let unit = fs::read_to_string(project("systemd").join(unit)).unwrap();
        let address = unit.lines().find_map(|line| line.strip_prefix("ListenStream=")).unwrap();
        let kind = if name == "tcp" { "native" } else { name };
        let listener = configuration.split("\n[[listener]]\n").find(|table| {
            table
                .lines()
                .any(|line| line.split_whitespace().take(3).eq(["kind", "=", &format!("\"{kind}\"")]))
        });
        let listener = listener.expect("a listener of this kind");
        assert!(listener.contains(&format!("\naddress = \"{address}\"\n")), "{address} in {listener}");
        assert!(unit.contains(&format!("\nFileDescriptorName={name}\n")));
    }
}

/// The words of a text that start with `--`, without trailing punctuation.
fn options(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let mut options: Vec<_> = words.filter(|word| word.starts_with("--") && word.len() > 2).collect();
    options.sort_unstable();
    options.dedup();
    options
}

#[test]
fn the_man_page_of_the_tool_has_every_option_of_its_help_and_no_other() {
    let help = Command::new(project("tuning/tickcast-tune")).arg("--help").output().unwrap();
    assert!(help.status.success(), "{}", said(&help));
    let page = fs::read_to_string(project("tuning/tickcast-tune.8")).unwrap().replace("\\-", "-");
    // The first line is a comment for authors.
    let page = page.split_once('\n').unwrap().1;
    assert_eq!(options(page), options(&said(&help)));
}

#[test]
fn shellcheck_accepts_the_scripts() {
    // All scripts except those of tuning/, which its own tests check.
    let files = |folder: &str| fs::read_dir(project(folder)).unwrap().map(|entry| entry.unwrap().path());
    let scripts: Vec<_> =
        files("scripts").filter(|path| path.extension().is_some_and(|end| end == "sh")).collect();
    let maintainer: Vec<_> = files("systemd/debian").filter(|path| !path.ends_with("copyright")).collect();
    assert!(scripts.len() >= 12 && maintainer.len() >= 3, "{scripts:?} {maintainer:?}");
    let output = run(Command::new("shellcheck").arg("-x").args(scripts).args(maintainer));
    assert!(output.status.success(), "{}", said(&output));
}
