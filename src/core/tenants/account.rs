//! What tenants may use of the server, and what they do use.
//!
//! A tenant has one account for all shards. Shards do not ask it for each connection or tick: they take leases, a few units at a
//! time, and give back what they no longer need. So nothing on the path of a tick is shared between cores: a shard touches the
//! account once for each lease.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::{
    ids::ShardId,
    limits::{LEASE_BYTES_MAX, LEASE_UNITS_MAX, LEASES_PER_SHARD, RATE_WINDOW_NS},
};

/// What a tenant may use, on the whole server. 0: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Connections, ending ones included.
    pub connections: u64,
    /// Subscriptions of all its sessions.
    pub subscriptions: u64,
    /// Topics that its sessions and sources have created and that still live.
    pub topics: u64,
    /// Ticks that its sessions publish, per second.
    pub publish_rate: u64,
    /// Bytes sent to its sessions, per second.
    pub egress_rate: u64,
    /// Bytes of the histories of its topics.
    pub history_bytes: u64,
}

/// What is leased until it is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Resource {
    /// [`Quota::connections`].
    Connections = 0,
    /// [`Quota::subscriptions`].
    Subscriptions = 1,
    /// [`Quota::topics`].
    Topics = 2,
    /// [`Quota::history_bytes`].
    HistoryBytes = 3,
}

/// What is leased at a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Flow {
    /// [`Quota::publish_rate`].
    Publishes = 0,
    /// [`Quota::egress_rate`].
    EgressBytes = 1,
}

impl Quota {
    /// The limit on a resource; `u64::MAX`: none.
    pub fn of(&self, resource: Resource) -> u64 {
        or_none(match resource {
            Resource::Connections => self.connections,
            Resource::Subscriptions => self.subscriptions,
            Resource::Topics => self.topics,
            Resource::HistoryBytes => self.history_bytes,
        })
    }

    /// The limit on a flow per second; 0: none.
    pub fn rate(&self, flow: Flow) -> u64 {
        match flow {
            Flow::Publishes => self.publish_rate,
            Flow::EgressBytes => self.egress_rate,
        }
    }
}

fn or_none(quota: u64) -> u64 {
    if quota == 0 { u64::MAX } else { quota }
}

macro_rules! figures {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal, $help:literal;)+) => {
        /// Figures of one tenant on one shard. Written by that shard, read by any thread.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Figure { $($(#[doc = $doc])+ $name),+ }

        impl Figure {
            /// All of them, in index order.
            pub const ALL: [Figure; [$(Figure::$name),+].len()] = [$(Figure::$name),+];

            /// Its name in metrics.
            pub fn label(self) -> &'static str {
                match self { $(Figure::$name => $label),+ }
            }

            /// A sentence of help for the operator.
            pub fn help(self) -> &'static str {
                match self { $(Figure::$name => $help),+ }
            }
        }
    };
}

figures! {
    /// Connections now.
    Connections = "connections", "Connections of the tenant now.";
    /// Subscriptions now.
    Subscriptions = "subscriptions", "Subscriptions of the tenant's sessions now.";
    /// Topics now, at their homes.
    Topics = "topics", "Topics of the tenant now.";
    /// Bytes of the histories of its topics now.
    HistoryBytes = "history_bytes", "Bytes of the histories of the tenant's topics now.";
    /// Ticks that its sessions have published.
    Published = "ticks_published", "Ticks that the tenant's sessions have published.";
    /// Bytes sent to its sessions.
    EgressBytes = "egress_bytes", "Bytes sent to the tenant's sessions.";
    /// Connections refused because of the quota.
    ConnectionsRefused = "connections_refused", "Connections refused because the tenant has used up its quota.";
    /// Subscriptions refused because of the quota.
    SubscriptionsRefused = "subscriptions_refused", "Subscriptions refused because the tenant has used up its quota.";
    /// Ticks refused because their topic would have exceeded the quota.
    TopicsRefused = "topics_refused", "Ticks refused because the tenant may have no more topics.";
    /// Ticks refused because of the quota.
    PublishesRefused = "publishes_refused", "Ticks refused because the tenant publishes faster than its quota.";
    /// Times a session had to wait with a SEND because of the quota.
    EgressWaits = "egress_waits", "Times a session waited with a SEND because the tenant had used up its egress quota.";
    /// Ticks whose history could not grow because of the quota.
    HistoryFull = "history_full", "Ticks whose history could not grow because the tenant had used up its quota.";
}

impl Figure {
    /// Whether it can fall.
    pub fn is_gauge(self) -> bool {
        self as usize <= Figure::HistoryBytes as usize
    }
}

/// The figures of one tenant on one shard. Padded so that no two shards share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Figures([AtomicU64; Figure::ALL.len()]);

impl Figures {
    /// Adds `n`. Only the owning shard may call it.
    #[inline]
    pub fn add(&self, figure: Figure, n: u64) {
        let value = &self.0[figure as usize];
        value.store(value.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Subtracts `n` from a gauge. Only the owning shard may call it.
    pub fn subtract(&self, figure: Figure, n: u64) {
        self.add(figure, n.wrapping_neg());
    }
}

/// The account of one tenant. It outlives reloads: only the quota changes, which is not part of it.
#[derive(Debug, Default)]
pub struct Account {
    /// Units leased to shards, by [`Resource`].
    leased: [AtomicU64; 4],
    /// When everything taken so far is paid for, CLOCK_MONOTONIC nanoseconds, by [`Flow`].
    paid_ns: [AtomicU64; 2],
    /// By shard.
    figures: Box<[Figures]>,
}

impl Account {
    /// The account of a tenant on a server with so many shards.
    pub fn new(shards: u16) -> Arc<Account> {
        Arc::new(Account { figures: (0..shards).map(|_| Figures::default()).collect(), ..Account::default() })
    }

    /// Leases that a quota is divided into at least.
    fn leases(&self) -> u64 {
        LEASES_PER_SHARD * self.figures.len().max(1) as u64
    }

    /// Units not leased.
    fn room(&self, resource: Resource, quota: &Quota) -> u64 {
        quota.of(resource).saturating_sub(self.leased[resource as usize].load(Relaxed))
    }

    /// The figures of a shard; `None` if the account was made for fewer.
    pub fn figures(&self, shard: ShardId) -> Option<&Figures> {
        self.figures.get(usize::from(shard.0))
    }

    /// A figure of all shards together.
    pub fn total(&self, figure: Figure) -> u64 {
        self.figures
            .iter()
            .map(|of_shard| of_shard.0[figure as usize].load(Relaxed))
            .fold(0, u64::wrapping_add)
    }

    /// Leases units, all or none.
    fn lease(&self, resource: Resource, units: u64, quota: u64) -> bool {
        let leased = &self.leased[resource as usize];
        let more = |now: u64| now.checked_add(units).filter(|then| *then <= quota);
        leased.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    fn give_back(&self, resource: Resource, units: u64) {
        self.leased[resource as usize].fetch_sub(units, Relaxed);
    }

    /// Leases units of a flow, all or none: a second's worth of publishes at once, a tenth of a second's of bytes, or any number if
    /// everything taken before is paid for.
    fn lease_flow(&self, flow: Flow, units: u64, rate: u64, now_ns: u64) -> bool {
        let cost_ns = cost_ns(units, rate);
        let burst_ns = match flow {
            Flow::Publishes => 10 * RATE_WINDOW_NS,
            Flow::EgressBytes => RATE_WINDOW_NS,
        };
        let paid = |paid_ns: u64| {
            let then_ns = paid_ns.max(now_ns).saturating_add(cost_ns);
            (then_ns - now_ns <= burst_ns.max(cost_ns)).then_some(then_ns)
        };
        self.paid_ns[flow as usize].fetch_update(Relaxed, Relaxed, paid).is_ok()
    }

    fn give_back_flow(&self, flow: Flow, units: u64, rate: u64) {
        self.paid_ns[flow as usize].fetch_sub(cost_ns(units, rate), Relaxed);
    }

    /// When a flow that has been refused may go on, CLOCK_MONOTONIC nanoseconds.
    fn flow_due_ns(&self, flow: Flow) -> u64 {
        self.paid_ns[flow as usize].load(Relaxed)
    }
}

/// The time that units at a rate per second take, nanoseconds, at most a century.
fn cost_ns(units: u64, rate: u64) -> u64 {
    const CENTURY_NS: u128 = 1 << 61;
    (u128::from(units) * 1_000_000_000 / u128::from(rate.max(1))).min(CENTURY_NS) as u64
}

/// What a shard has leased of a resource. A shard has at most one lease to spare,
/// so shards together keep a sixteenth of the quota from each other: [`LEASES_PER_SHARD`].
///
/// Invariant: `used` is at most `leased`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lease {
    leased: u64,
    used: u64,
}

impl Lease {
    /// Takes units if the quota allows. Touches the account only if the lease is too small.
    #[must_use]
    pub fn take(&mut self, units: u64, resource: Resource, quota: &Quota, account: &Account) -> bool {
        let wanted = self.used + units;
        if wanted > self.leased {
            let (missing, step, quota) =
                (wanted - self.leased, step(resource, quota, account), quota.of(resource));
            let leased =
                [missing.max(step), missing].into_iter().find(|units| account.lease(resource, *units, quota));
            let Some(leased) = leased else { return false };
            self.leased += leased;
        }
        self.used = wanted;
        true
    }

    /// Gives units back. Keeps one lease to spare, unless the quota is small.
    pub fn give_back(&mut self, units: u64, resource: Resource, quota: &Quota, account: &Account) {
        debug_assert!(units <= self.used, "only what was taken is given back");
        self.used = self.used.saturating_sub(units);
        let (spare, step) = (self.leased - self.used, step(resource, quota, account));
        // Of a small quota, what one shard has to spare is what another needs.
        let kept = if step > 1 { step } else { 0 };
        if spare > kept {
            account.give_back(resource, spare - kept);
            self.leased -= spare - kept;
        }
    }

    /// Takes units whether the quota allows it or not.
    pub fn take_anyway(&mut self, units: u64, resource: Resource, quota: &Quota, account: &Account) {
        if !self.take(units, resource, quota, account) {
            let taken = account.lease(resource, units, u64::MAX);
            debug_assert!(taken, "units are bytes and counts, far below 2^64");
            (self.leased, self.used) = (self.leased + units, self.used + units);
        }
    }

    /// Units that may still be taken here. Other shards may be faster.
    pub fn room(&self, resource: Resource, quota: &Quota, account: &Account) -> u64 {
        account.room(resource, quota).saturating_add(self.leased - self.used)
    }

    /// Units in use.
    pub fn used(&self) -> u64 {
        self.used
    }
}

/// Units of one lease: so few of a small quota that no shard holds what another needs.
fn step(resource: Resource, quota: &Quota, account: &Account) -> u64 {
    let highest = match resource {
        Resource::Connections | Resource::Subscriptions | Resource::Topics => LEASE_UNITS_MAX,
        Resource::HistoryBytes => LEASE_BYTES_MAX,
    };
    (quota.of(resource) / account.leases()).clamp(1, highest)
}

/// What a shard has leased of a flow, for [`RATE_WINDOW_NS`]. What is left then goes back.
#[derive(Clone, Copy, Debug, Default)]
pub struct FlowLease {
    /// Below 0: taken beyond the lease, and to be paid for with the next one.
    left: i64,
    until_ns: u64,
}

impl FlowLease {
    /// Whether units are left, or can be leased.
    pub fn has(&mut self, units: u64, flow: Flow, quota: &Quota, account: &Account, now_ns: u64) -> bool {
        let rate = quota.rate(flow);
        if rate == 0 {
            *self = FlowLease::default();
            return true;
        }
        if now_ns >= self.until_ns && self.left > 0 {
            account.give_back_flow(flow, self.left as u64, rate);
            self.left = 0;
        }
        let missing = units as i64 - self.left;
        if missing <= 0 {
            return true;
        }
        let step = (rate / 10 / account.leases()).max(1);
        let missing = missing as u64;
        let leased = [missing.max(step), missing]
            .into_iter()
            .find(|units| account.lease_flow(flow, *units, rate, now_ns));
        let Some(leased) = leased else { return false };
        self.left += leased as i64;
        self.until_ns = now_ns.saturating_add(RATE_WINDOW_NS);
        true
    }

    /// Takes units, whether they are left or not.
    pub fn spend(&mut self, units: u64, flow: Flow, quota: &Quota) {
        if quota.rate(flow) > 0 {
            self.left -= units as i64;
        }
    }

    /// When [`FlowLease::has`] may succeed after it has failed, CLOCK_MONOTONIC nanoseconds: within one window.
    pub fn due_ns(&self, flow: Flow, account: &Account, now_ns: u64) -> u64 {
        let (soonest_ns, latest_ns) = (now_ns + RATE_WINDOW_NS / 100, now_ns + RATE_WINDOW_NS);
        account.flow_due_ns(flow).clamp(soonest_ns, latest_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn shards_together_use_what_the_quota_allows_and_never_more() {
        for quota in [1, 3, 16, 100, 5_000] {
            let (account, quota) = (Account::new(4), Quota { connections: quota, ..Quota::default() });
            let mut leases = [Lease::default(); 4];
            let mut take = |shard: usize| leases[shard].take(1, Resource::Connections, &quota, &account);
            let taken = (0..4 * 5_001).filter(|n| take(n % 4)).count() as u64;
            assert!(taken <= quota.connections && taken * 4 >= quota.connections * 3, "{taken} of {quota:?}");
            // What one gives back, another may take.
            for _ in 0..leases[0].used() {
                leases[0].give_back(1, Resource::Connections, &quota, &account);
            }
            let again =
                (0..5_001).filter(|_| leases[1].take(1, Resource::Connections, &quota, &account)).count();
            let used: u64 = leases.iter().map(Lease::used).sum();
            assert!(again > 0 && used <= quota.connections && used * 4 >= quota.connections * 3);
        }
    }

    #[test]
    fn a_small_quota_is_exact() {
        let (account, quota) = (Account::new(2), Quota { topics: 10, ..Quota::default() });
        let mut leases = [Lease::default(); 2];
        let taken = (0..40).filter(|n| leases[n % 2].take(1, Resource::Topics, &quota, &account)).count();
        assert_eq!(taken, 10);
    }

    #[test]
    fn a_quota_that_is_lowered_or_set_later_counts_what_is_in_use() {
        let (account, mut lease) = (Account::new(1), Lease::default());
        let none = Quota::default();
        assert!((0..1_000).all(|_| lease.take(1, Resource::Subscriptions, &none, &account)));
        let few = Quota { subscriptions: 500, ..none };
        // What was leased before is used up first.
        let taken =
            (0..1_000).filter(|_| lease.take(1, Resource::Subscriptions, &few, &account)).count() as u64;
        assert!(taken <= LEASE_UNITS_MAX, "{taken}");
        (0..lease.used() - 400).for_each(|_| lease.give_back(1, Resource::Subscriptions, &few, &account));
        let taken =
            (0..1_000).filter(|_| lease.take(1, Resource::Subscriptions, &few, &account)).count() as u64;
        assert_eq!(taken, 100);
    }

    #[test]
    fn shards_together_get_the_rate_whatever_their_shares() {
        for (rate, flow, burst) in [
            (5, Flow::Publishes, 5),
            (1_000, Flow::Publishes, 1_000),
            (1_000_000, Flow::EgressBytes, 100_000),
        ] {
            let (account, mut leases) = (Account::new(2), [FlowLease::default(); 2]);
            let quota = Quota { publish_rate: rate, egress_rate: rate, ..Quota::default() };
            let units = (rate / 1_000).max(1);
            let mut taken = 0;
            for step in 0..10_000 {
                let now_ns = SECOND + step * SECOND / 1_000;
                // The second shard is used now and then.
                for lease in &mut leases[..if step % 100 < 10 { 2 } else { 1 }] {
                    while lease.has(units, flow, &quota, &account, now_ns) {
                        lease.spend(units, flow, &quota);
                        taken += units;
                    }
                }
                if step == 0 {
                    assert!(taken >= burst * 9 / 10 && taken <= burst, "{taken} at once, rate {rate}");
                }
            }
            let expected = 10 * rate + burst;
            assert!(taken <= expected && taken >= expected * 9 / 10, "{taken} of {expected}");
        }
    }

    #[test]
    fn what_was_taken_beyond_the_lease_is_paid_for_before_more_is_taken() {
        let (account, mut lease) = (Account::new(1), FlowLease::default());
        let quota = Quota { egress_rate: 1_000, ..Quota::default() };
        assert!(lease.has(1, Flow::EgressBytes, &quota, &account, SECOND));
        lease.spend(3_000, Flow::EgressBytes, &quota);
        let mut has = |at_ns| lease.has(1, Flow::EgressBytes, &quota, &account, at_ns);
        assert!(has(SECOND + SECOND / 10), "the debt is leased once what came before is paid for");
        assert!(!(2..29).any(|tenth| {
            lease.spend(u64::from(tenth == 2) * 100, Flow::EgressBytes, &quota);
            lease.has(1, Flow::EgressBytes, &quota, &account, SECOND + tenth * SECOND / 10)
        }));
        assert!(lease.has(1, Flow::EgressBytes, &quota, &account, 5 * SECOND));
    }
}
