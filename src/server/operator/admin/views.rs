//! Sessions, topics and shards as an operator sees them.

use std::net::SocketAddr;

use serde::Serialize;

use super::route::SessionName;
use tickcast_core::shard::survey::{SessionSummary, ShardState, TopicSummary};
use tickcast_proto::ids::ShardId;

/// A session.
#[derive(Clone, Debug, Serialize)]
pub struct SessionView {
    /// Its name, for DELETE.
    pub id: String,
    /// Who serves it.
    pub shard: u16,
    /// Who its client says it is.
    pub identity: Option<String>,
    /// Its peer. `None` where the kernel gives no descriptor of a registered file back (before Linux 6.8).
    pub address: Option<SocketAddr>,
    /// How its messages are encoded.
    pub encoding: &'static str,
    /// `handshake`, `open` or `ending`.
    pub state: &'static str,
    /// Patterns it holds.
    pub subscriptions: usize,
    /// Topics it takes.
    pub topics: usize,
    /// Bytes that wait for it, besides what the kernel has.
    pub outbox_bytes: usize,
    /// How long its socket has had no room for the SEND under way, milliseconds; 0: it has.
    pub lag_ms: u64,
    /// Topics whose ticks are held back until there is room.
    pub held_topics: usize,
    /// Ticks that it was told a newer one stands for.
    pub conflated: u64,
    /// Ticks that it was told are lost, in gaps.
    pub dropped: u64,
    /// The round trip as TCP smooths it, microseconds (TCP_INFO). `None` where the address is.
    pub rtt_us: Option<u32>,
    /// What it is sorted by.
    #[serde(skip)]
    pub rank: u64,
}

/// A topic.
#[derive(Clone, Debug, Serialize)]
pub struct TopicView {
    /// Its name.
    pub topic: String,
    /// Its number on the wire.
    pub id: u32,
    /// The shard that sequences it.
    pub home: u16,
    /// The last sequence: ticks that it ever had.
    pub sequence: u64,
    /// Recent ticks that are kept.
    pub history_ticks: usize,
    /// Keys whose newest tick is kept.
    pub keys: usize,
    /// Memory of the recent ticks.
    pub history_bytes: usize,
    /// Sessions that take it, on all shards.
    pub sessions: u64,
    /// What it is sorted by.
    #[serde(skip)]
    pub rank: u64,
}

/// What a shard says of itself when asked, besides its counters: [`ShardState`] without its histograms.
#[derive(Clone, Debug, Serialize)]
pub struct StateView {
    /// Bytes in the rings from other shards that it has not taken in.
    pub mesh_ring_bytes: usize,
    /// Bytes in the rings from the server's own sources that it has not taken in.
    pub source_ring_bytes: usize,
    /// Bytes that wait for room in the rings to other shards.
    pub mesh_stage_bytes: usize,
    /// Topics it sequences.
    pub topics: usize,
    /// Topics its sessions take.
    pub topics_taken: usize,
    /// Patterns its sessions hold.
    pub patterns: usize,
    /// Sessions with something to send.
    pub sessions_waiting: usize,
    /// Memory of its egress logs.
    pub egress_log_bytes: usize,
}

impl From<&ShardState> for StateView {
    fn from(state: &ShardState) -> StateView {
        StateView {
            mesh_ring_bytes: state.mesh_ring_bytes,
            source_ring_bytes: state.source_ring_bytes,
            mesh_stage_bytes: state.mesh_stage_bytes,
            topics: state.topics,
            topics_taken: state.topics_taken,
            patterns: state.patterns,
            sessions_waiting: state.sessions_waiting,
            egress_log_bytes: state.egress_log_bytes,
        }
    }
}

impl SessionView {
    /// A session of a shard as the shard sees it; what only the kernel knows is still missing.
    pub fn new(shard: ShardId, summary: &SessionSummary) -> SessionView {
        SessionView {
            id: SessionName { shard, id: summary.id.0 }.to_string(),
            shard: shard.0,
            identity: summary.identity.clone(),
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

impl From<TopicSummary> for TopicView {
    fn from(summary: TopicSummary) -> TopicView {
        TopicView {
            topic: summary.name,
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

/// The first `limit` of all shards' rows, the highest rank first; of equal ones as `name` has them.
pub fn merged<V>(
    mut rows: Vec<V>,
    limit: usize,
    rank: impl Fn(&V) -> u64,
    name: impl Fn(&V) -> &str,
) -> Vec<V> {
    rows.sort_by(|one, other| rank(other).cmp(&rank(one)).then_with(|| name(one).cmp(name(other))));
    rows.truncate(limit);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_several_shards_are_sorted_together_and_cut() {
        let rows = vec![(1, "c"), (9, "b"), (9, "a"), (4, "d")];
        let first: Vec<_> = merged(rows, 3, |row| row.0, |row| row.1);
        assert_eq!(first, [(9, "a"), (9, "b"), (4, "d")]);
    }

    #[test]
    fn a_session_is_json_with_null_for_what_is_not_known() {
        let view = SessionView {
            id: "0-1".into(),
            shard: 0,
            identity: None,
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
            rtt_us: None,
            rank: 8,
        };
        assert_eq!(
            serde_json::to_string(&view).unwrap(),
            r#"{"id":"0-1","shard":0,"identity":null,"address":"127.0.0.1:9","encoding":"json","state":"open","#
                .to_owned()
                + r#""subscriptions":1,"topics":2,"outbox_bytes":3,"lag_ms":4,"held_topics":5,"conflated":6,"#
                + r#""dropped":7,"rtt_us":null}"#
        );
    }
}
