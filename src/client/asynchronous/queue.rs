//! Events of one subscription that wait for the application: a bounded queue.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use crate::{Change, Positions, SkippedTicks, SubscriptionEvent, SubscriptionState};
use tickcast_proto::subscription::Position;

/// Dropped ranges of one topic, one for each epoch, that wait to be announced. Only a topic that starts over again and again has more.
const EPOCHS_MAX: usize = 16;

/// Events that wait for the reader of one subscription.
///
/// With `events_max` events it is full, and further ones are held back: the server then sees a slow client, and applies the
/// subscription's policy. But while the application awaits an answer of the server, the client must read on. A queue with twice
/// `events_max` then drops its oldest event, and a gap takes the place of its ticks: before the topic's next event, or when no other
/// event waits.
///
/// Invariant: `events` holds at most twice `events_max`, `kept` at most `events_max`.
#[derive(Debug)]
pub(super) struct Queue {
    events_max: usize,
    /// The subscription's last state.
    change: Change<SubscriptionState>,
    events: VecDeque<SubscriptionEvent>,
    /// Events other than ticks and ranges that were the oldest when one had to be dropped.
    kept: VecDeque<SubscriptionEvent>,
    /// Dropped ranges by topic, until they are announced.
    dropped: BTreeMap<Arc<str>, VecDeque<SkippedTicks>>,
    dropped_ticks: u64,
    /// What the application has received last. It has finished it when it asks for the next one.
    current: Option<(Arc<str>, Position)>,
    has_ended: bool,
    waker: Option<Waker>,
}

impl Queue {
    pub(super) fn new(events_max: usize) -> Queue {
        Queue {
            events_max: events_max.max(1),
            change: Change {
                state: SubscriptionState::Subscribing,
                code: 0,
                reason: "".into(),
                retry_in_ms: None,
            },
            events: VecDeque::new(),
            kept: VecDeque::new(),
            dropped: BTreeMap::new(),
            dropped_ticks: 0,
            current: None,
            has_ended: false,
            waker: None,
        }
    }

    /// The subscription's state, read or not.
    pub(super) fn change(&self) -> &Change<SubscriptionState> {
        &self.change
    }

    /// Whether further events should be held back.
    pub(super) fn is_full(&self) -> bool {
        self.events.len() >= self.events_max
    }

    /// Events that wait.
    pub(super) fn len(&self) -> usize {
        self.kept.len() + self.events.len()
    }

    /// Ticks that were dropped because the application was too slow.
    pub(super) fn dropped_ticks(&self) -> u64 {
        self.dropped_ticks
    }

    pub(super) fn put(&mut self, event: SubscriptionEvent) {
        if self.events.len() >= 2 * self.events_max {
            self.drop_oldest();
        }
        if let SubscriptionEvent::State(change) = &event {
            self.change = change.clone();
        }
        self.events.push_back(event);
        self.wake();
    }

    /// Whether more events may follow those that wait.
    pub(super) fn set_ended(&mut self, has_ended: bool) {
        self.has_ended = has_ended;
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The application has finished what it has received last.
    pub(super) fn finish(&mut self) {
        self.current = None;
    }

    /// The next event; `None` at the end.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<SubscriptionEvent>> {
        self.finish();
        match self.next() {
            Some(event) => {
                self.current = unfinished(&event);
                Poll::Ready(Some(event))
            }
            None if self.has_ended => Poll::Ready(None),
            None => {
                self.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn next(&mut self) -> Option<SubscriptionEvent> {
        let waiting = self.kept.front().or(self.events.front());
        let topic = match waiting {
            Some(event) => event.topic().filter(|topic| self.dropped.contains_key(*topic)).map(Arc::from),
            None => self.dropped.keys().next().cloned(),
        };
        if let Some(topic) = topic
            && let Some(ranges) = self.dropped.get_mut(&topic)
        {
            let gap = ranges.pop_front();
            if ranges.is_empty() {
                self.dropped.remove(&topic);
            }
            if let Some(gap) = gap {
                return Some(SubscriptionEvent::Gap(gap));
            }
        }
        self.kept.pop_front().or_else(|| self.events.pop_front())
    }

    fn drop_oldest(&mut self) {
        let gap = match self.events.pop_front() {
            Some(SubscriptionEvent::Tick(tick)) => {
                let (from, to) = (tick.sequence, tick.sequence.saturating_add(1));
                SkippedTicks { topic: tick.topic, epoch: tick.epoch, from, to, count: 1 }
            }
            Some(SubscriptionEvent::Gap(range) | SubscriptionEvent::Conflated(range)) => range,
            Some(other) => {
                if self.kept.len() >= self.events_max {
                    self.kept.pop_front();
                }
                self.kept.push_back(other);
                return;
            }
            None => return,
        };
        self.dropped_ticks = self.dropped_ticks.saturating_add(gap.count);
        let ranges = self.dropped.entry(gap.topic.clone()).or_default();
        match ranges.back_mut().filter(|last| last.epoch == gap.epoch) {
            Some(last) => {
                (last.from, last.to) = (last.from.min(gap.from), last.to.max(gap.to));
                last.count = last.count.saturating_add(gap.count);
            }
            None => {
                ranges.push_back(gap);
                if ranges.len() > EPOCHS_MAX {
                    // `dropped_ticks` has counted them.
                    ranges.pop_front();
                }
            }
        }
    }

    /// Moves positions back before the first event of each topic that the application has not finished.
    pub(super) fn hold_back(&self, positions: &mut HashMap<Arc<str>, Position>) {
        let mut hold = |topic: Arc<str>, position: Position| hold(positions, topic, position);
        if let Some((topic, position)) = &self.current {
            hold(topic.clone(), *position);
        }
        for range in self.dropped.values().flatten() {
            hold(range.topic.clone(), before(range.epoch, range.from));
        }
        for (topic, position) in self.kept.iter().chain(&self.events).filter_map(unfinished) {
            hold(topic, position);
        }
    }
}

/// The positions of what the application has finished: those of the session, held back by unread events, and by those that the queues
/// have no room for.
pub(super) fn finished<'a>(
    positions: &Positions,
    queues: impl Iterator<Item = &'a Queue>,
    waiting: impl Iterator<Item = &'a SubscriptionEvent>,
) -> Positions {
    let mut held = HashMap::new();
    queues.for_each(|queue| queue.hold_back(&mut held));
    waiting.filter_map(unfinished).for_each(|(topic, position)| hold(&mut held, topic, position));
    let mut finished = Positions::new();
    for (topic, position) in positions.iter() {
        finished.advance(topic, held.get(topic).copied().unwrap_or(position));
    }
    finished
}

fn hold(positions: &mut HashMap<Arc<str>, Position>, topic: Arc<str>, position: Position) {
    positions.entry(topic).and_modify(|first| *first = earlier(*first, position)).or_insert(position);
}

/// The position before a range or a tick.
fn before(epoch: u64, sequence: u64) -> Position {
    Position { epoch, sequence: sequence.saturating_sub(1) }
}

/// Epochs of later lives are higher, but for a log that was made again.
fn earlier(a: Position, b: Position) -> Position {
    if (b.epoch, b.sequence) < (a.epoch, a.sequence) { b } else { a }
}

/// The topic of an event with ticks, and the position before it.
fn unfinished(event: &SubscriptionEvent) -> Option<(Arc<str>, Position)> {
    match event {
        SubscriptionEvent::Tick(tick) => Some((tick.topic.clone(), before(tick.epoch, tick.sequence))),
        SubscriptionEvent::Gap(range) | SubscriptionEvent::Conflated(range) => {
            Some((range.topic.clone(), before(range.epoch, range.from)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SharedTick;

    fn tick(topic: &str, sequence: u64) -> SubscriptionEvent {
        SubscriptionEvent::Tick(SharedTick {
            topic: topic.into(),
            topic_id: 1,
            epoch: 7,
            sequence,
            producer_time_ns: 0,
            ingest_time_ns: 0,
            schema: 0,
            key: 0,
            snapshot: false,
            payload_is_json: true,
            missed: 0,
            payload: "1".into(),
        })
    }

    fn next(queue: &mut Queue) -> String {
        match queue.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(SubscriptionEvent::Tick(tick))) => format!("{} {}", tick.topic, tick.sequence),
            Poll::Ready(Some(SubscriptionEvent::Gap(gap))) => {
                format!("{} gap {}-{} {}", gap.topic, gap.from, gap.to, gap.count)
            }
            Poll::Ready(None) => "end".into(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn ticks_beyond_twice_the_bound_become_one_gap_before_the_next_of_their_topic() {
        let mut queue = Queue::new(2);
        for sequence in 1..=3 {
            queue.put(tick("a", sequence));
        }
        assert!(queue.is_full());
        queue.put(tick("b", 1));
        queue.put(tick("b", 2));
        queue.put(tick("a", 4));
        assert_eq!((queue.len(), queue.dropped_ticks()), (4, 2));
        assert_eq!(next(&mut queue), "a gap 1-3 2");
        assert_eq!(next(&mut queue), "a 3");
        assert_eq!(next(&mut queue), "b 1");
        assert!(!queue.is_full() || queue.len() == 2);
        assert_eq!(next(&mut queue), "b 2");
        assert_eq!(next(&mut queue), "a 4");
        queue.set_ended(true);
        assert_eq!(next(&mut queue), "end");
    }

    #[test]
    fn a_gap_is_announced_even_if_nothing_follows_in_its_topic() {
        let mut queue = Queue::new(1);
        for event in [tick("a", 1), tick("b", 1), tick("b", 2)] {
            queue.put(event);
        }
        assert_eq!(next(&mut queue), "b 1");
        assert_eq!(next(&mut queue), "b 2");
        assert_eq!(next(&mut queue), "a gap 1-2 1");
    }

    #[test]
    fn positions_are_those_of_finished_events() {
        let mut positions = Positions::new();
        positions.advance("a", Position { epoch: 7, sequence: 5 });
        positions.advance("b", Position { epoch: 7, sequence: 2 });
        let mut queue = Queue::new(8);
        queue.put(tick("a", 4));
        queue.put(tick("a", 5));
        let sequence_of_a = |queue: &Queue| {
            finished(&positions, [queue].into_iter(), [].iter())
                .position("a")
                .map(|position| position.sequence)
        };
        assert_eq!(sequence_of_a(&queue), Some(3));
        assert_eq!(next(&mut queue), "a 4");
        assert_eq!(sequence_of_a(&queue), Some(3), "the application still works on it");
        assert_eq!(next(&mut queue), "a 5");
        assert_eq!(sequence_of_a(&queue), Some(4));
        assert!(queue.poll_next(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(sequence_of_a(&queue), Some(5));
        assert_eq!(
            finished(&positions, [&queue].into_iter(), [].iter()).position("b"),
            Some(Position { epoch: 7, sequence: 2 })
        );
    }
}
