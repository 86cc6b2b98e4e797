//! Which request is for what, and which is refused.

use super::query::{self, LatencyFormat};
use tickcast_core::shard::survey::{SessionsQuery, TopicsQuery};
use tickcast_proto::ids::ShardId;

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// What there is.
    Index,
    /// Whether the process lives.
    Health,
    /// Whether clients are taken in.
    Ready,
    /// Counters, gauges and histograms for Prometheus.
    Metrics,
    /// Each shard's counters and state.
    Shards,
    /// Topics.
    Topics(TopicsQuery),
    /// Sessions.
    Sessions(SessionsQuery),
    /// Latencies.
    Latency(LatencyFormat),
    /// Close a session.
    Close(SessionName),
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// The methods there are, if that is what is wrong.
    pub allow: Option<&'static str>,
    /// For the operator.
    pub text: String,
}

impl Refusal {
    /// With a status and a reason.
    pub fn new(status: u16, text: impl Into<String>) -> Refusal {
        Refusal { status, allow: None, text: text.into() }
    }
}

/// A session by the name that the whole server knows it by: `SHARD-ID`, the id in hexadecimal as in logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionName {
    /// Its shard.
    pub shard: ShardId,
    /// Its id there.
    pub id: u64,
}

impl std::fmt::Display for SessionName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{:x}", self.shard.0, self.id)
    }
}

impl std::str::FromStr for SessionName {
    type Err = ();

    fn from_str(text: &str) -> Result<SessionName, ()> {
        let (shard, id) = text.split_once('-').ok_or(())?;
        // What parse() takes beside digits: a sign.
        let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_plain(shard) || !is_plain(id) {
            return Err(());
        }
        let shard = ShardId(shard.parse().map_err(|_| ())?);
        Ok(SessionName { shard, id: u64::from_str_radix(id, 16).map_err(|_| ())? })
    }
}

/// What there is, for people.
pub const INDEX: &str = "\
tickcast
GET /metrics                       Prometheus text
GET /healthz                       200 while the process lives
GET /readyz                        200 while clients are taken in
GET /v1/shards                     each shard's counters and state
GET /v1/topics                     ?prefix= &sort=ticks|bytes|newest &limit=
GET /v1/sessions                   ?sort=outbox|lag|dropped|conflated|topics|newest &limit=
GET /v1/latency                    ?format=json|counts|hgrm &until=sequenced|sent
DELETE /v1/sessions/ID             closes a session
";

const READ: &str = "GET, HEAD";

/// What a request is for.
///
/// # Errors
/// 404 for a path that is not there, 405 for a method that it does not have, 400 for a query that makes no sense.
pub fn route(method: &str, path: &str, query: &str) -> Result<Route, Refusal> {
    let bad = |text: String| Refusal::new(400, text);
    if let Some(name) = path.strip_prefix("/v1/sessions/") {
        if method != "DELETE" {
            return Err(not_allowed(method, "DELETE"));
        }
        query::none(query).map_err(bad)?;
        let named = name.parse().map(Route::Close);
        return named.map_err(|()| Refusal::new(404, "no such session: GET /v1/sessions has their ids"));
    }
    let plain = |route: Route| query::none(query).map(|()| route);
    let routed = match path {
        "/" => plain(Route::Index),
        "/healthz" => plain(Route::Health),
        "/readyz" => plain(Route::Ready),
        "/metrics" => plain(Route::Metrics),
        "/v1/shards" => plain(Route::Shards),
        "/v1/topics" => query::topics(query).map(Route::Topics),
        "/v1/sessions" => query::sessions(query).map(Route::Sessions),
        "/v1/latency" => query::latency(query).map(Route::Latency),
        _ => return Err(Refusal::new(404, "no such path: GET / has them")),
    };
    match method {
        "GET" | "HEAD" => routed.map_err(bad),
        _ => Err(not_allowed(method, READ)),
    }
}

fn not_allowed(method: &str, allow: &'static str) -> Refusal {
    let text = format!("{}: here it is {allow}", method.chars().take(32).collect::<String>());
    Refusal { status: 405, allow: Some(allow), text }
}

/// Whether a Host header (or an absolute path's authority) names this machine as a browser would only do for a page of
/// this listener: an address, or `localhost`. A page from elsewhere whose name was made to lead here has its own name in it.
pub fn is_own_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(method: &str, path: &str, query: &str) -> u16 {
        route(method, path, query).map_or_else(|refusal| refusal.status, |_| 200)
    }

    #[test]
    fn every_path_of_the_index_is_there() {
        for line in INDEX.lines().skip(1) {
            let mut words = line.split_whitespace();
            let (method, path) = (words.next().unwrap(), words.next().unwrap());
            assert_eq!(status(method, &path.replace("ID", "0-1f"), ""), 200, "{line}");
            assert_eq!(status("PATCH", path, ""), 405, "{line}");
        }
    }

    #[test]
    fn what_is_not_there_is_404_a_wrong_method_405_and_a_wrong_query_400() {
        for (method, path, query, expected) in [
            ("GET", "/nothing", "", 404),
            ("POST", "/nothing", "", 404),
            ("GET", "", "", 404),
            ("GET", "/metrics/", "", 404),
            ("POST", "/metrics", "", 405),
            ("DELETE", "/v1/sessions", "", 405),
            ("GET", "/v1/sessions/0-1", "", 405),
            ("DELETE", "/v1/sessions/", "", 404),
            ("DELETE", "/v1/sessions/7", "", 404),
            ("DELETE", "/v1/sessions/0-+1", "", 404),
            ("DELETE", "/v1/sessions/99999-1", "", 404),
            ("DELETE", "/v1/sessions/0-1/x", "", 404),
            ("DELETE", "/v1/sessions/0-1", "now", 400),
            ("GET", "/metrics", "x=1", 400),
            ("GET", "/v1/sessions", "limit=0", 400),
            ("HEAD", "/metrics", "", 200),
        ] {
            assert_eq!(status(method, path, query), expected, "{method} {path}?{query}");
        }
        assert_eq!(route("PUT", "/healthz", "").unwrap_err().allow, Some("GET, HEAD"));
    }

    #[test]
    fn names_of_sessions_read_back() {
        let name = SessionName { shard: ShardId(3), id: 0x1_0000_00ff };
        assert_eq!(name.to_string(), "3-1000000ff");
        assert_eq!(name.to_string().parse(), Ok(name));
        for bad in ["", "-", "1-", "-1", "1-2-3", "x-1", "1-x", "1-fffffffffffffffff"] {
            assert_eq!(bad.parse::<SessionName>(), Err(()), "{bad}");
        }
    }

    #[test]
    fn a_name_that_somebody_else_made_lead_here_is_not_this_machine() {
        for own in ["127.0.0.1:9490", "127.0.0.1", "[::1]:9490", "[::1]", "localhost:1", "LocalHost"] {
            assert!(is_own_host(own), "{own}");
        }
        for other in
            ["", "evil.example", "evil.example:9490", "127.0.0.1.evil.example", "[evil]", "localhost.evil"]
        {
            assert!(!is_own_host(other), "{other}");
        }
    }
}
