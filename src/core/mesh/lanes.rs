//! A source's rings to all shards.

use std::{fmt, sync::Arc};

use crate::{
    ids::{FeedId, TenantId, UpstreamId},
    mesh::ring::{Doorbell, FrameProducer, Stage},
    placement,
    shard::ORIGIN_SOURCE,
    topic_key::KeyBuffer,
};
use tickcast_proto::{
    frame::{self, FLAG_PAYLOAD_JSON, HeaderFields, Kind},
    ids::ShardId,
    logged::{self, LogPosition},
    records::{Publish, Request},
};

/// A shard's ring is full: the tick was not staged, or some staged ticks were not pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backpressure {
    /// The shard.
    pub shard: ShardId,
}

impl fmt::Display for Backpressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the ring to shard {} is full", self.shard.0)
    }
}

/// A source's ring to one shard.
#[derive(Debug)]
struct Lane {
    ring: FrameProducer,
    stage: Stage,
    bell: Arc<Doorbell>,
}

/// A source's rings to all shards.
#[derive(Debug)]
pub struct Lanes {
    lanes: Vec<Lane>,
    tenant: TenantId,
    source: u32,
    feed: FeedId,
    upstream: UpstreamId,
}

impl Lanes {
    /// Creates the lanes from one ring and doorbell per shard, in order.
    pub fn new(lanes: impl Iterator<Item = (FrameProducer, Arc<Doorbell>)>) -> Lanes {
        let lanes = lanes.map(|(ring, bell)| Lane { ring, stage: Stage::default(), bell }).collect();
        Lanes { lanes, tenant: TenantId::DEFAULT, source: 0, feed: FeedId::NONE, upstream: UpstreamId::NONE }
    }

    /// Makes the topics of later ticks a tenant's.
    pub fn set_tenant(&mut self, tenant: TenantId) {
        self.tenant = tenant;
    }

    /// Sets the number of the source, which differs from that of every other.
    pub fn set_source(&mut self, source: u32) {
        self.source = source;
    }

    /// Sets the feed that the source belongs to, which marks the topics of later ticks when it falls silent.
    pub fn set_feed(&mut self, feed: FeedId) {
        self.feed = feed;
    }

    /// Sets the subscription that later ticks come from. A topic that has had ticks from elsewhere begins another life with the next.
    pub fn set_upstream(&mut self, upstream: UpstreamId) {
        self.upstream = upstream;
    }

    /// Stages the end of a subscription for all homes: the lives of its topics end. Never blocks.
    ///
    /// # Errors
    /// [`Backpressure`] if the ring and stage of a shard are full. Nothing was staged.
    pub fn lapse(&mut self, upstream: UpstreamId) -> Result<(), Backpressure> {
        if let Some(full) = self.lanes.iter().position(|lane| !lane.stage.has_room()) {
            return Err(Backpressure { shard: ShardId(full as u16) });
        }
        let fields = HeaderFields { topic_id: upstream.0, ..HeaderFields::default() };
        for lane in &mut self.lanes {
            frame::encode(lane.stage.tail(), Kind::Forget, fields, &Request::default(), &[]);
        }
        Ok(())
    }

    /// Stages one JSON tick for its home shard. `topic` is a valid name. Never blocks.
    ///
    /// # Errors
    /// [`Backpressure`] if that shard's ring and stage are full. Nothing was staged.
    pub fn publish(
        &mut self,
        topic: &str,
        producer_time_ns: u64,
        ingest_time_ns: u64,
        payload: &[u8],
    ) -> Result<(), Backpressure> {
        let record = Publish { producer_time_ns, ingest_time_ns, ..Publish::default() };
        self.stage(FLAG_PAYLOAD_JSON, record, topic, payload)
    }

    /// [`Lanes::publish`] with a payload that is not JSON.
    ///
    /// # Errors
    /// As [`Lanes::publish`].
    pub fn publish_bytes(
        &mut self,
        topic: &str,
        producer_time_ns: u64,
        ingest_time_ns: u64,
        payload: &[u8],
    ) -> Result<(), Backpressure> {
        let record = Publish { producer_time_ns, ingest_time_ns, ..Publish::default() };
        self.stage(0, record, topic, payload)
    }

    /// Stages one tick with its whole record, except for the request: nobody is answered, so the number of the feed is in its
    /// place. The topic id has the number of the subscription. Never blocks.
    ///
    /// # Errors
    /// As [`Lanes::publish`].
    pub fn stage(
        &mut self,
        flags: u8,
        record: Publish,
        topic: &str,
        payload: &[u8],
    ) -> Result<(), Backpressure> {
        let record = Publish { request: self.feed.0, ..record };
        let fields = HeaderFields {
            flags,
            sequence: ORIGIN_SOURCE,
            topic_id: self.upstream.0,
            ..HeaderFields::default()
        };
        self.write(topic, |out, key| {
            frame::encode_publish_with(out, fields, record, key, &[], payload);
        })
    }

    /// Stages one tick of a log that feeds the topic. The number of the source is filled in. Never blocks.
    ///
    /// # Errors
    /// As [`Lanes::publish`].
    pub fn append(
        &mut self,
        at: LogPosition,
        flags: u8,
        record: Publish,
        topic: &str,
        payload: &[u8],
    ) -> Result<(), Backpressure> {
        let at = LogPosition { source: self.source, ..at };
        let record = Publish { request: self.feed.0, ..record };
        self.write(topic, |out, key| logged::encode_append(out, at, flags, record, key, payload))
    }

    /// Stages a frame for a topic's home, which `write` appends; it gets the topic's key.
    fn write(&mut self, topic: &str, write: impl FnOnce(&mut Vec<u8>, &str)) -> Result<(), Backpressure> {
        let mut buffer = KeyBuffer::default();
        let key = buffer.key(self.tenant, topic);
        let home = placement::home_shard(key, self.lanes.len() as u16);
        let lane = &mut self.lanes[usize::from(home.0)];
        if !lane.stage.has_room() {
            return Err(Backpressure { shard: home });
        }
        write(lane.stage.tail(), key);
        Ok(())
    }

    /// Pushes staged ticks, with one wake-up per shard. Never blocks.
    ///
    /// # Errors
    /// [`Backpressure`] of the first shard whose ring did not accept everything. The rest stays staged.
    pub fn flush(&mut self) -> Result<(), Backpressure> {
        let mut full = None;
        for (shard, lane) in (0..).zip(&mut self.lanes) {
            if !lane.stage.waiting().is_empty() {
                let pushed = lane.ring.push(&mut lane.stage);
                if !lane.stage.waiting().is_empty() {
                    // A full ring also ends a wait for the latency budget.
                    lane.bell.ring();
                    full.get_or_insert(Backpressure { shard: ShardId(shard) });
                } else if pushed {
                    lane.bell.ring_for_ticks();
                }
            }
        }
        full.map_or(Ok(()), Err)
    }
}
