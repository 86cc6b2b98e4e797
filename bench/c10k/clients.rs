//! Per-client counts: ticks received, announced losses and gaps.

use std::{
    io::{self, Write},
    net::SocketAddr,
};

use serde::Serialize;
use tickcast_client::TopicStats;
use tickcast_proto::ids::TopicId;

/// Most clients that the text report lists.
pub const WORST_CLIENTS: usize = 5;

/// Counts of one client since its first subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Ticks received.
    pub ticks: u64,
    /// Ticks that the server announced as replaced by a newer one.
    pub conflated: u64,
    /// Ticks that the server announced as dropped.
    pub dropped: u64,
    /// Ticks missing without an announcement.
    pub gap: u64,
}

impl Counts {
    /// The sum over a connection's topics.
    ///
    /// The caller counts `ticks`, because a raw session knows no topics.
    pub fn of_topics<'a>(ticks: u64, topics: impl Iterator<Item = (TopicId, &'a TopicStats)>) -> Counts {
        topics.fold(Counts { ticks, ..Counts::default() }, |mut counts, (_, topic)| {
            counts.conflated += topic.conflated;
            counts.dropped += topic.gap;
            counts.gap += topic.missed;
            counts
        })
    }

    /// Adds the counts of the same client before it reconnected.
    pub fn add(&mut self, other: Counts) {
        self.ticks += other.ticks;
        self.conflated += other.conflated;
        self.dropped += other.dropped;
        self.gap += other.gap;
    }
}

/// One client, as written by `--clients`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Client {
    /// Index from 0, in the order of the ramp.
    pub index: usize,
    /// Local address and port of its connection.
    pub source: Option<SocketAddr>,
    #[serde(flatten)]
    pub counts: Counts,
    /// Never reads, so its counts say nothing about the server.
    pub stalled: bool,
    /// Why the connection ended before the run did.
    pub ended: Option<String>,
}

/// Distribution of a count over the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Distribution {
    pub min: u64,
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

impl Distribution {
    /// Exact quantiles by nearest rank; `None` for no values. Cost: one sort.
    pub fn of(mut values: Vec<u64>) -> Option<Distribution> {
        values.sort_unstable();
        let rank = |percent: usize| values.get((values.len() * percent).div_ceil(100).max(1) - 1).copied();
        Some(Distribution { min: *values.first()?, p50: rank(50)?, p99: rank(99)?, max: *values.last()? })
    }
}

/// The clients that are not stalled.
pub fn readers(clients: &[Client]) -> impl Iterator<Item = &Client> {
    clients.iter().filter(|client| !client.stalled)
}

/// Distribution of one of the counts over the clients that are not stalled.
pub fn distribution(clients: &[Client], of: fn(&Counts) -> u64) -> Option<Distribution> {
    Distribution::of(readers(clients).map(|client| of(&client.counts)).collect())
}

/// The worst-served clients: most gaps first, then most dropped, most conflated, fewest ticks.
pub fn worst(clients: &[Client]) -> Vec<&Client> {
    let mut found: Vec<&Client> = readers(clients).collect();
    found.sort_by_key(|client| {
        let Counts { ticks, conflated, dropped, gap } = client.counts;
        (std::cmp::Reverse((gap, dropped, conflated)), ticks, client.index)
    });
    found.truncate(WORST_CLIENTS);
    found
}

/// Writes one line of JSON per client.
///
/// # Errors
/// The writer's.
pub fn write_ndjson(clients: &[Client], out: &mut impl Write) -> io::Result<()> {
    for client in clients {
        serde_json::to_writer(&mut *out, client)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(index: usize, ticks: u64, conflated: u64, dropped: u64, gap: u64) -> Client {
        let counts = Counts { ticks, conflated, dropped, gap };
        Client { index, source: Some("127.0.0.1:7".parse().unwrap()), counts, stalled: false, ended: None }
    }

    #[test]
    fn the_worst_clients_have_most_gaps_then_most_announced_losses_then_fewest_ticks() {
        let mut clients = vec![
            client(0, 100, 0, 0, 0),
            client(1, 99, 0, 0, 0),
            client(2, 50, 50, 0, 0),
            client(3, 60, 0, 40, 0),
            client(4, 97, 0, 0, 3),
            client(5, 100, 0, 0, 0),
            client(6, 0, 0, 0, 0),
        ];
        clients[6].stalled = true;
        let order: Vec<usize> = worst(&clients).iter().map(|client| client.index).collect();
        assert_eq!(order, [4, 3, 2, 1, 0]);
    }

    #[test]
    fn a_distribution_is_exact_and_excludes_stalled_clients() {
        let mut clients: Vec<Client> = (1..=200).map(|at| client(at, at as u64, 0, 0, 0)).collect();
        clients.push(Client { stalled: true, ..client(201, 0, 0, 0, 0) });
        let found = distribution(&clients, |counts| counts.ticks);
        assert_eq!(found, Some(Distribution { min: 1, p50: 100, p99: 198, max: 200 }));
        assert_eq!(Distribution::of(vec![7]), Some(Distribution { min: 7, p50: 7, p99: 7, max: 7 }));
        assert_eq!(Distribution::of(Vec::new()), None);
    }

    #[test]
    fn each_line_of_the_file_is_one_client() {
        let mut text = Vec::new();
        write_ndjson(&[client(3, 60, 1, 40, 2), client(4, 1, 0, 0, 0)], &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert_eq!(
            text.lines().next(),
            Some(
                r#"{"index":3,"source":"127.0.0.1:7","ticks":60,"conflated":1,"dropped":40,"gap":2,"stalled":false,"ended":null}"#
            )
        );
    }
}
