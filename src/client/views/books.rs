//! Order books of feeds that publish a snapshot and then changes.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde_json::{Map, Value};

use crate::{BOOK_LEVELS_MAX, BOOKS_MAX, SharedTick, SubscriptionEvent};

/// One price of a side of an order book.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// The price.
    pub price: f64,
    /// The size, above 0.
    pub size: f64,
}

/// A finite price, with its order.
#[derive(Clone, Copy, Debug)]
struct Price(f64);

impl Ord for Price {
    fn cmp(&self, other: &Price) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Price {
    fn partial_cmp(&self, other: &Price) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Price {
    fn eq(&self, other: &Price) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Price {}

/// The sizes of one side by price. Bound: [`BOOK_LEVELS_MAX`] while the book is live.
type Side = BTreeMap<Price, f64>;

/// One book. It is live after a snapshot, until ticks are missing; then its levels are the last ones known.
///
/// A book with more than [`BOOK_LEVELS_MAX`] levels on a side is not live: it waits for a snapshot that fits.
#[derive(Debug, Default)]
pub struct OrderBook {
    is_live: bool,
    epoch: u64,
    sequence: u64,
    bids: Side,
    asks: Side,
}

impl OrderBook {
    /// Whether the levels are those of the feed.
    pub fn is_live(&self) -> bool {
        self.is_live
    }

    /// Epoch and sequence of the last tick.
    pub fn position(&self) -> tickcast_proto::subscription::Position {
        tickcast_proto::subscription::Position { epoch: self.epoch, sequence: self.sequence }
    }

    /// The bids, highest price first.
    pub fn bids(&self) -> impl Iterator<Item = Level> {
        self.bids.iter().rev().map(level)
    }

    /// The asks, lowest price first.
    pub fn asks(&self) -> impl Iterator<Item = Level> {
        self.asks.iter().map(level)
    }

    fn handle(&mut self, tick: &SharedTick) {
        self.is_live &= tick.epoch == self.epoch;
        (self.epoch, self.sequence) = (tick.epoch, tick.sequence);
        let message: Option<Map<String, Value>> =
            tick.payload_is_json.then(|| serde_json::from_slice(&tick.payload).ok()).flatten();
        let Some(message) = message else {
            self.is_live = false;
            return;
        };
        if message.get("type").and_then(Value::as_str) == Some("snapshot") {
            (self.bids, self.asks) = (Side::new(), Side::new());
        } else if !self.is_live {
            return;
        }
        self.is_live =
            apply(&mut self.bids, message.get("bids")) && apply(&mut self.asks, message.get("asks"));
    }
}

fn level((price, size): (&Price, &f64)) -> Level {
    Level { price: price.0, size: *size }
}

/// Applies changes to one side; returns whether they are valid and fit.
fn apply(side: &mut Side, levels: Option<&Value>) -> bool {
    let Some(levels) = levels else { return true };
    let Some(levels) = levels.as_array() else { return false };
    for level in levels {
        let (Some(price), Some(size)) = (level.get(0).and_then(number), level.get(1).and_then(number)) else {
            return false;
        };
        if size < 0.0 {
            return false;
        }
        // Both zeros are one price.
        let price = Price(price + 0.0);
        if size == 0.0 {
            side.remove(&price);
        } else {
            side.insert(price, size);
        }
    }
    side.len() <= BOOK_LEVELS_MAX
}

/// A finite number, or one in a string, as feeds have them to keep their digits.
fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    number.is_finite().then_some(number)
}

/// The order book of each topic, for feeds of snapshots and changes.
///
/// A payload is `{"type": "snapshot", "bids": [[price, size], ...], "asks": [...]}`, or a change with another `type` or none. Prices
/// and sizes are numbers, or strings of them; size 0 removes a level. A book stops being live at a gap, a conflated range, a position
/// that was not recovered, or a new epoch; changes are ignored then, until the next snapshot replaces its levels. So subscribe
/// without the policy `conflate` and without a rate, and best with the policy `disconnect`.
///
/// Bound: [`BOOKS_MAX`] books.
#[derive(Debug, Default)]
pub struct BookView {
    books: HashMap<Arc<str>, OrderBook>,
    not_stored: u64,
}

impl BookView {
    /// A view without books.
    pub fn new() -> BookView {
        BookView::default()
    }

    /// Applies an event of the subscription. A snapshot and a change cost O(n log n) of their own levels.
    pub fn handle(&mut self, event: &SubscriptionEvent) {
        match event {
            SubscriptionEvent::Tick(tick) => {
                if self.books.len() >= BOOKS_MAX && !self.books.contains_key(&tick.topic) {
                    self.not_stored += 1;
                    return;
                }
                self.books.entry(tick.topic.clone()).or_default().handle(tick);
            }
            SubscriptionEvent::Gap(skipped) | SubscriptionEvent::Conflated(skipped) => {
                self.interrupt(&skipped.topic);
            }
            SubscriptionEvent::Recovered { topic, failure: Some(_), .. } => self.interrupt(topic),
            _ => {}
        }
    }

    fn interrupt(&mut self, topic: &str) {
        if let Some(book) = self.books.get_mut(topic) {
            book.is_live = false;
        }
    }

    /// The book of a topic, live or not; `None` before its first tick.
    pub fn book(&self, topic: &str) -> Option<&OrderBook> {
        self.books.get(topic)
    }

    /// The topics that have a book, in no particular order.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.books.keys().map(|topic| &**topic)
    }

    /// Ticks of topics beyond the bound.
    pub fn not_stored(&self) -> u64 {
        self.not_stored
    }
}
