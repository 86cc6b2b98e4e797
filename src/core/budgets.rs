//! Abuse budgets: how much costly work a session, and all sessions of one source, may request per second.
//!
//! ```text
//!  request --> Budgets::spend(payer, costs)   Ok: served; all of its costs are taken from both accounts
//!                                             Err(Overspent): refused, with a code, a text and a counter; nothing is taken
//!              Budgets::note_refusal(session) false: the session has had more refusals than it may, and is not read from
//!                                             for a while
//! ```
//!
//! Each shard keeps the accounts of the sessions that it serves and of their sources. Nothing is shared: a source with sessions
//! on several shards has an account with the full limit on each.

mod accounts;

use crate::{
    config::Limits,
    ids::{SessionId, SourceId},
    limits::{
        CLIENTS_MAX_HIGHEST, HISTORY_RATE_DEFAULT, HISTORY_RATE_PER_SOURCE_DEFAULT, PATTERN_BYTES_DEFAULT,
        PATTERN_WILDCARDS_MAX_DEFAULT, PATTERNS_BYTES_MAX_DEFAULT, REFUSALS_RATE, SOURCE_ACCOUNTS_MAX,
        SOURCE_BURST_S, SUBSCRIBE_RATE_DEFAULT, SUBSCRIBE_RATE_PER_SOURCE_DEFAULT, SUBSCRIPTIONS_BURST,
        SUBSCRIPTIONS_PER_SESSION_MAX_DEFAULT,
    },
    metrics::counters::Counter,
    token_bucket::Pace,
};
use tickcast_proto::subscription::StartPosition;

pub use self::accounts::{Accounts, Cost, Expense, Paces};

/// What one owner may request per second; 0 is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Ticks published.
    pub ticks: u32,
    /// Bytes published: topic names and payloads.
    pub tick_bytes: u64,
    /// Patterns subscribed to, or changed.
    pub subscriptions: u32,
    /// Patterns subscribed to from a position, or with saved positions.
    pub history: u32,
    /// Patterns subscribed to from the last values.
    pub last_values: u32,
}

/// The rates of a session, and of all sessions of one source together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetLimits {
    /// Limits on one session.
    pub session: Rates,
    /// Limits on all sessions of one source, on one shard.
    pub source: Rates,
}

impl Default for BudgetLimits {
    /// Publishing is unlimited: a legitimate feed publishes as fast as it can when it catches up, and turns keep it from harming
    /// others.
    fn default() -> Self {
        let rates = |subscriptions, history| Rates {
            subscriptions,
            history,
            last_values: history,
            ..Rates::default()
        };
        BudgetLimits {
            session: rates(SUBSCRIBE_RATE_DEFAULT, HISTORY_RATE_DEFAULT),
            source: rates(SUBSCRIBE_RATE_PER_SOURCE_DEFAULT, HISTORY_RATE_PER_SOURCE_DEFAULT),
        }
    }
}

/// Limits on the patterns that sessions hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatternLimits {
    /// Maximum `*` tokens in one pattern.
    pub wildcards_max: usize,
    /// Maximum bytes of text of one session's patterns.
    pub session_bytes_max: usize,
    /// Maximum memory, in bytes, of the patterns that the sessions of one source subscribe to, divided among the shards; 0 is
    /// unlimited.
    pub source_bytes_max: usize,
}

impl Default for PatternLimits {
    fn default() -> Self {
        PatternLimits {
            wildcards_max: PATTERN_WILDCARDS_MAX_DEFAULT,
            session_bytes_max: SUBSCRIPTIONS_PER_SESSION_MAX_DEFAULT * PATTERN_BYTES_DEFAULT,
            source_bytes_max: PATTERNS_BYTES_MAX_DEFAULT / 2,
        }
    }
}

/// Who pays for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payer {
    /// The session.
    pub session: SessionId,
    /// The session's source.
    pub source: SourceId,
}

/// Whose budget is exhausted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The session.
    Session,
    /// All sessions of its source together.
    Source,
}

/// A budget that a request would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overspent {
    /// What the budget is for.
    pub expense: Expense,
    /// Whose budget it is.
    pub owner: Owner,
}

impl Overspent {
    /// The counter of requests refused because of it.
    pub fn counter(self) -> Counter {
        match (self.expense, self.owner) {
            (Expense::Ticks, Owner::Session) => Counter::TicksRefusedRate,
            (Expense::Ticks, Owner::Source) => Counter::TicksRefusedSourceRate,
            (Expense::TickBytes, Owner::Session) => Counter::TicksRefusedBandwidth,
            (Expense::TickBytes, Owner::Source) => Counter::TicksRefusedSourceBandwidth,
            (Expense::Subscriptions, Owner::Session) => Counter::SubscriptionsRefusedRate,
            (Expense::Subscriptions, Owner::Source) => Counter::SubscriptionsRefusedSourceRate,
            (Expense::History, Owner::Session) => Counter::HistoryRefusedRate,
            (Expense::History, Owner::Source) => Counter::HistoryRefusedSourceRate,
            (Expense::LastValues, Owner::Session) => Counter::LastValuesRefusedRate,
            (Expense::LastValues, Owner::Source) => Counter::LastValuesRefusedSourceRate,
            (Expense::Refusals, _) => Counter::InputThrottled,
        }
    }

    /// The message for the client: the limit, and the option that sets it.
    pub fn text(self, limits: &BudgetLimits) -> String {
        let (rates, who, suffix) = match self.owner {
            Owner::Session => (&limits.session, "a session", ""),
            Owner::Source => (&limits.source, "all clients of one address", "-per-source"),
        };
        match self.expense {
            Expense::Ticks => {
                format!("{who} may publish {} ticks a second (--publish-rate{suffix})", rates.ticks)
            }
            Expense::TickBytes => {
                format!("{who} may publish {} bytes a second (--publish-bandwidth{suffix})", rates.tick_bytes)
            }
            Expense::Subscriptions => format!(
                "{who} may subscribe to {} patterns a second, or change them (--subscribe-rate{suffix})",
                rates.subscriptions
            ),
            Expense::History => format!(
                "{who} may ask for the history of {} patterns a second (--history-rate{suffix})",
                rates.history
            ),
            Expense::LastValues => format!(
                "{who} may ask for the last values of {} patterns a second (--last-values-rate{suffix})",
                rates.last_values
            ),
            Expense::Refusals => format!("{who} may have {REFUSALS_RATE} requests a second refused"),
        }
    }
}

/// The cost of subscribing to this many patterns from a position.
pub fn subscription_costs(patterns: usize, from: &StartPosition) -> [Cost; 2] {
    let past = match from {
        StartPosition::Live => (Expense::History, 0),
        StartPosition::Latest => (Expense::LastValues, patterns as u64),
        StartPosition::After(_)
        | StartPosition::AfterEach(_)
        | StartPosition::Resume
        | StartPosition::Since(..) => (Expense::History, patterns as u64),
    };
    [(Expense::Subscriptions, patterns as u64), past]
}

/// The accounts of a shard's sessions, and of their sources.
#[derive(Debug)]
pub struct Budgets {
    /// At most one per open session.
    sessions: Accounts<SessionId>,
    /// At most [`SOURCE_ACCOUNTS_MAX`].
    sources: Accounts<SourceId>,
    limits_publishing: bool,
}

impl Budgets {
    /// Creates budgets without accounts.
    pub fn new(limits: &Limits) -> Budgets {
        let mut budgets = Budgets {
            sessions: Accounts::new(CLIENTS_MAX_HIGHEST),
            sources: Accounts::new(SOURCE_ACCOUNTS_MAX),
            limits_publishing: false,
        };
        budgets.set_limits(limits);
        budgets
    }

    /// Changes the limits from now on. What has been spent remains spent.
    pub fn set_limits(&mut self, limits: &Limits) {
        let requests = SUBSCRIPTIONS_BURST.saturating_mul(limits.subscriptions_per_session_max as u64);
        let paces = |rates: &Rates, burst_s: u64, refusals: u32| {
            let requests = |rate: u32| {
                let rate = u64::from(rate);
                Pace::with_burst(rate, 1, requests.max(burst_s * rate))
            };
            Paces::new(|expense| match expense {
                Expense::Ticks => Pace::new(rates.ticks, 1),
                // The burst is at least the longest tick.
                Expense::TickBytes => Pace::with_burst(rates.tick_bytes, 1, limits.frame_bytes_max as u64),
                Expense::Subscriptions => requests(rates.subscriptions),
                Expense::History => requests(rates.history),
                Expense::LastValues => requests(rates.last_values),
                Expense::Refusals => Pace::new(refusals, 1),
            })
        };
        let BudgetLimits { session, source } = &limits.budgets;
        self.sessions.set_paces(paces(session, 1, REFUSALS_RATE));
        self.sources.set_paces(paces(source, SOURCE_BURST_S, 0));
        let limits_publishing = |rates: &Rates| rates.ticks > 0 || rates.tick_bytes > 0;
        self.limits_publishing = limits_publishing(session) || limits_publishing(source);
    }

    /// Whether ticks cost anything. If not, publishing needs no payer.
    #[inline]
    pub fn limits_publishing(&self) -> bool {
        self.limits_publishing
    }

    /// Charges a request to the payer's accounts. `now_ns`: CLOCK_MONOTONIC.
    ///
    /// # Errors
    /// The first budget that would be exceeded. Nothing is charged then.
    pub fn spend(&mut self, payer: Payer, costs: &[Cost], now_ns: u64) -> Result<(), Overspent> {
        let overspent = |owner| move |expense| Overspent { expense, owner };
        self.sessions.admits(payer.session, costs, now_ns).map_err(overspent(Owner::Session))?;
        if payer.source.is_limited() {
            self.sources.admits(payer.source, costs, now_ns).map_err(overspent(Owner::Source))?;
            self.sources.spend(payer.source, costs, now_ns);
        }
        self.sessions.spend(payer.session, costs, now_ns);
        Ok(())
    }

    /// Counts a refused request of a session. Returns whether another may be refused now.
    pub fn note_refusal(&mut self, session: SessionId, now_ns: u64) -> bool {
        let refusal = [(Expense::Refusals, 1)];
        self.sessions.spend(session, &refusal, now_ns);
        self.sessions.admits(session, &refusal, now_ns).is_ok()
    }

    /// Drops accounts whose buckets are full again. Call it once a turn.
    pub fn drop_full(&mut self, now_ns: u64) {
        self.sessions.drop_full(now_ns);
        self.sources.drop_full(now_ns);
    }

    /// Drops the account of a session that has ended.
    pub fn forget(&mut self, session: SessionId) {
        self.sessions.forget(session);
    }

    /// Bytes allocated for accounts.
    pub fn memory_bytes(&self) -> usize {
        self.sessions.memory_bytes() + self.sources.memory_bytes()
    }
}

#[cfg(test)]
mod tests;
