//! Failover groups: several sources of the same ticks, of which one publishes.
//!
//! ```text
//!  order of the file   source 0 (primary)   source 1      source 2
//!                            |                  |             |       all connected, all read
//!                            v                  v             v
//!                        publishes           standby       standby    what a standby reads is not published
//!
//!  the one that publishes is unfit (down, stale, late)        -> the first fit one publishes, at once
//!  one before it has been fit for its `return_after`, and is  -> that one publishes again
//!  not behind
//!  none is fit                                                -> nothing changes
//!  the one that publishes still connects after its start      -> nothing changes
//! ```
//!
//! A standby reads, because only then is it known whether it is fit, and because a switch then needs no connection first. The
//! cost is the reading.
//!
//! The main thread calls [`Failover::turn`]; the sources' threads check [`SourceStatus::is_standby`].

use std::sync::Arc;

use super::{
    standby::RecentIds,
    status::{SourceStatus, Unfit},
};
use crate::limits::GROUP_BEHIND_MAX;
use tickcast_core::metrics::counters::Counter;

/// How often the groups are checked: a source that falls silent is replaced within `stale_after` plus this.
pub const FAILOVER_TURN_NS: u64 = 100_000_000;

/// Time from the start during which a source that is still connecting is not replaced, so that the first in the file need not
/// connect first.
const START_NS: u64 = 3_000_000_000;

/// All failover groups of a server.
#[derive(Debug)]
pub struct Failover {
    groups: Vec<Group>,
    due_ns: u64,
}

/// A group.
///
/// Invariant: exactly one member is not a standby, the active one.
#[derive(Debug)]
struct Group {
    name: Box<str>,
    /// In the order of the file: the first has the highest priority.
    members: Vec<Member>,
    active: usize,
    ids: Arc<RecentIds>,
}

#[derive(Debug)]
struct Member {
    status: SourceStatus,
    /// When it became fit; `None`: it is unfit.
    fit_since_ns: Option<u64>,
}

impl Failover {
    /// Creates the groups of these sources. The first of each publishes.
    pub fn new(statuses: &[SourceStatus]) -> Failover {
        let mut groups: Vec<Group> = Vec::new();
        let commons = statuses.iter().map(SourceStatus::common);
        for status in statuses {
            let Some(name) = &status.common().group else { continue };
            let member = Member { status: status.clone(), fit_since_ns: None };
            let at = match groups.iter().position(|group| group.name == *name) {
                Some(at) => {
                    status.set_standby(true);
                    at
                }
                None => {
                    let members = commons.clone().filter(|common| common.group.as_ref() == Some(name));
                    let (name, ids) = (name.clone(), Arc::new(RecentIds::of_group(members)));
                    groups.push(Group { name, members: Vec::new(), active: 0, ids });
                    groups.len() - 1
                }
            };
            status.join_group(&groups[at].ids);
            groups[at].members.push(member);
        }
        Failover { groups, due_ns: 0 }
    }

    /// Checks the groups, and switches to other sources where necessary. Returns the time to the next turn, in nanoseconds;
    /// `None`: there are no groups. `started_ns`: when the sources were started. Times are of CLOCK_MONOTONIC.
    pub fn turn(&mut self, now_ns: u64, started_ns: u64) -> Option<u64> {
        if self.groups.is_empty() {
            return None;
        }
        if now_ns >= self.due_ns {
            self.due_ns = now_ns.saturating_add(FAILOVER_TURN_NS);
            self.groups.iter_mut().for_each(|group| group.turn(now_ns, started_ns));
        }
        Some(self.due_ns.saturating_sub(now_ns))
    }
}

impl Group {
    fn turn(&mut self, now_ns: u64, started_ns: u64) {
        let mut unfit = None;
        for (at, member) in self.members.iter_mut().enumerate() {
            let why = member.status.unfit(now_ns, started_ns);
            member.fit_since_ns = match why {
                None => member.fit_since_ns.or(Some(now_ns)),
                Some(_) => None,
            };
            if at == self.active {
                unfit = why;
            }
        }
        let active = &self.members[self.active].status;
        let (lag_ns, hold_ns) = (active.lag_ns(), self.ids.hold_ns());
        let in_step = |member: &Member| !member.is_behind(lag_ns, hold_ns);
        let is_starting = active.is_starting() && now_ns.saturating_sub(started_ns) < START_NS;
        let next = match unfit {
            Some(_) if is_starting => None,
            // One that is behind is better than none.
            Some(_) => {
                let is_fit = |member: &Member| member.fit_since_ns.is_some();
                let first = self.members.iter().position(|member| is_fit(member) && in_step(member));
                first.or_else(|| self.members.iter().position(is_fit))
            }
            None => {
                let before = &self.members[..self.active];
                before.iter().position(|member| member.may_return(now_ns) && in_step(member))
            }
        };
        if let Some(next) = next.filter(|&next| next != self.active) {
            self.switch(next, unfit);
        }
    }

    fn switch(&mut self, next: usize, unfit: Option<Unfit>) {
        let (before, after) = (&self.members[self.active].status, &self.members[next].status);
        // In this order, so that for a moment none publishes, but never both.
        before.set_standby(true);
        after.set_standby(false);
        after.counters().add(Counter::SourceActivations, 1);
        let (group, before, after) = (&self.name, before.name(), after.name());
        match unfit {
            Some(unfit) => {
                ::log::warn!(
                    "group {group}: {after} publishes instead of {before}, which is {}",
                    unfit.name()
                );
            }
            None => ::log::info!("group {group}: {after} publishes again instead of {before}"),
        }
        self.active = next;
    }
}

impl Member {
    /// Whether it still reads a backlog: the group has published, and forgotten, what it would publish. `lag_ns` is the lag of the
    /// source that publishes: messages may have times of long ago.
    fn is_behind(&self, lag_ns: Option<u64>, hold_ns: u64) -> bool {
        let is_late = |(own_ns, lag_ns): (u64, u64)| own_ns > lag_ns.saturating_add(hold_ns);
        self.status.lag_messages().is_some_and(|messages| messages > GROUP_BEHIND_MAX)
            || self.status.lag_ns().zip(lag_ns).is_some_and(is_late)
    }

    fn may_return(&self, now_ns: u64) -> bool {
        let after_ns = self.status.common().return_after_ns;
        self.fit_since_ns.is_some_and(|since_ns| now_ns.saturating_sub(since_ns) >= after_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        common::{Common, CommonOptions},
        health::{Health, Waiting},
    };
    use tickcast_common::values::Time;

    const MS: u64 = 1_000_000;

    /// Sources of one group that are unfit after a second of silence and return after three.
    fn group(names: &[&str]) -> (Vec<SourceStatus>, Failover) {
        let options = CommonOptions {
            group: Some("g".into()),
            stale_after: Some(Time::from_ms(1_000)),
            return_after: Some(Time::from_ms(3_000)),
            ..CommonOptions::default()
        };
        let statuses: Vec<SourceStatus> =
            names.iter().map(|name| SourceStatus::new("nats", options.resolved(name))).collect();
        statuses.iter().for_each(|status| status.set_health(Health::Running));
        let failover = Failover::new(&statuses);
        (statuses, failover)
    }

    fn active(statuses: &[SourceStatus]) -> String {
        let active: Vec<&str> =
            statuses.iter().filter(|status| !status.is_standby()).map(SourceStatus::name).collect();
        active.join(" ")
    }

    /// Runs until `to_ms`; each of these sources takes a message before every turn.
    fn run(failover: &mut Failover, from_ms: u64, to_ms: u64, heard: &[&SourceStatus]) {
        for ms in (from_ms..to_ms).step_by(100) {
            heard.iter().for_each(|status| status.note_heard(ms * MS, None));
            failover.turn(ms * MS, 0);
        }
    }

    #[test]
    fn a_silent_primary_is_replaced_within_its_time_and_returns_only_once_it_has_lasted() {
        let (sources, mut failover) = group(&["a", "b"]);
        let [a, b] = &sources[..] else { panic!() };
        run(&mut failover, 100, 5_000, &[a, b]);
        assert_eq!(active(&sources), "a");
        run(&mut failover, 5_000, 5_900, &[b]);
        assert_eq!(active(&sources), "a", "silent for less than a second");
        run(&mut failover, 5_900, 6_100, &[b]);
        assert_eq!(active(&sources), "b");
        // It comes and goes, and is not fit for long enough.
        run(&mut failover, 6_100, 8_000, &[a, b]);
        run(&mut failover, 8_000, 9_500, &[b]);
        run(&mut failover, 9_500, 12_400, &[a, b]);
        assert_eq!(active(&sources), "b");
        run(&mut failover, 12_400, 12_700, &[a, b]);
        assert_eq!(active(&sources), "a");
        assert_eq!(a.counters().value(Counter::SourceActivations), 1);
        assert_eq!(b.counters().value(Counter::SourceActivations), 1);
    }

    #[test]
    fn a_source_that_is_down_is_replaced_at_once_by_the_first_fit_one() {
        let (sources, mut failover) = group(&["a", "b", "c"]);
        let [a, b, c] = &sources[..] else { panic!() };
        run(&mut failover, 100, 2_000, &[a, c]);
        a.set_health(Health::Waiting(Waiting::Engine("refused".into())));
        run(&mut failover, 2_000, 2_100, &[c]);
        assert_eq!(active(&sources), "c", "b has never been heard");
        // The fallback fails too: one that has only just become fit is better than none.
        c.set_health(Health::Failed("gone".into()));
        run(&mut failover, 2_100, 2_200, &[b]);
        assert_eq!(active(&sources), "b");
    }

    #[test]
    fn a_primary_that_connects_at_the_start_is_not_replaced_by_a_faster_fallback() {
        let (sources, mut failover) = group(&["a", "b"]);
        let [a, b] = &sources[..] else { panic!() };
        a.set_health(Health::Waiting(Waiting::Connecting));
        run(&mut failover, 100, 2_900, &[b]);
        assert_eq!(active(&sources), "a");
        run(&mut failover, 2_900, 3_100, &[b]);
        assert_eq!(active(&sources), "b", "it takes too long");
        let (sources, mut failover) = group(&["a", "b"]);
        sources[0].set_health(Health::Waiting(Waiting::Engine("refused".into())));
        run(&mut failover, 100, 200, &[&sources[1]]);
        assert_eq!(active(&sources), "b", "its first attempt has failed");
    }

    #[test]
    fn a_primary_that_still_reads_its_backlog_does_not_return() {
        let (sources, mut failover) = group(&["a", "b"]);
        let [a, b] = &sources[..] else { panic!() };
        a.set_health(Health::Waiting(Waiting::Engine("refused".into())));
        run(&mut failover, 100, 1_000, &[b]);
        assert_eq!(active(&sources), "b");
        a.set_health(Health::Running);
        a.set_lag(50_000);
        run(&mut failover, 1_000, 20_000, &[a, b]);
        assert_eq!(active(&sources), "b", "it holds 50,000 old messages");
        a.set_lag(3);
        run(&mut failover, 20_000, 20_200, &[a, b]);
        assert_eq!(active(&sources), "a", "it has been fit for long");
        // By the messages' times, if they are of use: both feeds have the same.
        a.set_health(Health::Waiting(Waiting::Engine("refused".into())));
        run(&mut failover, 20_200, 21_000, &[b]);
        assert_eq!(active(&sources), "b");
        a.set_health(Health::Running);
        let hour = 3_600_000 * MS;
        for (ms, [lag_of_a, lag_of_b], expected) in [
            (21_000, [60_000 * MS, 5 * MS], "b"),
            (30_000, [hour + 60_000 * MS, hour], "b"),
            (40_000, [hour + 5_000 * MS, hour], "a"),
        ] {
            for ms in (ms..ms + 5_000).step_by(100) {
                a.note_heard(ms * MS, Some(lag_of_a));
                b.note_heard(ms * MS, Some(lag_of_b));
                failover.turn(ms * MS, 0);
            }
            assert_eq!(active(&sources), expected, "{ms}");
        }
    }

    #[test]
    fn a_fallback_that_is_in_step_is_preferred_to_one_that_is_behind() {
        let (sources, mut failover) = group(&["a", "b", "c"]);
        let [a, b, c] = &sources[..] else { panic!() };
        run(&mut failover, 100, 1_000, &[a, b, c]);
        b.set_lag(50_000);
        a.set_health(Health::Failed("gone".into()));
        run(&mut failover, 1_000, 1_200, &[b, c]);
        assert_eq!(active(&sources), "c");
        c.set_health(Health::Failed("gone".into()));
        run(&mut failover, 1_200, 1_400, &[b]);
        assert_eq!(active(&sources), "b", "better than none");
    }

    #[test]
    fn a_group_of_which_none_is_fit_stays_as_it_is() {
        let (sources, mut failover) = group(&["a", "b"]);
        run(&mut failover, 100, 60_000, &[]);
        assert_eq!(active(&sources), "a");
        assert_eq!(sources[1].counters().value(Counter::SourceActivations), 0);
    }

    #[test]
    fn sources_without_a_group_are_left_alone() {
        let status = SourceStatus::new("nats", Common::named("a"));
        let mut failover = Failover::new(std::slice::from_ref(&status));
        assert_eq!(failover.turn(1, 0), None);
        assert!(!status.is_standby());
    }
}
