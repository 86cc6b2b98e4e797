use std::{env, fs, os::unix::fs::PermissionsExt, path::Path, process};

use super::{item::ItemState, table::*, *};
use crate::cli::HELP_WIDTH;

/// A temporary folder that only its owner may write to; removed when dropped.
pub(super) struct TestFolder(pub(super) PathBuf);

impl TestFolder {
    pub(super) fn new(name: &str) -> TestFolder {
        let folder = env::temp_dir().join(format!("tickcast-{}-{name}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        TestFolder(folder)
    }

    /// Creates a file with this mode, in folders that only their owner may write to.
    pub(super) fn program(&self, path: &str, mode: u32) -> PathBuf {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        for folder in path.ancestors().skip(1).take_while(|folder| folder.starts_with(&self.0)) {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }
}

impl Drop for TestFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn item(name: &str, required: bool, state: ItemState, now: Option<&str>) -> CheckItem {
    CheckItem {
        name: name.to_owned(),
        required,
        state,
        now: now.map(str::to_owned),
        wanted: "at least 7".to_owned(),
        reason: format!("Why {name}."),
    }
}

fn items() -> Vec<CheckItem> {
    vec![
        item("kernel", true, ItemState::Enabled, Some("6.18")),
        item("net.core.somaxconn", false, ItemState::Supported, Some("4096")),
        item("governor", false, ItemState::Unsupported, None),
    ]
}

#[test]
fn columns_stand_under_each_other() {
    assert_eq!(
        table(&items()),
        "\
REQUIRED            STATE        NOW   WANTED
kernel              enabled      6.18  at least 7
    Why kernel.
RECOMMENDED         STATE        NOW   WANTED
net.core.somaxconn  supported    4096  at least 7
    Why net.core.somaxconn.
governor            unsupported  -     at least 7
    Why governor.
"
    );
    assert_eq!(table(&[]), "");
}

#[test]
fn a_table_fits_100_columns() {
    let mut long = item(&"name".repeat(20), false, ItemState::Supported, Some(&"4096 16384 ".repeat(9)));
    long.wanted = "never or defer or defer+madvise or ".repeat(3);
    long.reason = "A reason is wrapped between its words. ".repeat(9) + &"x".repeat(300);
    let text = table(&[items(), vec![long.clone()]].concat());
    assert!(text.lines().all(|line| line.chars().count() <= HELP_WIDTH), "{text}");
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>().concat();
    assert!(words(&text).contains(&words(&long.reason)), "nothing is lost: {text}");
}

#[test]
fn control_characters_of_a_tool_do_not_reach_the_terminal() {
    let wild = CheckItem {
        reason: "\u{1b}[31mred\nline\u{9b}x".to_owned(),
        ..item("a\tb", false, ItemState::Enabled, None)
    };
    let text = table(&[wild]);
    assert_eq!(text.lines().count(), 3);
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
}

#[test]
fn the_summary_names_what_is_missing_and_counts_settings_worth_changing() {
    let tool = Path::new("/usr/sbin/tickcast-tune");
    // Optional items of our own are not settings that the tool can change.
    let own =
        [item("kernel", true, ItemState::Enabled, None), item("clients", false, ItemState::Supported, None)];
    let good = summary(&own, &items(), Some(tool));
    assert!(
        good.starts_with(
            "this machine meets all requirements of tickcast serve\n1 setting is worth changing"
        ),
        "{good}"
    );
    assert!(good.contains("/usr/sbin/tickcast-tune apply --dry-run"), "{good}");
    assert_eq!(summary(&own, &[], None), "this machine meets all requirements of tickcast serve\n");

    let own = [
        item("io_uring", true, ItemState::Supported, None),
        item("cores", true, ItemState::Unsupported, None),
        own[0].clone(),
    ];
    assert_eq!(
        summary(&own, &items(), None),
        "tickcast serve cannot run on this machine; missing: io_uring, cores\n"
    );
    assert_eq!(own.iter().filter(|item| item.is_missing()).count(), 2);
}

#[test]
fn json_is_one_object_per_line() {
    let text = json(&items());
    let first = text.lines().next().unwrap();
    assert_eq!(
        first,
        r#"{"name":"kernel","required":true,"state":"enabled","now":"6.18","wanted":"at least 7","reason":"Why kernel."}"#
    );
    assert!(text.lines().nth(2).unwrap().contains(r#""state":"unsupported","now":null"#));
    assert_eq!(text.lines().count(), 3);
}
