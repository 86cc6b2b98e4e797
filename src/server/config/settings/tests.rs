use super::*;
use crate::config::Config;
use tickcast_core::shard::ClientAddress;

/// The settings from a file with this text and a command line with these words.
fn settings_of(name: &str, text: &str, words: &str) -> Settings {
    let path = std::env::temp_dir().join(format!("tickcast-{}-{name}.toml", std::process::id()));
    std::fs::write(&path, text).unwrap();
    let typed = format!("tickcast serve --config {} {words}", path.display());
    let words: Vec<OsString> = typed.split_whitespace().map(OsString::from).collect();
    let settings = Settings::read(&words).unwrap();
    std::fs::remove_file(&path).unwrap();
    settings
}

/// All errors in a file, one per line.
fn errors_of(name: &str, text: &str) -> Vec<String> {
    let settings = settings_of(name, text, "");
    match Config::new(&settings, None) {
        Ok(_) => Vec::new(),
        Err(error) => error.to_string().lines().map(str::to_owned).collect(),
    }
}

/// Pairs of file texts with the same meaning: the keys of 0.1, and the present ones.
const OLD_AND_NEW: [(&str, &str); 8] = [
    (
        "behind_ms = 7\noutbox_bytes_max = 4194304",
        "[limits]\noutbox_max = \"4MiB\"\n[delivery]\nbehind_time = \"7ms\"",
    ),
    ("latency_budget_us = 1000\nspin_us = \"20\"", "[server]\nlatency_budget = \"1ms\"\nspin = \"20us\""),
    ("shards = \"1\"\ncores = 0", "[server]\nshards = 1\ncores = \"0\""),
    ("no_sim = true", "source = []"),
    ("sim_rate = 7\nsim_size = 200", "[[source]]\nkind = \"simulator\"\nrate = 7\nsize = \"200B\""),
    (
        "replay = \"Cargo.toml\"\nspeed = \"2.0\"\nloop = true\nreplay_bad_lines = \"skip\"",
        "[[source]]\nkind = \"replay\"\nfile = \"Cargo.toml\"\nspeed = 2.0\nloop = true\nbad_lines = \"skip\"",
    ),
    (
        "no_sim = true\necg = \"synthetic\"\necg_bpm = 60.0",
        "[[source]]\nkind = \"ecg\"\nrecord = \"synthetic\"\nbpm = 60",
    ),
    (
        "tcp = \"127.0.0.1:1\"\nno_admin = true",
        "[[listener]]\nkind = \"native\"\naddress = \"127.0.0.1:1\"\n[[listener]]\nkind = \"http\"\naddress = \"127.0.0.1:9480\"",
    ),
];

#[test]
fn command_line_then_file_then_defaults() {
    let text = "[delivery]\nbehind_time = \"7ms\"\npolicy = [\"a.>=drop\", \"conflate\"]\n[timeouts]\nping_timeout = \"70s\"\n";
    let tables = settings_of("order", text, "--behind-time 9ms").tables;
    assert_eq!(
        (tables.delivery.behind_time.ns, tables.timeouts.ping_timeout.ns),
        (9_000_000, 70_000_000_000)
    );
    assert_eq!(tables.delivery.policy, ["a.>=drop", "conflate"]);
    assert_eq!(tables.delivery.stall_deadline.to_string(), "30s");
    let tables = settings_of("list", text, "--policy drop").tables;
    assert_eq!(tables.delivery.policy, ["drop"], "a list on the command line replaces the file's");
}

#[test]
fn keys_of_0_1_mean_what_they_meant_and_each_has_a_warning_with_its_new_place() {
    for (at, (old, new)) in OLD_AND_NEW.into_iter().enumerate() {
        let (was, is) =
            (settings_of(&format!("old{at}"), old, ""), settings_of(&format!("new{at}"), new, ""));
        assert!(was.problems.is_empty() && is.problems.is_empty(), "{:?} {:?}", was.problems, is.problems);
        assert_eq!(was.tree, is.tree, "{old}");
        assert_eq!((was.warnings.len(), is.warnings.len()), (old.lines().count(), 0), "{:?}", was.warnings);
    }
    let warnings = settings_of("warn", OLD_AND_NEW[0].0, "").warnings;
    assert!(
        warnings[1].ends_with(
            "line 2: outbox_bytes_max is now limits.outbox_max; write outbox_max = \"4MiB\" below [limits]"
        ),
        "{warnings:?}"
    );
}

#[test]
fn unknown_keys_are_refused_with_their_line_and_a_suggestion() {
    for (name, text, line, suggestion) in [
        (
            "table",
            "[delivery]\n\nbehind_tim = 7\n",
            "line 3: delivery.behind_tim:",
            "did you mean behind_time?",
        ),
        ("dash", "[delivery]\nbehind-time = 7\n", "line 2", "did you mean behind_time?"),
        ("flat", "source = []\nbehind_mss = 7\n", "line 2", "did you mean delivery.behind_time?"),
        ("place", "[limits]\nbehind_time = \"7ms\"\n", "line 2", "did you mean delivery.behind_time?"),
        ("tables", "[limit]\n", "line 1", "did you mean [limits]?"),
        ("listener", "[[listener]]\nkind = \"http\"\nadress = \"x\"\n", "line 3", "did you mean address?"),
        (
            "kind",
            "[[source]]\nkind = \"simulator\"\nrate = 1\nbad_lines = \"skip\"\n",
            "line 4: source.bad_lines:",
            "unknown key: an option of kind = \"replay\"",
        ),
        (
            "typo",
            "[[source]]\nkind = \"simulator\"\nrates = 1\n",
            "line 3: source.rates:",
            "did you mean rate?",
        ),
        ("source", "[[source]]\nkind = \"replay\"\nfile = \"x\"\nxyzzy = 1\n", "line 4", "--print-config"),
        ("far", "xyzzy = 7\n", "line 1", "--print-config"),
        ("meta", "check_config = true\n", "line 1", "unknown key"),
    ] {
        let errors = errors_of(name, text);
        assert!(errors[0].contains(line) && errors[0].contains(suggestion), "{name}: {errors:?}");
    }
}

#[test]
fn values_that_do_not_fit_are_refused_with_their_line() {
    for (name, text, line) in [
        ("type", "# one\n[delivery]\nbehind_time = true\n", "line 3: delivery.behind_time"),
        ("text", "[delivery]\nbehind_time = \"soon\"\n", "line 2"),
        (
            "unit",
            "[delivery]\nbehind_time = 500\n",
            "line 2: delivery.behind_time: the unit is missing: write 500s",
        ),
        ("range", "[server]\nshards = 70000\n", "line 2"),
        ("switch", "\n\nno_sim = 1\n", "line 3"),
        ("choice", "[server]\nidentity_conflict = \"fight\"\n", "line 2"),
        ("log", "[server]\nlog = \"loud\"\n", "line 2: server.log: invalid level \"loud\""),
        ("syntax", "tcp = \"127.0.0.1:0\"\nhttp =\n", "line 2"),
        ("twice", "[server]\nshards = 1\nshards = 2\n", "line 3"),
        ("both", "shards = 1\n[server]\nshards = 2\n", "is also set as server.shards in line 3; remove one"),
        ("shape", "limits = 5\n", "line 1: limits: must be a table"),
        ("list", "[listener]\nkind = \"native\"\n", "line 1: listener: must be a list of tables"),
        (
            "kind",
            "[[listener]]\nkind = \"telnet\"\n",
            "line 2: listener.kind: must be one of native, http, admin",
        ),
        (
            "unknown",
            "source = [\n{ kind = \"telnet\" }]\n",
            "line 2: source.kind: must be one of simulator, replay, ecg",
        ),
        ("nokind", "\n[[source]]\n", "line 2: [[source]]: kind is missing: one of simulator, replay, ecg"),
        (
            "required",
            "\n[[source]]\nkind = \"ecg\"\n",
            "line 2: [[source]]: record is missing for kind = \"ecg\"",
        ),
        ("address", "[[listener]]\nkind = \"http\"\n", "line 1: [[listener]]: address is missing"),
        ("tls", "[[listener]]\nkind = \"http\"\naddress = \"127.0.0.1:0\"\ntransport = \"tls\"\n", "line 4"),
        (
            "mode",
            "[[listener]]\nkind = \"http\"\naddress = \"127.0.0.1:0\"\nmode = \"0666\"\n",
            "line 4: listener.mode: only",
        ),
        (
            "buffer",
            "[[listener]]\nkind = \"http\"\naddress = \"unix:/x\"\nsocket_send_buffer = \"8KiB\"\n",
            "line 4: listener.socket_send_buffer: a Unix socket has no such option",
        ),
        (
            "admins",
            "[[listener]]\nkind = \"http\"\naddress = \"127.0.0.1:0\"\n[[listener]]\nkind = \"admin\"\n\
            address = \"127.0.0.1:0\"\n[[listener]]\nkind = \"admin\"\naddress = \"127.0.0.1:0\"\n",
            "at most one",
        ),
        ("nobody", "[[listener]]\nkind = \"admin\"\naddress = \"127.0.0.1:0\"\n", "no client could connect"),
        ("two", "[[source]]\nkind = \"simulator\"\n[[source]]\nkind = \"simulator\"\n", "line 4"),
    ] {
        let errors = errors_of(name, text);
        assert!(errors.len() == 1 && errors[0].contains(line), "{name}: {errors:?}");
    }
}

#[test]
fn every_error_of_a_file_is_told_at_once_in_the_order_of_lines_and_none_follows_from_another() {
    let text = "\
source = []
nosim = 1
[limits]
egress_log = \"big\"
outbox_max = \"32MiB\"
frame_max = 10
[timeouts]
ping_timeout = 0
[delivery]
policy = [\"never\", \"ever\"]
[[listener]]
kind = \"native\"
address = \"9400\"
";
    let errors = errors_of("all", text);
    let lines: Vec<&str> =
        errors.iter().map(|error| error.split_once("line ").unwrap().1.split(':').next().unwrap()).collect();
    assert_eq!(lines, ["2", "4", "6", "8", "10", "10", "13"], "{errors:#?}");
}

#[test]
fn a_kind_is_listed_several_times_each_source_with_its_own_options() {
    let text = "\
[[source]]
kind = \"replay\"
file = \"Cargo.toml\"
wait = 3
[[source]]
kind = \"simulator\"
[[source]]
kind = \"replay\"
file = \"README.md\"
";
    let settings = settings_of("several", text, "--speed max");
    let of_source = |at: usize, key: &str| settings.sources[at].options[key].to_string();
    assert_eq!((of_source(0, "wait"), of_source(0, "speed")), ("3".into(), "\"max\"".into()));
    assert_eq!((of_source(2, "wait"), of_source(2, "speed")), ("0".into(), "\"1.0\"".into()));
    let sources = Config::new(&settings, None).unwrap().sources;
    let kinds: Vec<&str> = sources.iter().map(|source| source.kind().name).collect();
    assert_eq!(kinds, ["replay", "simulator", "replay"]);
    assert!(sources[0] != sources[2] && sources[0] == sources[0].clone());
}

#[test]
fn a_file_that_is_not_there_is_refused_by_name() {
    let words = ["tickcast", "serve", "--config", "/nonexistent/tickcast.toml"].map(OsString::from);
    let settings = Settings::read(&words).unwrap();
    let error = Config::new(&settings, None).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/tickcast.toml") && error.contains("--config"), "{error}");
}

#[test]
fn options_for_addresses_change_the_first_listener_of_their_kind_and_add_what_the_file_lacks() {
    let text = "\
[[listener]]
kind = \"native\"
address = \"unix:/run/tickcast/native.sock\"
mode = \"0666\"
[[listener]]
kind = \"native\"
address = \"127.0.0.1:1\"
socket_send_buffer = \"8KiB\"
[delivery]
socket_send_buffer = \"64KiB\"
notsent_lowat = 0
";
    let listeners = |words: &str| -> Vec<String> {
        let settings = settings_of("listeners", text, words);
        let config = Config::new(&settings, None).unwrap();
        config
            .listeners
            .iter()
            .map(|listener| format!("{} {}", listener.kind.name(), listener.address))
            .collect()
    };
    assert_eq!(listeners(""), ["native unix:/run/tickcast/native.sock", "native 127.0.0.1:1"]);
    assert_eq!(
        listeners("--tcp 127.0.0.1:2 --admin unix:/run/a"),
        ["native 127.0.0.1:2", "native 127.0.0.1:1", "admin unix:/run/a"]
    );
    let config = Config::new(&settings_of("bounds", text, ""), None).unwrap();
    let [unix, tcp] = &config.listeners[..] else { panic!("two") };
    assert_eq!((unix.mode, unix.socket), (0o666, Default::default()));
    assert_eq!((tcp.socket.send_bytes, tcp.socket.notsent_lowat_bytes), (Some(8 << 10), 0));
    assert!(matches!(&unix.address, Address::Unix(_)) && tcp.named.ends_with("line 7"), "{tcp:?}");
}

#[test]
fn a_listener_behind_a_proxy_needs_proxies_that_are_trusted() {
    let listener = |kind: &str, keys: &str| {
        format!("[[listener]]\nkind = \"{kind}\"\naddress = \"127.0.0.1:1\"\n{keys}\n")
    };
    let trusting = "[server]\ntrusted_proxies = \"10.0.0.0/8\"\n";
    for (kind, keys, client) in [
        ("native", "proxy_protocol = true", ClientAddress::ProxyHeader),
        ("http", "proxy_protocol = true", ClientAddress::ProxyHeader),
        ("http", "forwarded_for = true\nproxy_protocol = false", ClientAddress::ForwardedFor),
        ("http", "forwarded_for = false", ClientAddress::Peer),
    ] {
        let text = format!("{trusting}{}", listener(kind, keys));
        let config = Config::new(&settings_of("proxies", &text, ""), None).unwrap();
        assert_eq!(config.listeners[0].client, client, "{kind} {keys}");
    }
    for (kind, keys, part) in [
        ("native", "forwarded_for = true", "no such option"),
        ("http", "forwarded_for = true\nproxy_protocol = true", "either"),
    ] {
        let text = format!("{trusting}{}", listener(kind, keys));
        assert!(errors_of("proxies", &text)[0].contains(part), "{kind} {keys}");
    }
    let errors = errors_of("proxies", &listener("http", "proxy_protocol = true"));
    assert!(errors[0].contains("line 4: listener.proxy_protocol: no proxy is trusted"), "{errors:?}");
    let errors = errors_of("web", "[web]\nallow_origin = [\"app.example\"]\nallow_host = [\"a:80\"]\n");
    assert!(errors[0].contains("line 2") && errors[0].contains("is not an origin"), "{errors:?}");
    assert!(errors[1].contains("line 3") && errors[1].contains("is not a host"), "{errors:?}");
}

#[test]
fn an_option_that_makes_no_sense_is_found_in_the_file_unless_it_was_typed() {
    let text = "[timeouts]\nping_timeout = 0\n";
    assert!(errors_of("locate", text)[0].contains("line 2: timeouts.ping_timeout: 0s: must be"));
    let error = Config::new(&settings_of("typed", text, "--ping-timeout 1ns"), None).unwrap_err().to_string();
    assert!(error.starts_with("--ping-timeout: 1ns"), "{error}");
}

#[test]
fn the_shipped_file_is_good_and_what_it_comments_out_is_the_default() {
    let shipped = include_str!("../../../../systemd/tickcast.toml");
    let settings = settings_of("shipped", shipped, "");
    assert!(settings.problems.is_empty() && settings.warnings.is_empty(), "{:?}", settings.problems);
    assert!(Config::new(&settings, None).unwrap().sources.is_empty());
    // A comment that begins with `key =` is a commented-out setting.
    let commented = |line: &&str| {
        // Examples are indented.
        let words: Vec<&str> = line.split(' ').take(3).collect();
        matches!(words[..], ["#", key, "="] if key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
    };
    let defaults: String = shipped
        .lines()
        .map(|line| if commented(&line) { line.trim_start_matches("# ") } else { line })
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(defaults.lines().count() > 50);
    let with_defaults = settings_of("defaults", &defaults, "");
    assert!(with_defaults.problems.is_empty(), "{:?}", with_defaults.problems);
    let changes: Vec<String> =
        with_defaults.changes_since(&settings).iter().map(|change| change.key.clone()).collect();
    // Their defaults depend on the machine, or the file writes them out.
    let by_hand = [
        "delivery.behind_size",
        "delivery.deflate",
        "delivery.history",
        "delivery.policy",
        "delivery.topic_idle",
        "limits.max_clients",
        "limits.patterns_per_session_size",
        "limits.patterns_per_source_memory",
        "server.cores",
        "server.node",
        "server.shards",
    ];
    assert!(changes.iter().all(|key| by_hand.contains(&&**key)), "{changes:?}");
    let (was, is) = (Config::new(&settings, None).unwrap(), Config::new(&with_defaults, None).unwrap());
    assert_eq!(was.limits, is.limits);
}

#[test]
fn changes_say_which_are_live() {
    let before = settings_of("before", "[delivery]\nbehind_time = \"7ms\"\npolicy = [\"drop\"]\n", "");
    let after =
        settings_of("after", "[delivery]\npolicy = [\"drop\", \"a=conflate\"]\n[server]\nshards = 3\n", "");
    let changes: Vec<String> = after.changes_since(&before).iter().map(ToString::to_string).collect();
    assert_eq!(
        changes,
        [
            "delivery.behind_time: 500ms instead of 7ms",
            "delivery.policy: drop, a=conflate instead of drop",
            "server.shards: 3 instead of not set: takes effect at the next start",
        ]
    );
    assert!(after.changes_since(&after).is_empty());
    let sources =
        settings_of("sources", "[[source]]\nkind = \"simulator\"\nrate = 7\n", "").changes_since(&after);
    assert!(sources.iter().any(|change| change.key == "source[0].rate" && !change.is_live), "{sources:?}");
}

/// A value other than the default: the last of the possible values, or one that fits the placeholder, or any text.
fn other(declared: &Declared) -> String {
    let command = <Cli as clap::CommandFactory>::command();
    let mut arguments = command.find_subcommand("serve").unwrap().get_arguments();
    let choices = arguments.find(|arg| arg.get_id() == &*declared.id).unwrap().get_possible_values();
    if let Some(choice) = choices.last() {
        return choice.get_name().to_owned();
    }
    let value = match (&*declared.id, &*declared.placeholder) {
        ("log", _) => "debug",
        ("policy", _) => "a.>=drop",
        ("history", _) => "a.*=9:100B:5s",
        (_, "ADDRESS") => "unix:/run/x.sock",
        (_, "N" | "BPM" | "LIST") => "7",
        (_, "NETWORK,...") => "10.0.0.0/8,::1",
        (_, "TIME") => "7s",
        (_, "SIZE") => "7KiB",
        (_, "FACTOR") => "max",
        _ => "any text",
    };
    value.to_owned()
}

#[test]
fn what_is_printed_is_read_as_the_same_for_every_option() {
    // Options that remove a listener or a source are tested one at a time.
    let tried = declared::all().iter().filter(|declared| !["no_sim", "no_admin"].contains(&&*declared.id));
    let mut words = vec!["tickcast".to_owned(), "serve".to_owned()];
    for declared in tried {
        words.push(format!("--{}", declared.flag));
        if !declared.is_switch {
            words.push(other(declared));
        }
    }
    let words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
    let settings = Settings::read(&words).unwrap();
    assert!(settings.problems.is_empty(), "{:?}", settings.problems);
    let printed = settings.to_toml();
    for declared in declared::all().iter().filter(|declared| declared.is_of_table()) {
        assert!(printed.contains(&format!("\n{} = ", declared.key)), "{declared:?} in\n{printed}");
        assert!(printed.contains(&format!(" # --{}\n", declared.flag)), "{declared:?} in\n{printed}");
    }
    let again = settings_of("again", &printed, "");
    assert!(again.problems.is_empty() && again.warnings.is_empty(), "{:?} in\n{printed}", again.problems);
    assert_eq!(settings.tree, again.tree, "{printed}");

    for kind in KINDS.iter().filter(|kind| kind.flags.is_some()) {
        // A key that only a file sets, such as a table of waves, is printed once it is set.
        let has_flag = |key: &&&str| declared::all().iter().any(|declared| declared.key == **key);
        for key in kind.keys().iter().filter(has_flag) {
            assert!(printed.contains(&format!("\n{key} = ")), "{key} of {kind:?} in\n{printed}");
        }
    }

    for words in ["--no-sim", "--no-admin --http 127.0.0.1:0", ""] {
        let typed: Vec<OsString> = format!("tickcast serve {words}")
            .split(' ')
            .filter(|word| !word.is_empty())
            .map(OsString::from)
            .collect();
        let settings = Settings::read(&typed).unwrap();
        let again = settings_of("removed", &settings.to_toml(), "");
        assert_eq!(settings.tree, again.tree, "{}", settings.to_toml());
    }
}

#[test]
fn sources_that_only_a_file_configures_are_printed_as_they_are_read() {
    let text = r#"
[[source]]
kind = "nats"
subjects = ["a.>"]
auth = { user = "feed", password_file = "/run/password" }
map = { strip = "a.", topic = "b.{1}", time_unit = "us" }

[[source]]
kind = "jetstream"
stream = "TICKS"
start = 17

[[source]]
kind = "redis-stream"
streams = ["s"]
start = "10m"

[[source]]
kind = "redis-pubsub"
channels = ["c:*"]

[[source]]
kind = "websocket"
url = "wss://a.test/"
token = { command = ["program", "argument"], every = "5m" }
map = { topic = "t.{json:/s}" }
"#;
    let settings = settings_of("file", text, "");
    assert!(settings.problems.is_empty(), "{:?}", settings.problems);
    let printed = settings.to_toml();
    let again = settings_of("file-again", &printed, "");
    assert!(again.problems.is_empty() && again.warnings.is_empty(), "{:?} in\n{printed}", again.problems);
    assert_eq!(settings.tree, again.tree, "{printed}");
}

#[test]
fn what_is_printed_says_where_each_value_comes_from() {
    let text = "[delivery]\nbehind_time = \"7ms\"\n";
    let printed = settings_of("origins", text, "--http 127.0.0.1:0 --spin-us 20").to_toml();
    for line in [
        "\nbehind_time = \"7ms\" # line 2\n",
        "\naddress = \"127.0.0.1:0\" # --http\n",
        "\naddress = \"127.0.0.1:9400\" # default\n",
        "\nspin = \"20us\" # --spin\n",
        "\n# stall_deadline = \"30s\" # default\n",
        "\n# cores = # not set\n",
    ] {
        assert!(printed.contains(line), "{line} in\n{printed}");
    }
}
