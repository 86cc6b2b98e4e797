//! Checks rules that the compiler does not: which module may use what, and what the source must not contain.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Maximum lines of a file. Split a longer one, unless it is generated. The files of `tests/` are exempt: a table of golden bytes and
/// the simulated world are easier to follow as a whole.
const FILE_LINES_MAX: usize = 600;
/// Files that may contain `unsafe`, each with its SAFETY comments.
const UNSAFE_FILES: [&str; 9] = [
    "src/server/main.rs",
    "src/proto/records.rs",
    "src/server/process/activation.rs",
    "src/server/process/cores.rs",
    "src/sources/kafka/headers.rs",
    "src/sources/kafka/native.rs",
    "src/server/transport/uring/data_ring.rs",
    "src/server/transport/uring/data_ring/completion.rs",
    "src/server/transport/uring/buffer_ring.rs",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if !["target", "node_modules", ".git", ".venv"].iter().any(|skipped| name == *skipped) {
                files_below(&path, extension, found);
            }
        } else if path.extension().is_some_and(|has| has == extension) {
            found.push(path);
        }
    }
}

/// Every Rust file with its path from the root and its text.
fn sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for folder in ["src", "bench", "tests"] {
        files_below(&root().join(folder), "rs", &mut files);
    }
    assert!(files.len() > 20, "the sources are where they are expected");
    let relative = |path: &PathBuf| path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
    files.iter().map(|path| (relative(path), fs::read_to_string(path).unwrap())).collect()
}

/// Code without comments; strings stay.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(at, line)| (at + 1, line))
}

/// The part of a file before its tests.
fn before_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

fn refuse(why: &str, is_broken: impl Fn(&str, &str) -> bool) {
    let mut broken = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| path != "tests/tidy.rs") {
        let checked = if path.starts_with("tests/") { text } else { before_tests(text) };
        broken.extend(
            code(checked)
                .filter(|(_, line)| is_broken(path, line))
                .map(|(at, line)| format!("{path}:{at}: {line}")),
        );
    }
    assert!(broken.is_empty(), "{why}\n{}", broken.join("\n"));
}

#[test]
fn only_the_transport_knows_the_executor_and_the_ring() {
    refuse("only the transport names glommio and io_uring", |path, line| {
        path.starts_with("src/server/")
            && !path.starts_with("src/server/transport")
            && (line.contains("glommio::") || line.contains("io_uring::"))
    });
}

#[test]
fn shards_are_pinned_without_sysfs() {
    // Every placement but this one reads /sys, and glommio panics where there is none.
    refuse("executors are unbound; process/cores.rs pins their threads", |path, line| {
        path.starts_with("src/") && line.contains("Placement::") && !line.contains("Placement::Unbound")
    });
}

#[test]
fn only_the_admin_listener_sources_and_the_asynchronous_client_know_their_runtime() {
    let own = [
        "src/server/operator/admin",
        "src/sources/",
        "src/client/asynchronous",
        "src/client/examples/service",
    ];
    refuse(
        "only the admin listener, sources and the asynchronous client name tokio and hyper",
        |path, line| {
            let knows = ["tokio::", "hyper::", "hyper_util::", "http_body_util::"];
            path.starts_with("src/")
                && !own.iter().any(|own| path.starts_with(own))
                && knows.iter().any(|name| line.contains(name))
        },
    );
}

#[test]
fn only_tickcast_top_and_fetchers_of_keys_and_tokens_ask_other_servers() {
    refuse("only tickcast top names ratatui, and with the fetchers of keys and tokens ureq", |path, line| {
        let is_top = path.starts_with("src/server/operator/top");
        let is_fetcher = ["src/server/auth/fetcher.rs", "src/sources/websocket/token.rs"].contains(&path);
        path.starts_with("src/")
            && (line.contains("ureq::") && !is_top && !is_fetcher || line.contains("ratatui::") && !is_top)
    });
}

#[test]
fn only_authentication_knows_its_cryptography() {
    refuse("only src/server/auth and TLS name ring", |path, line| {
        path.starts_with("src/")
            && !["src/server/auth/", "src/tls", "src/server/transport/tls"]
                .iter()
                .any(|own| path.starts_with(own))
            && (line.contains("ring::hmac")
                || line.contains("ring::signature")
                || line.contains("jsonwebtoken::"))
    });
}

#[test]
fn state_machines_know_no_socket() {
    refuse("proto, core, ecg and tls name no socket", |path, line| {
        let knows = ["TcpStream", "TcpListener", "UdpSocket", "OwnedFd"];
        ["src/proto/", "src/core/", "src/ecg/", "src/tls/"].iter().any(|pure| path.starts_with(pure))
            && knows.iter().any(|name| line.contains(name))
    });
}

#[test]
fn only_the_clocks_read_time() {
    refuse("only the two clocks read time", |path, line| {
        let reads = ["Instant::now", "SystemTime", "clock_gettime", "thread::sleep"];
        // Tests may wait for the processes they start. The peers of the benchmarks are programs of their own.
        !path.starts_with("tests/")
            && !path.starts_with("bench/peers/")
            && !["src/common/clock.rs", "src/client/clock.rs"].contains(&path)
            && reads.iter().any(|name| line.contains(name))
    });
}

#[test]
fn unsafe_stands_in_few_files() {
    let is_unsafe =
        |line: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
    refuse("unsafe is for the files that the house style names", |path, line| {
        path.starts_with("src/") && !UNSAFE_FILES.contains(&path) && is_unsafe(line)
    });
}

#[test]
fn nothing_unwraps_what_can_fail() {
    refuse("no unwrap and no expect outside tests", |path, line| {
        !path.starts_with("tests/")
            && !path.ends_with("tests.rs")
            && !path.ends_with("scripted_server.rs")
            && path != "src/tls/testing.rs"
            && !path.ends_with("models.rs")
            && (line.contains(".unwrap()") || line.contains(".expect("))
    });
}

#[test]
fn files_are_short_enough_to_be_read() {
    let long: Vec<String> = sources()
        .iter()
        .filter(|(path, text)| !path.starts_with("tests/") && !text.contains("@generated"))
        .filter(|(_, text)| text.lines().count() > FILE_LINES_MAX)
        .map(|(path, text)| format!("{path}: {} lines", text.lines().count()))
        .collect();
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn no_registry_or_machine_is_named() {
    // In parts, so that this file does not name them either.
    let hosts = [
        ["crates", ".io"],
        ["registry.npm", "js.org"],
        ["py", "pi.org"],
        ["deb.", "debian.org"],
        ["/wo", "rk/"],
    ];
    let mut files = Vec::new();
    for extension in ["rs", "md", "toml", "sh", "json", "mjs", "py", "txt"] {
        files_below(root(), extension, &mut files);
    }
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        for host in hosts.iter().map(|parts| parts.concat()) {
            assert!(!text.contains(&host), "{} names {host}", path.display());
        }
    }
}

#[test]
fn every_module_says_what_it_is() {
    for (path, text) in sources().iter().filter(|(path, _)| !path.ends_with("tests.rs")) {
        assert!(text.starts_with("//!"), "{path} begins with a module doc");
    }
}

#[test]
fn the_test_script_names_every_ignored_test() {
    let script = fs::read_to_string(root().join("scripts/test.sh")).unwrap();
    let words: Vec<&str> = script
        .split(|c: char| !c.is_alphanumeric() && c != '_' && c != '*')
        .filter(|word| *word != "*")
        .collect();
    // A name, or the beginning of some with an asterisk.
    let is_named = |name: &str| {
        words.iter().any(|word| match word.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == *word,
        })
    };
    let ignored = ["#[ig", "nore"].concat();
    let mut names = Vec::new();
    for (_, text) in sources() {
        let after = text.split(&ignored).skip(1).filter_map(|after| after.split_once("fn "));
        names.extend(after.filter_map(|(_, after)| after.split('(').next()).map(str::to_owned));
    }
    assert!(names.len() > 10, "{names:?}");
    names.retain(|name| !is_named(name));
    assert!(names.is_empty(), "{names:?}");
}

#[test]
fn the_docs_name_every_option_that_changes_live() {
    let docs = fs::read_to_string(root().join("docs/OPERATIONS.md")).unwrap();
    let table = docs.split_once("| live option |").expect("a table of them").1;
    let table = table.split("\n\n").next().unwrap_or_default();
    // The names are in backquotes in the first column.
    let first: Vec<&str> = table.lines().skip(2).filter_map(|row| row.split('|').nth(1)).collect();
    let mut named: Vec<String> =
        first.iter().flat_map(|names| names.split('`').skip(1).step_by(2)).map(str::to_owned).collect();
    let mut live: Vec<String> =
        tickcast::config::reload::LIVE.iter().map(|name| name.replace('-', "_")).collect();
    named.sort_unstable();
    live.sort_unstable();
    assert_eq!(named, live);
}
