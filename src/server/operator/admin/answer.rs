//! From a request to its response.

use std::sync::Arc;

use http_body_util::Full;
use hyper::{
    Method, Request, Response,
    body::Bytes,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, ORIGIN, RETRY_AFTER},
};
use serde::Serialize;
use serde_json::json;

use super::{ask::Answers, process};
use crate::operator::{
    admin::{
        Stage,
        latency::{LatencyView, counts, hgrm},
        listener::Office,
        metrics::{self, Scrape, ShardSample},
        overview::{Overview, ShardView},
        query::{LatencyFormat, Until},
        route::{self, INDEX, Refusal, Route, SessionName},
        views::{SessionView, TopicView, merged},
    },
    control::Question,
};
use tickcast_core::{
    metrics::latency::Latency,
    shard::survey::{SessionsQuery, ShardState, TopicsQuery},
};
use tickcast_proto::ids::TopicId;

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
/// When to ask again whoever got 503.
const RETRY_AFTER_SECONDS: &str = "1";

/// What goes back.
struct Reply {
    status: u16,
    content_type: &'static str,
    allow: Option<&'static str>,
    body: Vec<u8>,
}

impl Reply {
    fn text(text: impl Into<Vec<u8>>) -> Reply {
        Reply { status: 200, content_type: TEXT, allow: None, body: text.into() }
    }

    fn json(status: u16, value: &impl Serialize) -> Reply {
        // Only maps with keys that are no strings cannot be written, and there are none.
        let mut body = serde_json::to_vec(value).unwrap_or_default();
        body.push(b'\n');
        Reply { status, content_type: JSON, allow: None, body }
    }

    fn refusal(refusal: &Refusal) -> Reply {
        let reply = Reply::json(refusal.status, &json!({ "error": refusal.text }));
        Reply { allow: refusal.allow, ..reply }
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
        if self.status == 503 {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
        }
        response
    }
}

impl Office {
    /// What a request is for. Nothing is asked of anybody for one that is refused.
    ///
    /// Browsers send `Origin` with every request that is neither GET nor HEAD (Fetch standard, 3.2): no page closes sessions,
    /// whatever address it came to.
    pub(super) fn routed<B>(&self, request: &Request<B>) -> Result<Route, Refusal> {
        if self.refuses_host(request) {
            return Err(Refusal::new(
                403,
                "this listener answers to addresses and to localhost alone (Host)",
            ));
        }
        if request.method() == Method::DELETE && request.headers().contains_key(ORIGIN) {
            return Err(Refusal::new(403, "not from a page in a browser (Origin)"));
        }
        let uri = request.uri();
        route::route(request.method().as_str(), uri.path(), uri.query().unwrap_or_default())
    }

    /// Answers it.
    pub(super) async fn answer(&self, routed: Result<Route, Refusal>) -> Response<Full<Bytes>> {
        let reply = match routed {
            Ok(route) => self.reply(route).await,
            Err(refusal) => Reply::refusal(&refusal),
        };
        reply.into_response()
    }

    /// On a loopback address, whether the request came for another name: a page that a browser was made to load from
    /// elsewhere.
    fn refuses_host<B>(&self, request: &Request<B>) -> bool {
        let named = request.headers().get(HOST).map(HeaderValue::to_str);
        let host = request.uri().authority().map(|authority| authority.as_str());
        let is_own = |host: &str| route::is_own_host(host);
        self.is_local
            && (host.is_some_and(|host| !is_own(host)) || named.is_some_and(|named| !named.is_ok_and(is_own)))
    }

    async fn reply(&self, route: Route) -> Reply {
        let stage = self.stage();
        match route {
            Route::Index => Reply::text(INDEX),
            Route::Health => Reply::json(200, &json!({ "alive": true })),
            Route::Ready if stage == Stage::Serving => Reply::json(200, &json!({ "ready": true })),
            Route::Ready => Reply::json(503, &json!({ "ready": false, "reason": stage.name() })),
            Route::Metrics => self.metrics().await,
            Route::Shards => self.shards().await,
            // There are no shards to be asked.
            _ if stage == Stage::Starting => Reply::refusal(&Refusal::new(503, stage.name())),
            Route::Topics(query) => self.topics(query).await,
            Route::Sessions(query) => self.sessions(query).await,
            Route::Latency(format) => self.latency(format).await,
            Route::Close(name) => self.close(name).await,
        }
    }

    /// 503 unless all shards have answered. While they stop, one after the other, those that have ended have nothing to tell.
    fn status(&self, missing: &[u16]) -> u16 {
        if missing.is_empty() || self.stage() == Stage::Draining { 200 } else { 503 }
    }

    /// Of shards.
    fn of_shards(&self, missing: &[u16], value: &impl Serialize) -> Reply {
        Reply::json(self.status(missing), value)
    }

    async fn states(&self) -> Answers<Box<ShardState>> {
        if self.stage() == Stage::Starting {
            return Answers { found: Vec::new(), missing: Vec::new() };
        }
        self.ask(None, |_, answer| Question::State(answer)).await
    }

    /// 200 whoever answers: counters need no answer, and a scrape that fails shows nothing of what went wrong.
    async fn metrics(&self) -> Reply {
        let states = self.states().await;
        let samples = self.sights.shards.iter().enumerate().map(|(shard, (_, counters))| ShardSample {
            shard: shard as u16,
            counters,
            state: states.of(shard).map(|state| &**state),
        });
        let text = metrics::text(&Scrape {
            stage: self.stage(),
            shards: &samples.collect::<Vec<_>>(),
            sources: &self.sights.sources,
            process: process::sample(self.started_seconds),
        });
        Reply { content_type: metrics::CONTENT_TYPE, ..Reply::text(text) }
    }

    async fn shards(&self) -> Reply {
        let states = self.states().await;
        let views = self.sights.shards.iter().enumerate().map(|(shard, (core, counters))| {
            ShardView::new(shard as u16, *core, counters, states.of(shard).map(|state| &**state))
        });
        let process = process::sample(self.started_seconds);
        let overview = Overview::new(self.stage(), &process, self.uptime_seconds(), views.collect());
        self.of_shards(&overview.unanswered, &overview)
    }

    async fn sessions(&self, query: SessionsQuery) -> Reply {
        let answers = self.ask(None, move |_, answer| Question::Sessions(query, answer)).await;
        let found: Vec<SessionView> = answers.found.into_iter().flat_map(|(_, views)| views).collect();
        let views = merged(found, query.limit, |view| view.rank, |view| &view.id);
        let unanswered = answers.missing;
        self.of_shards(&unanswered, &json!({ "sessions": views, "unanswered": unanswered }))
    }

    async fn topics(&self, query: TopicsQuery) -> Reply {
        let limit = query.limit;
        let answers = self.ask(None, move |_, answer| Question::Topics(query.clone(), answer)).await;
        let found: Vec<TopicView> = answers.found.into_iter().flat_map(|(_, views)| views).collect();
        let mut views = merged(found, limit, |view| view.rank, |view| &view.topic);
        let ids: Arc<[TopicId]> = views.iter().map(|view| TopicId(view.id)).collect();
        let takers = self.ask(None, move |_, answer| Question::Takers(ids.clone(), answer)).await;
        for (view, at) in views.iter_mut().zip(0..) {
            let of_shards =
                takers.found.iter().map(|(_, counts)| counts.get(at).copied().unwrap_or_default());
            view.sessions = of_shards.sum();
        }
        let mut unanswered = answers.missing;
        unanswered.extend(takers.missing);
        unanswered.sort_unstable();
        unanswered.dedup();
        self.of_shards(&unanswered, &json!({ "topics": views, "unanswered": unanswered }))
    }

    async fn latency(&self, format: LatencyFormat) -> Reply {
        let states = self.states().await;
        let mut all = Latency::default();
        states.found.iter().for_each(|(_, state)| all.merge(&state.latency));
        match format {
            LatencyFormat::Hgrm(until) => {
                let status = self.status(&states.missing);
                return Reply { status, ..Reply::text(hgrm(all.histogram(until))) };
            }
            LatencyFormat::Counts => {
                let value = json!({
                    "unit": "microseconds",
                    "sequenced": counts(all.histogram(Until::Sequenced)),
                    "sent": counts(all.histogram(Until::Sent)),
                    "unanswered": states.missing,
                });
                return self.of_shards(&states.missing, &value);
            }
            LatencyFormat::Json => {}
        }
        let of_shard =
            states.found.iter().map(|(shard, state)| LatencyView::of(Some(shard.0), &state.latency));
        let value = json!({
            "unit": "microseconds",
            "shards": of_shard.collect::<Vec<_>>(),
            "all": LatencyView::of(None, &all),
            "unanswered": states.missing,
        });
        self.of_shards(&states.missing, &value)
    }

    async fn close(&self, name: SessionName) -> Reply {
        let SessionName { shard, id } = name;
        if usize::from(shard.0) >= self.sights.shards.len() {
            return Reply::refusal(&Refusal::new(404, format!("no session {name}: no such shard")));
        }
        let answers = self.ask(Some(shard), move |_, answer| Question::Close(id, answer)).await;
        match answers.found.first() {
            Some((_, true)) => {
                ::log::info!("session {name} closed by the operator");
                Reply::json(200, &json!({ "closed": name.to_string() }))
            }
            Some((_, false)) => Reply::refusal(&Refusal::new(404, format!("no session {name}"))),
            None => Reply::refusal(&Refusal::new(503, format!("shard {} does not answer", shard.0))),
        }
    }
}
