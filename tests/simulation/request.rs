//! Subscription requests: delivery options and starting point, and their encodings.

use tickcast_core::testing::EPOCH;
use tickcast_proto::{
    codec::protobuf::messages::{self, subscribe::From},
    records::Subscribe,
    subscription::Policy,
};

/// Delivery options and starting point of a subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub policy: Option<Policy>,
    /// Shortest interval between ticks of a topic; 0: none.
    pub interval_ms: u32,
    pub begin: Begin,
}

/// Where a subscription starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Begin {
    #[default]
    Live,
    Latest,
    /// After this epoch and sequence of every topic.
    After(u64, u64),
    /// After the last tick of each topic seen on an earlier connection.
    Resume,
}

impl Request {
    /// Returns the delivery options as JSON members, each after a comma.
    pub fn options_json(&self) -> String {
        let policy =
            self.policy.map(|policy| format!(r#","policy":"{}""#, policy.name())).unwrap_or_default();
        let rate = match self.interval_ms {
            0 => String::new(),
            interval_ms => format!(r#","max_rate":{}"#, 1e3 / f64::from(interval_ms)),
        };
        policy + &rate
    }

    /// Returns the protobuf message, with positions for [`Begin::Resume`]: topic, epoch and sequence.
    pub fn subscribe_message(
        &self,
        pattern: &str,
        positions: Vec<(String, u64, u64)>,
    ) -> messages::Subscribe {
        let from = match self.begin {
            Begin::Live => None,
            Begin::Latest => Some(From::Start(messages::Start::Latest.into())),
            Begin::After(epoch, sequence) => Some(From::After(messages::Position { epoch, sequence })),
            Begin::Resume => {
                let position = |(topic, epoch, sequence)| (topic, messages::Position { epoch, sequence });
                let topics = positions.into_iter().map(position).collect();
                Some(From::AfterEach(messages::Positions { topics }))
            }
        };
        messages::Subscribe {
            patterns: vec![pattern.into()],
            policy: self.policy.map_or(0, |policy| policy as i32),
            max_rate: if self.interval_ms == 0 { 0.0 } else { 1e3 / f64::from(self.interval_ms) },
            from,
        }
    }

    /// Returns the native record.
    pub fn record(&self) -> Subscribe {
        let (from, epoch, sequence) = match self.begin {
            Begin::Live => (0, 0, 0),
            Begin::Latest => (1, 0, 0),
            Begin::After(epoch, sequence) => (2, epoch, sequence),
            Begin::Resume => (3, EPOCH, 0),
        };
        Subscribe {
            from,
            epoch,
            sequence,
            policy: self.policy.map_or(0, |policy| policy as u8),
            max_rate_millihertz: 1_000_000_u32.checked_div(self.interval_ms).unwrap_or(0),
            ..Subscribe::default()
        }
    }
}
