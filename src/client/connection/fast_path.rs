//! Fast path for ticks that are complete and the next one of their topic, as nearly all are.

use super::{Connection, Phase};
use crate::reply::StoredTick;
use tickcast_proto::{
    Step, WireFormat,
    frame::{self, FLAG_SNAPSHOT, Kind},
};

impl Connection {
    /// A complete tick that is the next one of its topic, and the topic's index; `None`: use the general path.
    /// Such ticks bypass `ready`. This allows 12 M instead of 7.7 M ticks a second on a core for drivers that poll without
    /// calling [`Connection::has_event`] first, such as the load client.
    #[inline]
    pub(super) fn poll_in_order_tick(&mut self) -> Option<(u32, StoredTick)> {
        let has_events = self.ready.is_some() || !self.queue.is_empty();
        if has_events || !self.welcomed || !matches!(self.phase, Phase::Open) {
            return None;
        }
        let end = match self.encoding {
            WireFormat::TCP_NATIVE => self.input.len(),
            WireFormat::WEBSOCKET_NATIVE => self.input.len().min(self.consumed + self.message_left),
            _ => return None,
        };
        let Ok(Step::Complete(used, frame)) =
            frame::decode(&self.input[self.consumed..end], self.frame_bytes_max)
        else {
            return None;
        };
        if frame.kind != Kind::Tick || frame.header.flags & FLAG_SNAPSHOT != 0 {
            return None;
        }
        let tick = StoredTick::new(&frame, self.consumed, 0).ok()?;
        let index = self.topics.advance_in_order(tick.topic_id, tick.sequence, frame.previous())?;
        self.consumed += used;
        // Always 0 on a native connection.
        self.message_left = self.message_left.saturating_sub(used);
        Some((index, tick))
    }
}
