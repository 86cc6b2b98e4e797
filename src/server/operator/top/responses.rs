//! What the admin listener answers, as far as it is looked at.

use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};

use super::format::reason;
use tickcast_core::shard::survey::SessionSort;

/// All answers of one look.
#[derive(Clone, Debug)]
pub struct Answers {
    /// When the shards' answer was there, CLOCK_MONOTONIC: rates are of the time between two of these.
    pub received_ns: u64,
    /// The server and its shards.
    pub server: Server,
    /// The topics with the most ticks, or why there are none: a server that starts has none yet.
    pub topics: Result<Topics, String>,
    /// What the sessions were chosen by.
    pub sort: SessionSort,
    /// The first sessions of that order.
    pub sessions: Result<Sessions, String>,
    /// Latencies since the start.
    pub latency: Result<Latency, String>,
}

/// `/v1/shards`.
#[derive(Clone, Debug, Deserialize)]
pub struct Server {
    /// Of the program.
    pub version: String,
    /// What it is at.
    pub stage: String,
    /// When the process started: another value is another process. `None` from versions that do not tell.
    pub start_seconds: Option<f64>,
    /// Since the process started.
    pub uptime_seconds: f64,
    /// Resident memory.
    pub resident_bytes: Option<u64>,
    /// Open descriptors.
    pub descriptors: Option<u64>,
    /// Each shard.
    pub shards: Vec<Shard>,
    /// Shards that did not answer in time.
    pub unanswered: Vec<u16>,
}

/// A shard.
#[derive(Clone, Debug, Deserialize)]
pub struct Shard {
    /// Which.
    pub shard: u16,
    /// The core it is pinned to.
    pub core: usize,
    /// What it has counted.
    pub counters: Counted,
    /// What it said of itself.
    pub state: Option<State>,
}

/// Counters, by the labels of [`tickcast_core::metrics::counters::Counter`].
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "Counter has them")]
pub struct Counted {
    pub sessions_open: u64,
    pub sessions_subscribed: u64,
    pub ticks_sequenced: u64,
    pub ticks_delivered: u64,
    pub ticks_conflated: u64,
    pub ticks_dropped: u64,
    pub bytes_sent: u64,
    pub sends: u64,
    pub sends_parked: u64,
    pub busy_ns: u64,
    pub idle_ns: u64,
}

/// What a shard says of itself when asked.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct State {
    /// Bytes in the rings from other shards that it has not taken in.
    pub mesh_ring_bytes: u64,
    /// Bytes in the rings from the server's own sources that it has not taken in.
    pub source_ring_bytes: u64,
    /// Topics it sequences.
    pub topics: u64,
    /// Sessions with something to send.
    pub sessions_waiting: u64,
}

/// `/v1/topics`.
#[derive(Clone, Debug, Deserialize)]
pub struct Topics {
    /// Those with the most ticks.
    pub topics: Vec<Topic>,
}

/// A topic.
#[derive(Clone, Debug, Deserialize)]
pub struct Topic {
    /// Its name, as its publisher chose it.
    pub topic: String,
    /// The shard that sequences it.
    pub home: u16,
    /// Ticks that it ever had.
    pub sequence: u64,
    /// Recent ticks that are kept.
    pub history_ticks: u64,
    /// Keys whose newest tick is kept.
    pub keys: u64,
    /// Memory of the recent ticks.
    pub history_bytes: u64,
    /// Sessions that take it.
    pub sessions: u64,
}

/// `/v1/sessions`.
#[derive(Clone, Debug, Deserialize)]
pub struct Sessions {
    /// The first of the order that was asked for.
    pub sessions: Vec<Session>,
}

/// A session.
#[derive(Clone, Debug, Deserialize)]
pub struct Session {
    /// Its name, for DELETE.
    pub id: String,
    /// Who its client says it is.
    pub identity: Option<String>,
    /// Its peer, where the kernel says.
    pub address: Option<String>,
    /// How its messages are encoded.
    pub encoding: String,
    /// `handshake`, `open` or `ending`.
    pub state: String,
    /// Topics it takes.
    pub topics: u64,
    /// Bytes that wait for it.
    pub outbox_bytes: u64,
    /// How long its socket has had no room.
    pub lag_ms: u64,
    /// Topics whose ticks are held back.
    pub held_topics: u64,
    /// Ticks that it was told a newer one stands for.
    pub conflated: u64,
    /// Ticks that it was told are lost.
    pub dropped: u64,
    /// The round trip, where the kernel says.
    pub rtt_us: Option<u64>,
}

/// `/v1/latency?format=counts`: microseconds, ascending, and how often each was seen since the start.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Latency {
    /// Until a tick had its sequence.
    pub sequenced: Vec<(u64, u64)>,
    /// Until its turn's SENDs were with the kernel.
    pub sent: Vec<(u64, u64)>,
    /// Shards that did not answer in time.
    pub unanswered: Vec<u16>,
}

/// The body of an answer. With 503 it has what there is, if that is anything.
///
/// # Errors
/// The server's own words, or that it is another version's, or none.
pub fn parse<T: DeserializeOwned>(status: u16, body: &[u8]) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Refused {
        error: String,
    }
    let is_answer = matches!(status, 200 | 503);
    let error = match serde_json::from_slice(body) {
        Ok(parsed) if is_answer => return Ok(parsed),
        parsed => parsed.err(),
    };
    if let Ok(refused) = serde_json::from_slice::<Refused>(body) {
        return Err(reason(&refused.error));
    }
    // What an admin listener answers, but with other fields.
    let is_object =
        body.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<IgnoredAny>(body).is_ok();
    Err(match error {
        Some(error) if is_answer && is_object => format!(
            "what answers is another version of tickcast than this, {}: {}",
            env!("CARGO_PKG_VERSION"),
            reason(&error.to_string())
        ),
        _ => format!("what answers is no admin listener of tickcast (status {status})"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::admin::{
        Stage,
        metrics::ProcessSample,
        overview::{Overview, ShardView},
        views::{SessionView, TopicView},
    };
    use tickcast_core::{
        metrics::counters::{Counter, Counters},
        shard::survey::ShardState,
    };

    #[test]
    fn what_the_server_writes_is_read() {
        let counters = Counters::default();
        (1..).zip(Counter::ALL).for_each(|(n, &counter)| counters.add(counter, n));
        let state = ShardState {
            mesh_ring_bytes: 1,
            source_ring_bytes: 2,
            mesh_stage_bytes: 3,
            topics: 4,
            topics_taken: 5,
            patterns: 6,
            sessions_waiting: 7,
            egress_log_bytes: 8,
            latency: Default::default(),
        };
        let shards =
            vec![ShardView::new(0, 3, &counters, Some(&state)), ShardView::new(1, 4, &counters, None)];
        let process = ProcessSample { start_seconds: 1_793_322_000.13, ..ProcessSample::default() };
        let overview = Overview::new(Stage::Serving, &process, 9.5, shards);
        let server: Server = parse(503, &serde_json::to_vec(&overview).unwrap()).unwrap();
        assert_eq!((&*server.stage, server.uptime_seconds, server.unanswered), ("serving", 9.5, vec![1]));
        assert_eq!(server.start_seconds, Some(1_793_322_000.13));
        let (of, state) = (server.shards[0].counters, server.shards[0].state.unwrap());
        for (counter, value) in [
            (Counter::SessionsOpen, of.sessions_open),
            (Counter::SessionsSubscribed, of.sessions_subscribed),
            (Counter::TicksSequenced, of.ticks_sequenced),
            (Counter::TicksDelivered, of.ticks_delivered),
            (Counter::TicksConflated, of.ticks_conflated),
            (Counter::TicksDropped, of.ticks_dropped),
            (Counter::BytesSent, of.bytes_sent),
            (Counter::Sends, of.sends),
            (Counter::SendsParked, of.sends_parked),
            (Counter::BusyNs, of.busy_ns),
            (Counter::IdleNs, of.idle_ns),
        ] {
            assert_eq!(counters.value(counter), value, "{counter:?}");
        }
        assert_eq!(
            (state.mesh_ring_bytes, state.source_ring_bytes, state.topics, state.sessions_waiting),
            (1, 2, 4, 7)
        );
        assert!(server.shards[1].state.is_none() && server.shards[1].core == 4);
    }

    #[test]
    fn topics_sessions_and_latencies_are_read() {
        let topic = TopicView {
            topic: "a.b".into(),
            id: 1,
            home: 2,
            sequence: 3,
            history_ticks: 4,
            keys: 5,
            history_bytes: 6,
            sessions: 7,
            rank: 8,
        };
        let body = serde_json::json!({ "topics": [topic], "unanswered": [] }).to_string();
        let topics: Topics = parse(200, body.as_bytes()).unwrap();
        assert_eq!((topics.topics[0].sequence, topics.topics[0].sessions), (3, 7));
        let session = SessionView {
            id: "0-1".into(),
            shard: 0,
            identity: None,
            address: Some("[::1]:9".parse().unwrap()),
            encoding: "json",
            state: "open",
            subscriptions: 1,
            topics: 2,
            outbox_bytes: 3,
            lag_ms: 4,
            held_topics: 5,
            conflated: 6,
            dropped: 7,
            rtt_us: Some(8),
            rank: 9,
        };
        let body = serde_json::json!({ "sessions": [session], "unanswered": [] }).to_string();
        let session = parse::<Sessions>(200, body.as_bytes()).unwrap().sessions.remove(0);
        assert_eq!(
            (session.address.as_deref(), session.lag_ms, session.rtt_us),
            (Some("[::1]:9"), 4, Some(8))
        );
        let body = br#"{"unit":"microseconds","sequenced":[[1,2]],"sent":[],"unanswered":[]}"#;
        assert_eq!(parse::<Latency>(200, body).unwrap().sequenced, [(1, 2)]);
    }

    #[test]
    fn what_is_no_answer_is_told_in_the_servers_words_or_as_what_it_is() {
        let refused = |status, body: &str| parse::<Topics>(status, body.as_bytes()).unwrap_err();
        assert_eq!(refused(503, r#"{"error":"starting"}"#), "starting");
        let long = format!(r#"{{"error":"{}"}}"#, "\\u001b".repeat(1_000));
        assert!(refused(400, &long).starts_with(r"\u{1b}\u{1b}") && refused(400, &long).len() <= 603);
        for (status, body) in
            [(200, "<html>"), (404, ""), (200, "[]"), (200, "ok"), (404, r#"{"topics":[]}"#)]
        {
            assert!(refused(status, body).contains("no admin listener"), "{status} {body}");
        }
    }

    #[test]
    fn what_another_version_answers_is_told_as_that_with_what_is_missing_or_wrong() {
        let said = |body: &str| parse::<Topics>(200, body.as_bytes()).unwrap_err();
        let renamed = said(r#"{"subjects":[],"unanswered":[]}"#);
        assert!(renamed.contains("another version of tickcast") && renamed.contains("`topics`"), "{renamed}");
        let steering = said(&format!(r#"{{"topics":"{}"}}"#, "\\u001b]0;x".repeat(1_000)));
        assert!(steering.contains("another version"), "{steering}");
        assert!(!steering.contains('\x1b') && steering.len() < 1_200, "{steering}");
        // What an older server does not tell is not needed.
        let overview = Overview::new(Stage::Serving, &ProcessSample::default(), 9.5, Vec::new());
        let mut older = serde_json::to_value(&overview).unwrap();
        older.as_object_mut().unwrap().remove("start_seconds").unwrap();
        let server: Server = parse(200, older.to_string().as_bytes()).unwrap();
        assert_eq!(server.start_seconds, None);
    }
}
