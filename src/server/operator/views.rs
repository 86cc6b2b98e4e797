//! Sessions and topics as the admin API reports them. The shards build these rows; the admin listener serializes them.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::Serialize;

use tickcast_core::shard::survey::{SessionSummary, TopicSummary};
use tickcast_proto::ids::ShardId;

/// A session ID that is unique in the server, written `SHARD-ID` with the ID in hexadecimal, as in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlobalSessionId {
    /// The shard that serves the session.
    pub shard: ShardId,
    /// The session's ID on that shard.
    pub id: u64,
}

impl fmt::Display for GlobalSessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}", self.shard.0, self.id)
    }
}

impl FromStr for GlobalSessionId {
    type Err = ();

    fn from_str(text: &str) -> Result<GlobalSessionId, ()> {
        let (shard, id) = text.split_once('-').ok_or(())?;
        // parse() would also accept a sign.
        let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_plain(shard) || !is_plain(id) {
            return Err(());
        }
        let shard = ShardId(shard.parse().map_err(|_| ())?);
        Ok(GlobalSessionId { shard, id: u64::from_str_radix(id, 16).map_err(|_| ())? })
    }
}

/// A session in `/v1/sessions`.
#[derive(Clone, Debug, Serialize)]
pub struct SessionView {
    /// The [`GlobalSessionId`], as `DELETE /v1/sessions/ID` takes it.
    pub id: String,
    /// The shard that serves it.
    pub shard: u16,
    /// The identity its client claims.
    pub identity: Option<String>,
    /// Its tenant; empty: the default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    /// The peer's address. `None` before Linux 6.8, where a registered file cannot be turned back into a descriptor.
    pub address: Option<SocketAddr>,
    /// The encoding of its messages.
    pub encoding: &'static str,
    /// `handshake`, `open` or `ending`.
    pub state: &'static str,
    /// Patterns it is subscribed to.
    pub subscriptions: usize,
    /// Topics that match its patterns.
    pub topics: usize,
    /// Bytes queued for it in the server, not counting the kernel's socket buffer.
    pub outbox_bytes: usize,
    /// How long the current SEND has waited for room in the socket, milliseconds; 0 if it is not waiting.
    pub lag_ms: u64,
    /// Topics whose ticks are held back until there is room.
    pub held_topics: usize,
    /// Ticks announced to it as conflated.
    pub conflated: u64,
    /// Ticks announced to it as lost, in gaps.
    pub dropped: u64,
    /// TCP's smoothed round-trip time, microseconds (TCP_INFO). `None` wherever `address` is.
    pub rtt_us: Option<u32>,
    /// The sort key.
    #[serde(skip)]
    pub rank: u64,
}

impl SessionView {
    /// A row without the values that only the kernel has: the address and the round-trip time.
    pub fn new(shard: ShardId, summary: &SessionSummary) -> SessionView {
        SessionView {
            id: GlobalSessionId { shard, id: summary.id.0 }.to_string(),
            shard: shard.0,
            identity: summary.identity.clone(),
            tenant: summary.tenant.clone(),
            address: None,
            encoding: summary.encoding,
            state: summary.state,
            subscriptions: summary.subscriptions,
            topics: summary.topics,
            outbox_bytes: summary.outbox_bytes,
            lag_ms: summary.lag_ms,
            held_topics: summary.held_topics,
            conflated: summary.conflated,
            dropped: summary.dropped,
            rtt_us: None,
            rank: summary.rank,
        }
    }
}

/// A topic in `/v1/topics`.
#[derive(Clone, Debug, Serialize)]
pub struct TopicView {
    /// Its name.
    pub topic: String,
    /// Its tenant; empty: the default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    /// Its ID on the wire.
    pub id: u32,
    /// The shard that sequences it.
    pub home: u16,
    /// The last sequence number, which is also the number of ticks so far.
    pub sequence: u64,
    /// Ticks in its history.
    pub history_ticks: usize,
    /// Keys that have a last value.
    pub keys: usize,
    /// Bytes of its history.
    pub history_bytes: usize,
    /// Sessions subscribed to it, on all shards.
    pub sessions: u64,
    /// The sort key.
    #[serde(skip)]
    pub rank: u64,
}

impl From<TopicSummary> for TopicView {
    fn from(summary: TopicSummary) -> TopicView {
        TopicView {
            topic: summary.name,
            tenant: summary.tenant,
            id: summary.id.0,
            home: summary.home.0,
            sequence: summary.sequence.0,
            history_ticks: summary.history_ticks,
            keys: summary.keys,
            history_bytes: summary.history_bytes,
            sessions: 0,
            rank: summary.rank,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A row with a different value in each numeric field.
    pub fn session_view() -> SessionView {
        SessionView {
            id: "0-1".into(),
            shard: 0,
            identity: None,
            tenant: String::new(),
            address: Some("127.0.0.1:9".parse().unwrap()),
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
        }
    }

    #[test]
    fn a_session_serializes_with_null_for_unknown_fields() {
        let view = SessionView { rtt_us: None, ..session_view() };
        assert_eq!(
            serde_json::to_string(&view).unwrap(),
            r#"{"id":"0-1","shard":0,"identity":null,"address":"127.0.0.1:9","encoding":"json","state":"open","#
                .to_owned()
                + r#""subscriptions":1,"topics":2,"outbox_bytes":3,"lag_ms":4,"held_topics":5,"conflated":6,"#
                + r#""dropped":7,"rtt_us":null}"#
        );
    }

    #[test]
    fn global_session_ids_round_trip() {
        let id = GlobalSessionId { shard: ShardId(3), id: 0x1_0000_00ff };
        assert_eq!(id.to_string(), "3-1000000ff");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "-", "1-", "-1", "1-2-3", "x-1", "1-x", "1-fffffffffffffffff"] {
            assert_eq!(bad.parse::<GlobalSessionId>(), Err(()), "{bad}");
        }
    }
}
