use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use super::*;
use crate::operator::check::tests::TestFolder;

const NOW_S: u64 = 2_000_000_000;

fn write(folder: &TestFolder, name: &str, content: &str, mode: u32) -> PathBuf {
    let path = folder.0.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

fn graded(folder: &TestFolder, config: &str, mode: u32) -> Vec<CheckItem> {
    check(&write(folder, "tickcast.toml", config, mode), NOW_S).unwrap()
}

fn item<'a>(items: &'a [CheckItem], name: &str) -> &'a CheckItem {
    items.iter().find(|item| item.name == name).unwrap_or_else(|| panic!("no {name} in {items:#?}"))
}

/// Names and current values of what should be changed.
fn findings(items: &[CheckItem]) -> Vec<(&str, &str)> {
    let bad = items.iter().filter(|item| item.state != ItemState::Enabled);
    bad.map(|item| (&*item.name, item.now.as_deref().unwrap_or_default())).collect()
}

/// A certificate for `a.test` that ends at this time, and its key, in files.
fn certificate(folder: &TestFolder, ends_s: u64, key_mode: u32) -> (PathBuf, PathBuf) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
    // The year alone: nothing here needs a day.
    params.not_after = rcgen::date_time_ymd(1970 + (ends_s / (365 * DAY_S)) as i32, 1, 1);
    let cert = params.self_signed(&key).unwrap();
    (write(folder, "cert.pem", &cert.pem(), 0o644), write(folder, "key.pem", &key.serialize_pem(), key_mode))
}

const LISTENERS: &str = "[[listener]]\nkind = \"native\"\naddress = \"127.0.0.1:9400\"\n";

#[test]
fn a_listener_that_anyone_reaches_is_reported_with_what_to_do() {
    let folder = TestFolder::new("open-listeners");
    let config = "[server]\nallow_anonymous = true\n\
                  [[listener]]\nkind = \"native\"\naddress = \"0.0.0.0:9400\"\n\
                  [[listener]]\nkind = \"http\"\naddress = \"127.0.0.1:9401\"\n\
                  [[listener]]\nkind = \"admin\"\naddress = \"0.0.0.0:9402\"\n";
    let items = graded(&folder, config, 0o644);
    assert_eq!(
        findings(&items),
        [
            ("native 0.0.0.0:9400", "open to anyone"),
            ("native 0.0.0.0:9400: TLS", "none"),
            ("admin 0.0.0.0:9402", "open to anyone"),
            ("admin 0.0.0.0:9402: TLS", "none"),
        ]
    );
    assert!(item(&items, "native 0.0.0.0:9400").reason.contains("configure [auth]"));
    assert!(item(&items, "admin 0.0.0.0:9402").reason.contains("[[auth.operator]]"));
    assert!(!items.iter().any(CheckItem::is_missing), "the server starts");
    // Without the option it does not start.
    let items = graded(&folder, &config.replace("true", "false"), 0o644);
    let configuration = item(&items, "configuration");
    assert!(
        configuration.is_missing() && configuration.reason.contains("--allow-anonymous"),
        "{configuration:?}"
    );
    assert_eq!(item(&items, "native 0.0.0.0:9400").now.as_deref(), Some("open to anyone"));
}

#[test]
fn an_admin_listener_of_this_machine_is_graded_by_who_may_use_it() {
    let folder = TestFolder::new("admin");
    for (address, more, now) in [
        ("127.0.0.1:9402", "", Some("every user of this machine")),
        ("unix:/run/admin.sock", "", None),
        ("unix:/run/admin.sock", "mode = \"0600\"\n", None),
        ("unix:/run/admin.sock", "mode = \"0666\"\n", Some("every user of this machine")),
        (
            "127.0.0.1:9402",
            "[[auth.operator]]\nname = \"a\"\nrole = \"read\"\n\
             sha256 = \"3eb1bd439947eb762998e566ccc2e099c791118b2f40579cc4f7da2b5061b7f9\"\n",
            None,
        ),
    ] {
        let config = format!("{LISTENERS}[[listener]]\nkind = \"admin\"\naddress = \"{address}\"\n{more}");
        let items = graded(&folder, &config, 0o600);
        let admin = format!("admin {address}");
        let expected: Vec<_> = now.map(|now| (&*admin, now)).into_iter().collect();
        assert_eq!(findings(&items), expected, "{address} {more}");
    }
}

#[test]
fn weak_keys_are_reported_and_keep_the_server_from_running() {
    let folder = TestFolder::new("weak");
    let secret = write(&folder, "secret.txt", "short", 0o600);
    let weak_rsa = crate::auth::tests::data("rsa1024.pub.pem");
    let config = format!(
        "{LISTENERS}[[auth.key]]\nalgorithm = \"HS256\"\nfile = {secret:?}\n\
         [[auth.key]]\nalgorithm = \"RS256\"\nfile = {weak_rsa:?}\n"
    );
    let items = graded(&folder, &config, 0o600);
    for (name, part) in [("auth.key[0] HS256", "5 bytes"), ("auth.key[1] RS256", "1024 bits")] {
        let item = item(&items, name);
        assert!(item.is_missing() && item.reason.contains(part), "{item:?}");
    }
    assert_eq!(item(&items, "configuration").now.as_deref(), Some("2 errors"));
}

#[test]
fn secrets_that_others_can_read_are_reported_with_the_command_that_closes_them() {
    let folder = TestFolder::new("readable");
    let (cert, key) = certificate(&folder, NOW_S + 3_650 * DAY_S, 0o640);
    let secret = write(&folder, "secret.txt", &"x".repeat(64), 0o644);
    let tickets = write(&folder, "tickets", &"y".repeat(48), 0o604);
    let config = format!(
        "[[listener]]\nkind = \"native\"\naddress = \"127.0.0.1:9400\"\n\
         tls = {{ cert = {cert:?}, key = {key:?}, ticket_keys = {tickets:?}, min_version = \"1.3\" }}\n\
         [auth]\nttl_max = \"1h\"\n\
         [[auth.key]]\nalgorithm = \"HS256\"\nfile = {secret:?}\nissuer = \"https://id.example\"\n\
         [[auth.token]]\nname = \"m\"\n\
         sha256 = \"3eb1bd439947eb762998e566ccc2e099c791118b2f40579cc4f7da2b5061b7f9\"\n"
    );
    let path = folder.0.join("tickcast.toml").display().to_string();
    let (secret, tickets) = (secret.display().to_string(), tickets.display().to_string());
    let items = graded(&folder, &config, 0o644);
    assert_eq!(findings(&items), [(&*secret, "mode 0644"), (&*path, "mode 0644"), (&*tickets, "mode 0604")]);
    assert!(item(&items, &secret).reason.contains(&format!("chmod o= {secret}")));
    let words = ["tickcast".into(), "serve".into(), "--config".into(), OsString::from(&path)];
    let settings = Settings::read(&words).unwrap();
    let open = secret_files(&settings).into_iter().filter(|file| file.is_usable && file.is_open()).count();
    assert_eq!(open, 2, "the start warns of these, and not of hashes");
    // Closed, the configuration has nothing that should be changed.
    for file in [&secret, &path, &tickets] {
        fs::set_permissions(file, fs::Permissions::from_mode(0o640)).unwrap();
    }
    assert_eq!(findings(&check(Path::new(&path), NOW_S).unwrap()), []);
}

#[test]
fn secrets_of_sources_that_others_can_read_are_reported() {
    let folder = TestFolder::new("source-secrets");
    let (open, closed) = (write(&folder, "open", "x", 0o644), write(&folder, "closed", "x", 0o600));
    let config = format!(
        "{LISTENERS}[[source]]\nkind = \"redis-pubsub\"\nchannels = [\"a\"]\nauth = {{ user = \"u\", password_file = {open:?} }}\n\
         [[source]]\nkind = \"websocket\"\nurl = \"wss://a.test/\"\ntoken = {{ file = {closed:?} }}\nmap = {{ topic = \"t\" }}\n"
    );
    let items = graded(&folder, &config, 0o644);
    assert_eq!(findings(&items), [(open.to_str().unwrap(), "mode 0644")]);
    assert_eq!(
        item(&items, open.to_str().unwrap()).reason,
        format!(
            "{0} has a source's secret and is open to every user of this machine: chmod o= {0}.",
            open.display()
        )
    );
    assert_eq!(item(&items, closed.to_str().unwrap()).reason, "It has a source's token.");
}

#[test]
fn certificates_versions_and_lifetimes_are_graded() {
    let folder = TestFolder::new("lifetimes");
    let public = crate::auth::tests::data("ed25519.pub.pem");
    let (cert, key) = certificate(&folder, NOW_S + 3_650 * DAY_S, 0o600);
    let config = |more: &str| {
        format!(
            "[[listener]]\nkind = \"http\"\naddress = \"0.0.0.0:9443\"\ntls = {{ cert = {cert:?}, key = {key:?} }}\n\
             [auth]\n{more}[[auth.key]]\nalgorithm = \"EdDSA\"\nfile = {public:?}\n"
        )
    };
    let items = graded(&folder, &config("query_token = true\n"), 0o644);
    assert_eq!(
        findings(&items),
        [
            ("http 0.0.0.0:9443: TLS version", "1.2"),
            ("auth.key[0] EdDSA", "tokens of any issuer"),
            ("lifetime of tokens", "no limit"),
            ("?token=", "accepted"),
        ]
    );
    let items = graded(&folder, &config("ttl_max = \"2d\"\n"), 0o644);
    assert_eq!(item(&items, "lifetime of tokens").state, ItemState::Supported);
    let items = graded(&folder, &config("ttl_max = \"15m\"\n"), 0o644);
    assert_eq!(item(&items, "lifetime of tokens").state, ItemState::Enabled);
    let name = "http 0.0.0.0:9443: a.test";
    assert_eq!(item(&items, name).state, ItemState::Enabled);
    let path = folder.0.join("tickcast.toml");
    let mut states = Vec::new();
    // From two years before its end to one after.
    for days in (0..3 * 365).step_by(5) {
        let items = check(&path, NOW_S + (3_650 - 3 * 365 + days) * DAY_S).unwrap();
        let now = item(&items, name).now.clone().unwrap();
        let days_left = now.strip_suffix(" days").map(|days| days.parse::<u64>().unwrap());
        let is_good = days_left.is_some_and(|days| days >= CERTIFICATE_WARNING_DAYS);
        assert_eq!(item(&items, name).state == ItemState::Enabled, is_good, "{now}");
        states.push(if now == "expired" { 2 } else { u8::from(!is_good) });
    }
    assert!(states.is_sorted() && [0, 1, 2].iter().all(|state| states.contains(state)), "{states:?}");
    // A certificate that cannot be read keeps the server from running.
    fs::write(&cert, "nothing").unwrap();
    assert!(item(&check(&path, NOW_S).unwrap(), "http 0.0.0.0:9443: certificates").is_missing());
}

#[test]
fn a_file_that_is_not_there_is_a_missing_configuration() {
    let items = check(Path::new("/nowhere/tickcast.toml"), NOW_S).unwrap();
    assert!(items[0].is_missing() && items[0].reason.contains("/nowhere/tickcast.toml"), "{items:?}");
}

#[test]
fn an_entry_without_a_tenant_is_reported_beside_tenants_that_a_host_chooses() {
    let folder = TestFolder::new("tenants");
    let hash = policy::token_hash("0123456789abcdef0123456789abcdef");
    let tenants = |hosts: &str| format!("[[tenant]]\nname = \"a\"\n{hosts}\n");
    let token = |tenant: &str| format!("[[auth.token]]\nname = \"feed\"\nsha256 = {hash:?}\n{tenant}\n");
    let anonymous = "[auth.anonymous]\npermissions = { sub = { allow = [\"t.>\"] } }\n";
    let (with_host, own) = (tenants("hosts = [\"a.test\"]"), "tenant = \"a\"");
    for (config, now) in [
        (with_host.clone() + &token("") + anonymous, Some("chosen by feed, anonymous clients")),
        (with_host.clone() + &token(""), Some("chosen by feed")),
        (with_host.clone() + &token(own) + anonymous, Some("chosen by anonymous clients")),
        (with_host + &token(own), None),
        (tenants("") + &token("") + anonymous, None),
    ] {
        let items = graded(&folder, &format!("{LISTENERS}{config}"), 0o600);
        assert_eq!(item(&items, "configuration").now.as_deref(), Some("valid"), "{config}: {items:#?}");
        let expected: Vec<_> = now.map(|now| ("tenants by host", now)).into_iter().collect();
        assert_eq!(findings(&items), expected, "{config}");
    }
}
