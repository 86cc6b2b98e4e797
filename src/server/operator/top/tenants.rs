//! The tenants on the screen: a line with how much each uses of the quota that it is closest to, and a notice for each that is
//! refused more.

use super::{
    figures::Figures,
    format,
    grid::{Cell, Tone, sentence},
    responses::{Snapshot, TenantEntry, TenantFigures as Counts},
};

/// Tenants in the line; the rest is counted.
const TENANTS_MAX: usize = 16;
/// Notices about single tenants; the rest is counted.
const NOTICES_MAX: usize = 3;

/// A tenant.
#[derive(Clone, Debug, PartialEq)]
pub struct TenantFigures {
    /// Its name.
    pub name: String,
    /// Its connections.
    pub connections: u64,
    /// The quota that it uses most of, with the share in percent; `None` without quotas, and while only rates have one and there
    /// are none yet.
    pub fullest: Option<(&'static str, f64)>,
    /// What its quota refused or held back, per second.
    pub refused: Vec<(&'static str, f64)>,
}

impl TenantFigures {
    fn is_refused(&self) -> bool {
        !self.refused.is_empty()
    }
}

/// The tenants of a snapshot, those that are refused something first, then by the share of a quota that they use. `before`: an
/// earlier snapshot, and the seconds since.
pub fn figures(before: Option<(&Snapshot, f64)>, now: &Snapshot) -> Vec<TenantFigures> {
    let mut tenants: Vec<TenantFigures> = now
        .tenants
        .iter()
        .filter(|tenant| tenant.state != "removed")
        .map(|tenant| {
            let earlier = before.and_then(|(before, seconds)| {
                let found = before.tenants.iter().find(|earlier| earlier.tenant == tenant.tenant);
                found.map(|earlier| (&earlier.figures, seconds))
            });
            one(earlier, tenant)
        })
        .collect();
    let share = |tenant: &TenantFigures| tenant.fullest.map_or(-1.0, |(_, percent)| percent);
    // Rounded, so that similar tenants do not swap places at every poll.
    let order = |tenant: &TenantFigures| (!tenant.is_refused(), -(share(tenant) as i64));
    tenants.sort_by_key(order);
    tenants
}

fn one(before: Option<(&Counts, f64)>, now: &TenantEntry) -> TenantFigures {
    let (has, quota) = (&now.figures, &now.quota);
    let rate = |of: fn(&Counts) -> u64| {
        before.map(|(before, seconds)| of(has).saturating_sub(of(before)) as f64 / seconds)
    };
    let shares = [
        ("connections", Some(has.connections as f64), quota.connections),
        ("subscriptions", Some(has.subscriptions as f64), quota.subscriptions),
        ("topics", Some(has.topics as f64), quota.topics),
        ("history", Some(has.history_bytes as f64), quota.history_bytes),
        ("publishes", rate(|counts| counts.ticks_published), quota.publish_rate),
        ("egress", rate(|counts| counts.egress_bytes), quota.egress_rate),
    ];
    let percent = |(what, used, quota): (&'static str, Option<f64>, u64)| {
        Some((what, used? * 100.0 / quota as f64)).filter(|_| quota > 0)
    };
    let refused = [
        ("connections", rate(|counts| counts.connections_refused)),
        ("subscriptions", rate(|counts| counts.subscriptions_refused)),
        ("ticks of new topics", rate(|counts| counts.topics_refused)),
        ("ticks", rate(|counts| counts.publishes_refused)),
        ("SENDs held back", rate(|counts| counts.egress_waits)),
    ];
    TenantFigures {
        name: now.tenant.clone(),
        connections: has.connections,
        fullest: shares.into_iter().filter_map(percent).max_by(|one, other| one.1.total_cmp(&other.1)),
        refused: refused
            .into_iter()
            .filter_map(|(what, rate)| Some((what, rate.filter(|rate| *rate > 0.0)?)))
            .collect(),
    }
}

/// A line about the tenants, fitted into `width`; `None` without any.
pub fn line(figures: &Figures, width: usize) -> Option<Vec<Cell>> {
    let cell = |(at, tenant): (usize, &TenantFigures)| {
        let start = if at == 0 { "tenants: " } else { "" };
        let name = format::name(&tenant.name);
        let text = match tenant.fullest {
            Some((what, percent)) => format!("{start}{name} {percent:.0}% of {what}"),
            None => format!("{start}{name} {} sessions", format::count(tenant.connections)),
        };
        // The last are left out first.
        (Cell::toned(text, Tone::Bad, tenant.is_refused()), u8::try_from(at).unwrap_or(u8::MAX))
    };
    let mut cells: Vec<(Cell, u8)> = figures.tenants.iter().take(TENANTS_MAX).enumerate().map(cell).collect();
    if let Some(more) = figures.tenants.len().checked_sub(TENANTS_MAX).filter(|&more| more > 0) {
        cells.push((format!("and {} more", format::count(more as u64)).into(), u8::MAX));
    }
    (!cells.is_empty()).then(|| sentence(cells, width))
}

/// A notice for each tenant that its quota refuses something, fitted into `width`.
pub fn notices(figures: &Figures, width: usize) -> Vec<String> {
    let refused: Vec<&TenantFigures> = figures.tenants.iter().filter(|tenant| tenant.is_refused()).collect();
    let notice = |tenant: &&TenantFigures| {
        let start = format!("tenant {} over quota: ", format::name(&tenant.name));
        over(&start, &tenant.refused, width)
    };
    let mut notices: Vec<String> = refused.iter().take(NOTICES_MAX).map(notice).collect();
    if let Some(more) = refused.len().checked_sub(NOTICES_MAX).filter(|&more| more > 0) {
        notices.push(format!("and {more} more tenants over quota"));
    }
    notices
}

/// `start`, then what is refused per second, as much as fits.
pub(super) fn over(start: &str, refused: &[(&str, f64)], width: usize) -> String {
    let cell = |(at, (what, rate)): (usize, &(&str, f64))| {
        let start = if at == 0 { start } else { "" };
        let text = format!("{start}{} {what}/s", format::rate(*rate));
        (Cell::from(text), u8::try_from(at).unwrap_or(u8::MAX))
    };
    sentence(refused.iter().enumerate().map(cell).collect(), width)
        .into_iter()
        .map(|cell| cell.text)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::top::{figures::tests::snapshot, responses::TenantQuota};

    fn tenant(name: &str, quota: TenantQuota, figures: Counts) -> TenantEntry {
        TenantEntry { tenant: name.into(), state: "open".into(), quota, figures }
    }

    /// Two polls, two seconds apart.
    fn between(before: Vec<TenantEntry>, now: Vec<TenantEntry>) -> Figures {
        let [mut one, mut other] = [snapshot(100, 1, 1, 1), snapshot(102, 1, 1, 1)];
        (one.tenants, other.tenants) = (before, now);
        Figures::new(Some(&one), &other)
    }

    fn text(cells: Vec<Cell>) -> String {
        cells.into_iter().map(|cell| cell.text).collect()
    }

    fn example() -> Figures {
        let quota =
            TenantQuota { connections: 100, topics: 50, publish_rate: 1_000, ..TenantQuota::default() };
        let busy = |ticks, refused| Counts {
            connections: 12,
            topics: 46,
            ticks_published: ticks,
            publishes_refused: refused,
            connections_refused: refused / 40,
            ..Counts::default()
        };
        let quiet = Counts { connections: 5, ..Counts::default() };
        let at = |ticks, refused| {
            vec![
                tenant("free", TenantQuota::default(), Counts { connections: 1_234, ..quiet }),
                tenant("beta", quota, quiet),
                tenant("acme", quota, busy(ticks, refused)),
                TenantEntry { state: "removed".into(), ..tenant("gone", quota, quiet) },
            ]
        };
        between(at(1_000, 0), at(2_600, 240))
    }

    #[test]
    fn each_tenant_has_the_quota_that_it_uses_most_of() {
        let figures = example();
        let line = |width| text(super::line(&figures, width).unwrap());
        assert_eq!(line(100), "tenants: acme 92% of topics, beta 5% of connections, free 1,234 sessions");
        assert_eq!(line(40), "tenants: acme 92% of topics");
        assert_eq!(figures.tenants[0].fullest, Some(("topics", 92.0)));
    }

    #[test]
    fn tenants_that_are_refused_something_are_named_with_what_and_how_often() {
        let figures = example();
        assert_eq!(notices(&figures, 100), ["tenant acme over quota: 3.0 connections/s, 120 ticks/s"]);
        assert_eq!(notices(&figures, 45), ["tenant acme over quota: 3.0 connections/s"]);
        let refused = |count| Counts { egress_waits: count, ..Counts::default() };
        let many = |count| {
            (0..5).map(|n| tenant(&format!("t{n}"), TenantQuota::default(), refused(count))).collect()
        };
        let notices = notices(&between(many(0), many(20)), 100);
        assert_eq!(notices.len(), 4);
        assert_eq!(notices[0], "tenant t0 over quota: 10 SENDs held back/s");
        assert_eq!(notices[3], "and 2 more tenants over quota");
    }

    #[test]
    fn without_tenants_there_is_nothing_and_of_many_the_rest_is_counted() {
        let none = between(Vec::new(), Vec::new());
        assert!(line(&none, 100).is_none() && notices(&none, 100).is_empty());
        let many = |_| (0..50).map(|n| tenant(&format!("t{n}"), TenantQuota::default(), Counts::default()));
        let figures = between(many(0).collect(), many(1).collect());
        assert!(text(line(&figures, 10_000).unwrap()).ends_with("t15 0 sessions, and 34 more"));
        assert!(notices(&figures, 100).is_empty());
    }
}
