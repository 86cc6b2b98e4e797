//! Request handlers: from a request to its response.

use std::sync::Arc;

use http_body_util::Full;
use hyper::{
    Method, Request, Response,
    body::Bytes,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, ORIGIN, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde::Serialize;
use serde_json::json;

use super::{
    access::{Peer, Who},
    audit::Change,
    context::AdminContext,
    host,
    latency::{LatencyView, counts, hgrm},
    metrics::{self, Scrape, ShardSample},
    overview::{Overview, ShardView, SinkView},
    process_sample,
    query::{LatencyFormat, RevocationQuery},
    route::{self, INDEX, RequestError, Route},
    shard_replies::ShardReplies,
    sources::{self, SourceView},
    stage::Stage,
};
use crate::{
    clock,
    limits::{REVOCATION_MS_HIGHEST, REVOCATIONS_MAX},
    logging,
    operator::{
        control::ShardRequest,
        tenants::views,
        views::{GlobalSessionId, SessionView, TopicView},
    },
};
use tickcast_core::{
    metrics::latency::{Latency, Until},
    principal::Revocation,
    shard::survey::{SessionsQuery, ShardState, TopicsQuery},
};
use tickcast_proto::ids::{ShardId, TopicId};

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const NS_PER_S: u64 = 1_000_000_000;
/// When a client that got 503 should try again.
const RETRY_AFTER_SECONDS: &str = "1";

/// A response before its conversion to hyper's type.
struct Reply {
    status: u16,
    content_type: &'static str,
    allow: Option<&'static str>,
    challenge: Option<&'static str>,
    body: Vec<u8>,
}

impl Reply {
    fn text(text: impl Into<Vec<u8>>) -> Reply {
        Reply { status: 200, content_type: TEXT, allow: None, challenge: None, body: text.into() }
    }

    fn json(status: u16, value: &impl Serialize) -> Reply {
        let body = serde_json::to_vec(value);
        debug_assert!(body.is_ok(), "only maps with non-string keys cannot be serialized");
        let mut body = body.unwrap_or_default();
        body.push(b'\n');
        Reply { status, content_type: JSON, allow: None, challenge: None, body }
    }

    fn error(error: &RequestError) -> Reply {
        let reply = Reply::json(error.status, &json!({ "error": error.message }));
        Reply { allow: error.allow, challenge: error.challenge, ..reply }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.body)));
        *response.status_mut() = http::StatusCode::from_u16(self.status).unwrap_or_default();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if let Some(challenge) = self.challenge {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if self.status == 503 {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
        }
        response
    }
}

impl AdminContext {
    /// Finds the endpoint of a request and who sends it, or refuses it before any shard is involved.
    /// Browsers send `Origin` with every request other than GET and HEAD (Fetch standard, 3.2). Refusing it prevents web pages
    /// from closing sessions, whatever address they were loaded from.
    pub(super) fn route<B>(&self, request: &Request<B>, peer: &Peer) -> Result<(Route, Who), RequestError> {
        let (uri, hosts) = (request.uri(), request.headers().get_all(HOST));
        host::check(request.version(), hosts.iter(), uri.authority(), self.is_local)?;
        let changes = ![Method::GET, Method::HEAD].contains(request.method());
        if changes && request.headers().contains_key(ORIGIN) {
            return Err(RequestError::new(403, "web pages may not change anything (Origin header present)"));
        }
        let who = self.handles.access.check(peer, request.method(), uri.path(), request.headers())?;
        let route = route::route(request.method().as_str(), uri.path(), uri.query().unwrap_or_default())?;
        Ok((route, who))
    }

    /// Responds to a routed or refused request.
    pub(super) async fn respond(
        &self,
        routed: Result<(Route, Who), RequestError>,
        peer: &Peer,
    ) -> Response<Full<Bytes>> {
        let reply = match routed {
            Ok((route, who)) => self.reply(route, (&who, peer)).await,
            Err(error) => Reply::error(&error),
        };
        reply.into_response()
    }

    async fn reply(&self, route: Route, by: (&Who, &Peer)) -> Reply {
        let stage = self.stage();
        match route {
            Route::Index => Reply::text(INDEX),
            Route::Health => Reply::json(200, &json!({ "alive": true, "sources": self.source_states() })),
            Route::Ready => self.ready(stage),
            Route::Metrics => self.metrics().await,
            Route::Shards => self.shards().await,
            Route::Sources => Reply::json(200, &json!({ "sources": self.source_views() })),
            Route::Tenants => Reply::json(200, &json!({ "tenants": views(&self.handles.tenants.get()) })),
            // There are no shards to query yet.
            _ if stage == Stage::Starting => Reply::error(&RequestError::new(503, stage.name())),
            Route::Topics(query) => self.topics(query).await,
            Route::Sessions(query) => self.sessions(query).await,
            Route::Latency(format) => self.latency(format).await,
            Route::Close(id) => self.close(id, by).await,
            Route::Revoke(query) => self.revoke(query, by).await,
        }
    }

    /// Whether clients are accepted: the server serves, no shard is overloaded (by option), and every required source is fit.
    fn ready(&self, stage: Stage) -> Reply {
        let sources = self.source_states();
        let missing = sources::missing(&self.handles.sources, clock::monotonic_ns(), self.created_ns);
        let reason = match stage {
            Stage::Serving if self.is_overloaded() => "overloaded".to_owned(),
            Stage::Serving if !missing.is_empty() => format!("required sources: {}", missing.join(", ")),
            Stage::Serving if self.is_reading_back() => "a source reads back its log".to_owned(),
            Stage::Serving => return Reply::json(200, &json!({ "ready": true, "sources": sources })),
            _ => stage.name().to_owned(),
        };
        Reply::json(503, &json!({ "ready": false, "reason": reason, "sources": sources }))
    }

    fn source_states(&self) -> serde_json::Map<String, serde_json::Value> {
        sources::states(&self.handles.sources, clock::monotonic_ns(), self.created_ns)
    }

    fn source_views(&self) -> Vec<SourceView> {
        let now_ns = clock::monotonic_ns();
        let view = |status| SourceView::new(status, now_ns, self.created_ns);
        self.handles.sources.iter().map(view).collect()
    }

    /// 503 unless all shards replied. While draining, shards end one after the other, so missing replies are not an error.
    fn status(&self, unanswered: &[u16]) -> u16 {
        if unanswered.is_empty() || self.stage() == Stage::Draining { 200 } else { 503 }
    }

    fn json_of_shards(&self, unanswered: &[u16], value: &impl Serialize) -> Reply {
        Reply::json(self.status(unanswered), value)
    }

    async fn states(&self) -> ShardReplies<Box<ShardState>> {
        if self.stage() == Stage::Starting {
            return ShardReplies::none();
        }
        self.query_shards(None, ShardRequest::State).await
    }

    /// Always 200: counters need no reply, and a failed scrape would hide what is wrong.
    async fn metrics(&self) -> Reply {
        let states = self.states().await;
        let samples = self.handles.shards.iter().enumerate().map(|(shard, (_, counters))| ShardSample {
            shard: shard as u16,
            counters,
            state: states.get(shard).map(|state| &**state),
        });
        let tenants = self.handles.tenants.get();
        let text = metrics::text(&Scrape {
            tenants: &tenants,
            node: &self.handles.node,
            stage: self.stage(),
            shards: &samples.collect::<Vec<_>>(),
            sources: &self.handles.sources,
            sinks: &self.handles.sinks,
            watched_since_ns: self.created_ns,
            certificates: &self.handles.certificates.get(),
            process: process_sample::sample(self.start_seconds),
            log_lines_dropped: logging::lines_dropped(),
            authority: self.handles.authority.as_deref(),
            admin_refused: &self.handles.access.refused(),
            now_ns: clock::monotonic_ns(),
        });
        Reply { content_type: metrics::CONTENT_TYPE, ..Reply::text(text) }
    }

    async fn shards(&self) -> Reply {
        let states = self.states().await;
        let views = self.handles.shards.iter().enumerate().map(|(shard, (core, counters))| {
            ShardView::new(shard as u16, *core, counters, states.get(shard).map(|state| &**state))
        });
        let process = process_sample::sample(self.start_seconds);
        let mut overview = Overview::new(self.stage(), &process, self.uptime_seconds(), views.collect());
        overview.node.clone_from(&self.handles.node);
        overview.sources = self.source_views();
        overview.sinks = self.handles.sinks.iter().map(SinkView::from).collect();
        self.json_of_shards(&overview.unanswered, &overview)
    }

    async fn sessions(&self, query: SessionsQuery) -> Reply {
        let limit = query.limit;
        let ShardReplies { replies, unanswered } =
            self.query_shards(None, move |reply| ShardRequest::Sessions(query.clone(), reply)).await;
        let rows: Vec<SessionView> = replies.into_iter().flat_map(|(_, views)| views).collect();
        let sessions = merge(rows, limit, |row| row.rank, |row| &row.id);
        self.json_of_shards(&unanswered, &json!({ "sessions": sessions, "unanswered": unanswered }))
    }

    async fn topics(&self, query: TopicsQuery) -> Reply {
        let limit = query.limit;
        let ShardReplies { replies, mut unanswered } =
            self.query_shards(None, move |reply| ShardRequest::Topics(query.clone(), reply)).await;
        let rows: Vec<TopicView> = replies.into_iter().flat_map(|(_, views)| views).collect();
        let mut topics = merge(rows, limit, |row| row.rank, |row| &row.topic);
        let ids: Arc<[TopicId]> = topics.iter().map(|topic| TopicId(topic.id)).collect();
        let counts =
            self.query_shards(None, move |reply| ShardRequest::SessionCounts(ids.clone(), reply)).await;
        debug_assert!(
            counts.replies.iter().all(|(_, counts)| counts.len() == topics.len()),
            "a shard replies with one count per topic"
        );
        for (topic, at) in topics.iter_mut().zip(0..) {
            let of_shards =
                counts.replies.iter().map(|(_, counts)| counts.get(at).copied().unwrap_or_default());
            topic.sessions = of_shards.sum();
        }
        unanswered.extend(counts.unanswered);
        unanswered.sort_unstable();
        unanswered.dedup();
        self.json_of_shards(&unanswered, &json!({ "topics": topics, "unanswered": unanswered }))
    }

    async fn latency(&self, format: LatencyFormat) -> Reply {
        let ShardReplies { replies, unanswered } = self.states().await;
        let mut all = Latency::default();
        replies.iter().for_each(|(_, state)| all.merge(&state.latency));
        let value = match format {
            LatencyFormat::Hgrm(until) => {
                return Reply { status: self.status(&unanswered), ..Reply::text(hgrm(all.histogram(until))) };
            }
            LatencyFormat::Counts => json!({
                "unit": "microseconds",
                "sequenced": counts(all.histogram(Until::Sequenced)),
                "sent": counts(all.histogram(Until::Sent)),
                "unanswered": unanswered,
            }),
            LatencyFormat::Json => {
                let of_shard = |(shard, state): &(ShardId, Box<ShardState>)| {
                    LatencyView::new(Some(shard.0), &state.latency)
                };
                json!({
                    "unit": "microseconds",
                    "shards": replies.iter().map(of_shard).collect::<Vec<_>>(),
                    "all": LatencyView::new(None, &all),
                    "unanswered": unanswered,
                })
            }
        };
        self.json_of_shards(&unanswered, &value)
    }

    async fn close(&self, session: GlobalSessionId, (who, peer): (&Who, &Peer)) -> Reply {
        let GlobalSessionId { shard, id } = session;
        let change = Change::begin(who, peer, format_args!("close session {session}"));
        if usize::from(shard.0) >= self.handles.shards.len() {
            change.end("no such session");
            let message = format!("no session {session}: there is no shard {}", shard.0);
            return Reply::error(&RequestError::new(404, message));
        }
        let closed = self.query_shards(Some(shard), move |reply| ShardRequest::Close(id, reply)).await;
        match closed.replies.first() {
            Some((_, true)) => {
                change.end("closed");
                Reply::json(200, &json!({ "closed": session.to_string() }))
            }
            Some((_, false)) => {
                change.end("no such session");
                Reply::error(&RequestError::new(404, format!("no session {session}")))
            }
            None => {
                change.end("its shard did not reply in time; it may close the session later");
                let message = format!("shard {} did not reply in time; try again", shard.0);
                Reply::error(&RequestError::new(503, message))
            }
        }
    }
}

impl AdminContext {
    /// Refuses the tokens of a subject, or one token, from now on; then closes the sessions that have them.
    async fn revoke(&self, query: RevocationQuery, (who, peer): (&Who, &Peer)) -> Reply {
        let Some(authority) = &self.handles.authority else {
            return Reply::error(&RequestError::new(404, "this server does not authenticate clients"));
        };
        let RevocationQuery { revocation, keep_ns } = query;
        let named = match &revocation {
            Revocation::Subject { tenant, subject } => json!({ "sub": subject, "tenant": tenant }),
            Revocation::TokenId(id) => json!({ "jti": id }),
        };
        let change = Change::begin(who, peer, format_args!("revoke {named}"));
        let now_s = clock::realtime_ns() / NS_PER_S;
        // Not shorter with ttl_max: a token without a time of issue is accepted when its end is near, however long it exists.
        let until_s = now_s + keep_ns.map_or(REVOCATION_MS_HIGHEST / 1_000, |ns| ns / NS_PER_S);
        if authority.revocations.add(&revocation, now_s, until_s).is_err() {
            let message = format!(
                "there are {REVOCATIONS_MAX} revocations already; use a shorter keep for the next ones"
            );
            change.end("not revoked: there are too many revocations");
            return Reply::error(&RequestError::new(503, message));
        }
        authority.count_revocation();
        let revocation = Arc::new(revocation);
        let ShardReplies { replies, unanswered } = self
            .query_shards(None, move |reply| ShardRequest::Revoke(revocation.clone(), now_s, reply))
            .await;
        let closed: usize = replies.iter().map(|(_, closed)| closed).sum();
        match unanswered.is_empty() {
            true => change.end(format_args!("revoked, {closed} sessions closed")),
            false => change.end(format_args!(
                "revoked, {closed} sessions closed, shards {unanswered:?} did not reply in time"
            )),
        }
        let body = json!({ "revoked": named, "until": until_s, "closed": closed, "unanswered": unanswered });
        self.json_of_shards(&unanswered, &body)
    }
}

/// The `limit` rows with the highest rank, from all shards; rows of equal rank in the order of `name`.
fn merge<V>(mut rows: Vec<V>, limit: usize, rank: impl Fn(&V) -> u64, name: impl Fn(&V) -> &str) -> Vec<V> {
    rows.sort_by(|one, other| rank(other).cmp(&rank(one)).then_with(|| name(one).cmp(name(other))));
    rows.truncate(limit);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_all_shards_are_merged_by_rank_and_truncated() {
        let rows = vec![(1, "c"), (9, "b"), (9, "a"), (4, "d")];
        let first: Vec<_> = merge(rows, 3, |row| row.0, |row| row.1);
        assert_eq!(first, [(9, "a"), (9, "b"), (4, "d")]);
    }
}
