//! /metrics as Prometheus and Grafana see it: promtool's checks, a real scrape, and every query of the dashboard and the alert
//! rules. Needs Prometheus and promtool (`scripts/test.sh` installs them).

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::harness::{
    Log, Server, beside_others,
    collector::Collector,
    eventually,
    http::{get, request},
    processes,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tickcast_proto::WireFormat;

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)
}

/// The dashboard's queries, by panel title.
fn dashboard_queries() -> Vec<(String, String)> {
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(shipped("tickcast-dashboard.json")).unwrap()).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap().to_owned();
            queries.push((title, target["expr"].as_str().unwrap().to_owned()));
        }
    }
    assert!(queries.len() > 20, "{queries:?}");
    queries
}

/// The metric names in a text.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let is_name = |word: &&str| word.starts_with("tickcast_") || word.starts_with("process_");
    words.filter(is_name).map(str::to_owned).collect()
}

/// A server whose metrics all have samples, but for the name of its node, which is an option.
fn watched_server(node: &[&str]) -> (Server, Collector) {
    let server = Server::start_logging("info", &[&["--shards", "2", "--sim-rate", "100"], node].concat());
    let collector = Collector::start(&server, WireFormat::WEBSOCKET_JSON, &["sim.>"]);
    collector.wait_for(100);
    (server, collector)
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    let _machine = beside_others();
    let (server, collector) = watched_server(&[]);
    let metrics = get(server.admin.unwrap(), "/metrics").body;
    let mut check = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool: scripts/test.sh installs it");
    check.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}\n{metrics}");
    collector.finish();
    server.stop_cleanly();
}

#[test]
fn promtool_accepts_the_alert_rules() {
    let output = Command::new("promtool")
        .args(["check", "rules"])
        .arg(shipped("tickcast-alerts.yml"))
        .output()
        .expect("promtool: scripts/test.sh installs it");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("SUCCESS"), "{said}");
}

#[test]
fn refusals_alert_when_the_server_is_full_and_not_when_it_drains() {
    let case = |reason: &str, alerts: &str| {
        format!(
            "  - interval: 1m\n    input_series:\n      - series: 'tickcast_sessions_refused_total{{job=\"tickcast\",\
             instance=\"a\",shard=\"0\",reason=\"{reason}\"}}'\n        values: '0+5x20'\n    alert_rule_test:\n      \
             - eval_time: 18m\n        alertname: TickcastConnectionsRefused\n        exp_alerts: [{alerts}]\n"
        )
    };
    let full = "{exp_labels: {severity: warning, instance: a, reason: clients}, exp_annotations: {summary: \
                'a refused 75 connections in 15 minutes (clients)', description: 'Reached limit by reason: clients \
                --max-clients, source --max-clients-per-source, rate --accept-rate, tenant the quota of its [[tenant]]. \
                Reason overload: --overload-refuse, and the shard is overloaded. Reason failed: the kernel ran out of memory.'}}";
    let rules = shipped("tickcast-alerts.yml");
    let text = format!("rule_files: [{rules:?}]\ntests:\n{}{}", case("draining", ""), case("clients", full));
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("alerts-test.yml");
    fs::write(&file, text).unwrap();
    let output = Command::new("promtool").args(["test", "rules"]).arg(&file).output();
    let output = output.expect("promtool: scripts/test.sh installs it");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    fs::remove_file(&file).unwrap();
}

#[test]
fn the_dashboard_lists_only_instances_of_tickcast() {
    let text = fs::read_to_string(shipped("tickcast-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let instance = variables.iter().find(|variable| variable["name"] == "instance").unwrap();
    assert_eq!(instance["query"]["query"], "label_values(tickcast_build_info, instance)");
    assert!(instance.get("allValue").is_none(), "All means every instance that the query finds");
}

#[test]
fn the_dashboard_and_the_rules_name_only_existing_metrics() {
    let _machine = beside_others();
    let (server, collector) = watched_server(&["--node", "a"]);
    let metrics = get(server.admin.unwrap(), "/metrics").body;
    let there_are: BTreeSet<String> = metrics
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(['{', ' ']).next().unwrap().to_owned())
        .collect();
    let rules = fs::read_to_string(shipped("tickcast-alerts.yml")).unwrap();
    let expressions: String = dashboard_queries().into_iter().map(|(_, query)| query + "\n").collect();
    let named = &names(&expressions) | &names(&rules);
    assert!(named.len() > 20, "{named:?}");
    let missing: Vec<_> = named.difference(&there_are).collect();
    assert!(missing.is_empty(), "{missing:?} are missing in\n{metrics}");
    collector.finish();
    server.stop_cleanly();
}

/// A Prometheus that scrapes a server every second, killed on drop.
struct Prometheus {
    child: Child,
    folder: PathBuf,
    address: SocketAddr,
    log: Log,
}

impl Prometheus {
    fn start(target: SocketAddr) -> Prometheus {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("prometheus-{}", target.port()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let rules = shipped("tickcast-alerts.yml");
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{rules:?}]\nscrape_configs:\n  \
             - job_name: tickcast\n    static_configs: [{{targets: [\"{target}\"]}}]\n"
        );
        fs::write(folder.join("prometheus.yml"), config).unwrap();
        let mut child = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("prometheus: scripts/test.sh installs it");
        let log = Log::collect(child.stderr.take().unwrap());
        let mut found = None;
        eventually("Prometheus listens", || {
            assert!(child.try_wait().unwrap().is_none(), "Prometheus has ended:\n{}", log.text());
            found = processes::listens_at(child.id());
            found.is_some()
        });
        Prometheus { child, folder, address: found.unwrap(), log }
    }

    /// Makes it scrape itself too, as one more process with `process_` metrics.
    fn watch_itself(&self) {
        let file = self.folder.join("prometheus.yml");
        let config = fs::read_to_string(&file).unwrap()
            + &format!("  - job_name: other\n    static_configs: [{{targets: [\"{}\"]}}]\n", self.address);
        fs::write(file, config).unwrap();
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGHUP).unwrap();
        eventually("Prometheus scrapes itself", || {
            !self.query("process_resident_memory_bytes{job=\"other\"}").is_empty()
        });
    }

    /// The current result of a query.
    fn query(&self, expression: &str) -> Vec<Value> {
        let encoded = utf8_percent_encode(expression, NON_ALPHANUMERIC);
        let answer = request(self.address, "GET", &format!("/api/v1/query?query={encoded}"));
        // Prometheus is still starting.
        if answer.status == 503 {
            return Vec::new();
        }
        let json = answer.json();
        assert_eq!(json["status"], "success", "{expression}: {json}");
        json["data"]["result"].as_array().unwrap().clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        processes::end(&mut self.child);
        let _ = fs::remove_dir_all(&self.folder);
        if std::thread::panicking() {
            eprintln!("Prometheus' log:\n{}", self.log.text());
        }
    }
}

#[test]
fn a_real_prometheus_scrapes_the_server_and_every_dashboard_query_finds_something() {
    let _machine = beside_others();
    let (server, collector) = watched_server(&[]);
    let prometheus = Prometheus::start(server.admin.unwrap());
    let is_up = |prometheus: &Prometheus| {
        prometheus.query("up{job=\"tickcast\"} == 1").len() == 1
            && prometheus.query("count_over_time(up{job=\"tickcast\"}[1m]) >= 3").len() == 1
    };
    eventually("the server is up and was scraped three times", || is_up(&prometheus));
    // On a busy machine a scrape may come too late: until the next one, nothing is found.
    for (panel, query) in dashboard_queries() {
        let query = query.replace("$__rate_interval", "1m").replace("$instance", ".*");
        eventually(&format!("{panel}: {query}"), || !prometheus.query(&query).is_empty());
    }
    // A server without a name is a node by its address.
    let nodes = dashboard_queries().into_iter().find(|(panel, _)| panel == "Sessions by node").unwrap().1;
    let mut found = Vec::new();
    eventually("the sessions of the node", || {
        found = prometheus.query(&nodes.replace("$instance", ".*"));
        !found.is_empty()
    });
    assert_eq!(found[0]["metric"]["node"], server.admin.unwrap().to_string(), "{found:?}");
    prometheus.watch_itself();
    eventually("both have a CPU rate", || prometheus.query("rate(process_cpu_seconds_total[1m])").len() == 2);
    let own: Vec<_> =
        dashboard_queries().into_iter().filter(|(_, query)| query.contains("process_")).collect();
    assert!(own.len() >= 3, "{own:?}");
    for (panel, query) in own {
        let query = query.replace("$__rate_interval", "1m").replace("$instance", ".*");
        // Each part of a sum on its own.
        let query = query.strip_prefix("sum(").and_then(|query| query.strip_suffix(')')).unwrap_or(&query);
        let mut found = Vec::new();
        eventually(&format!("{panel}: {query}"), || {
            found = prometheus.query(query);
            !found.is_empty()
        });
        assert!(found.len() == 1 && found[0]["metric"]["job"] == "tickcast", "{panel}: {query}: {found:?}");
    }
    let delivered = "sum(rate(tickcast_ticks_delivered_total[1m])) > 0";
    eventually("ticks are delivered", || prometheus.query(delivered).len() == 1);
    // The rules are loaded and evaluated, and none fires for a healthy server.
    let rules = request(prometheus.address, "GET", "/api/v1/rules").json();
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap().clone();
    assert!(rules.len() >= 9, "{rules:?}");
    for rule in &rules {
        assert_ne!(rule["health"], "err", "{rule}");
        assert_ne!(rule["state"], "firing", "{rule}");
    }
    collector.finish();
    server.stop_cleanly();
}
