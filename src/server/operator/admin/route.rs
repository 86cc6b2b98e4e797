//! Routing: which endpoint a request is for, or the error it gets.

use super::query::{self, LatencyFormat, RevocationQuery};
use crate::operator::views::GlobalSessionId;
use tickcast_core::shard::survey::{SessionsQuery, TopicsQuery};

/// An endpoint of the admin API, with its parsed parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// The list of endpoints.
    Index,
    /// Liveness.
    Health,
    /// Readiness: whether clients are accepted.
    Ready,
    /// Prometheus metrics.
    Metrics,
    /// Each shard's counters and gauges.
    Shards,
    /// Each source's state, lag and counters.
    Sources,
    /// Each tenant's quota and use.
    Tenants,
    /// Topics.
    Topics(TopicsQuery),
    /// Sessions.
    Sessions(SessionsQuery),
    /// Latency histograms.
    Latency(LatencyFormat),
    /// Closing a session.
    Close(GlobalSessionId),
    /// Revoking a subject or a token.
    Revoke(RevocationQuery),
}

impl Route {
    /// Whether the answer needs no shard, and is short enough for the socket to accept it at once.
    pub fn is_immediate(&self) -> bool {
        matches!(self, Route::Index | Route::Health | Route::Ready)
    }
}

/// An error response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestError {
    /// HTTP status.
    pub status: u16,
    /// The allowed methods, with status 405.
    pub allow: Option<&'static str>,
    /// The credentials that are needed (RFC 6750, section 3), with status 401 and 403.
    pub challenge: Option<&'static str>,
    /// What went wrong, for the operator.
    pub message: String,
}

impl RequestError {
    /// An error without further headers.
    pub fn new(status: u16, message: impl Into<String>) -> RequestError {
        RequestError { status, allow: None, challenge: None, message: message.into() }
    }
}

/// The text of `GET /`.
pub const INDEX: &str = "\
tickcast
GET /metrics                       Prometheus text format
GET /healthz                       200 while the process is alive
GET /readyz                        200 while clients are accepted
GET /v1/shards                     each shard's counters and gauges
GET /v1/sources                    each source's state, lag and counters
GET /v1/tenants                    each tenant's quota and use
GET /v1/topics                     ?prefix= &tenant= &sort=ticks|bytes|newest &limit=
GET /v1/sessions                   ?tenant= &sort=outbox|lag|dropped|conflated|topics|newest &limit=
GET /v1/latency                    ?format=json|counts|hgrm &until=sequenced|sent
DELETE /v1/sessions/ID             closes a session
POST /v1/revocations               ?sub= &tenant= or ?jti= &keep=24h: refuses its tokens, closes its sessions
";

const READ_METHODS: &str = "GET, HEAD";

/// Finds the endpoint of a request and parses its query.
///
/// # Errors
/// 404 for an unknown path, 405 for a method the path does not support, 400 for an invalid query.
pub fn route(method: &str, path: &str, query: &str) -> Result<Route, RequestError> {
    let bad_request = |message: String| RequestError::new(400, message);
    if let Some(id) = path.strip_prefix("/v1/sessions/") {
        if method != "DELETE" {
            return Err(method_not_allowed(method, "DELETE"));
        }
        query::no_parameters(query).map_err(bad_request)?;
        let close = id.parse().map(Route::Close);
        return close.map_err(|()| RequestError::new(404, "no such session; GET /v1/sessions lists the IDs"));
    }
    if path == "/v1/revocations" {
        if method != "POST" {
            return Err(method_not_allowed(method, "POST"));
        }
        return query::revocation(query).map(Route::Revoke).map_err(bad_request);
    }
    let plain = |route: Route| query::no_parameters(query).map(|()| route);
    let routed = match path {
        "/" => plain(Route::Index),
        "/healthz" => plain(Route::Health),
        "/readyz" => plain(Route::Ready),
        "/metrics" => plain(Route::Metrics),
        "/v1/shards" => plain(Route::Shards),
        "/v1/sources" => plain(Route::Sources),
        "/v1/tenants" => plain(Route::Tenants),
        "/v1/topics" => query::topics(query).map(Route::Topics),
        "/v1/sessions" => query::sessions(query).map(Route::Sessions),
        "/v1/latency" => query::latency(query).map(Route::Latency),
        _ => return Err(RequestError::new(404, "no such path; GET / lists the endpoints")),
    };
    match method {
        "GET" | "HEAD" => routed.map_err(bad_request),
        _ => Err(method_not_allowed(method, READ_METHODS)),
    }
}

fn method_not_allowed(method: &str, allow: &'static str) -> RequestError {
    let method: String = method.chars().take(32).collect();
    let message = format!("method {method} is not allowed here; use {allow}");
    RequestError { allow: Some(allow), ..RequestError::new(405, message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(method: &str, path: &str, query: &str) -> u16 {
        route(method, path, query).map_or_else(|error| error.status, |_| 200)
    }

    #[test]
    fn every_endpoint_in_the_index_exists() {
        for line in INDEX.lines().skip(1) {
            let mut words = line.split_whitespace();
            let (method, path) = (words.next().unwrap(), words.next().unwrap());
            let query = if path == "/v1/revocations" { "jti=7" } else { "" };
            assert_eq!(status(method, &path.replace("ID", "0-1f"), query), 200, "{line}");
            assert_eq!(status("PATCH", path, ""), 405, "{line}");
        }
    }

    #[test]
    fn unknown_path_is_404_wrong_method_405_invalid_query_400() {
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
            ("GET", "/v1/revocations", "jti=7", 405),
            ("POST", "/v1/revocations", "", 400),
            ("GET", "/metrics", "x=1", 400),
            ("GET", "/v1/sessions", "limit=0", 400),
            ("HEAD", "/metrics", "", 200),
        ] {
            assert_eq!(status(method, path, query), expected, "{method} {path}?{query}");
        }
        assert_eq!(route("PUT", "/healthz", "").unwrap_err().allow, Some("GET, HEAD"));
    }
}
