//! The state of the screen: the latest figures, whether the server responds, and the user's choices.

use super::{
    figures::{Figures, is_same_process},
    keys::Action,
    responses::Snapshot,
};
use crate::operator::admin::query::SESSION_SORTS;
use tickcast_core::{now::Now, shard::survey::SessionSort};

/// The intervals that the keys step through, milliseconds.
const INTERVALS_MS: [u64; 9] = [100, 250, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000];
/// Rows of a page, whatever the size of the screen.
const PAGE_ROWS: isize = 10;

/// A list on the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Panel {
    /// Shards.
    Shards,
    /// Topics, by rate.
    Topics,
    /// Sessions.
    Sessions,
}

impl Panel {
    /// All lists, from the top down.
    pub const ALL: [Panel; 3] = [Panel::Shards, Panel::Topics, Panel::Sessions];

    fn moved(self, by: usize) -> Panel {
        Panel::ALL[(self as usize + by) % Panel::ALL.len()]
    }
}

/// A period in which the server has not responded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// When the first poll failed.
    pub since: Now,
    /// Why the last poll failed.
    pub reason: String,
}

/// What the caller has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Redraw the screen.
    Draw,
    /// Poll the server now.
    Poll,
    /// Stop until the shell resumes the process.
    Suspend,
    /// Exit.
    Quit,
}

/// Everything that the screen shows.
///
/// Invariant: each selected row exists in its list, or is 0.
///
/// Rates compare polls that are at least half an interval apart. A poll that a key requested may follow another within
/// milliseconds, and a rate over so short a time is noise.
///
/// ```text
///  polls    earlier ---------- base -- now       compares now with earlier, keeps base
///           earlier ---------- base ------- now  compares now with base, then now becomes base
/// ```
#[derive(Clone, Debug)]
pub struct Model {
    /// The address of the admin listener, as given.
    pub address: String,
    /// Time between two polls.
    pub interval_ms: u64,
    /// The requested order of sessions.
    pub sort: SessionSort,
    /// Whether polling is paused.
    pub is_paused: bool,
    /// Whether the help is open.
    pub shows_help: bool,
    /// The focused list.
    pub focus: Panel,
    /// The figures of the last successful poll.
    pub figures: Option<Figures>,
    /// `None` while the server responds.
    pub outage: Option<Outage>,
    selected: [usize; Panel::ALL.len()],
    base: Option<Snapshot>,
    earlier: Option<Snapshot>,
    /// The order of the sessions in `figures`.
    sort_shown: Option<SessionSort>,
}

impl Model {
    /// For a server that has not been polled yet.
    pub fn new(address: String, interval_ms: u64) -> Model {
        Model {
            address,
            interval_ms,
            sort: SessionSort::default(),
            is_paused: false,
            shows_help: false,
            focus: Panel::Sessions,
            figures: None,
            outage: None,
            selected: [0; Panel::ALL.len()],
            base: None,
            earlier: None,
            sort_shown: None,
        }
    }

    /// Takes the result of a poll. If it failed, the last figures stay.
    pub fn handle_poll(&mut self, poll: Result<Snapshot, String>, now: Now) {
        match poll {
            Ok(snapshot) => {
                self.outage = None;
                self.sort_shown = Some(snapshot.sort);
                let is_soon = self.base.as_ref().is_some_and(|base| {
                    let since_ns = snapshot.received_ns.saturating_sub(base.received_ns);
                    since_ns < self.interval_ns() / 2 && is_same_process(base, &snapshot)
                });
                if !is_soon {
                    self.earlier = self.base.take();
                }
                self.figures = Some(Figures::new(self.earlier.as_ref(), &snapshot));
                self.base.get_or_insert(snapshot);
                Panel::ALL.into_iter().for_each(|panel| self.select(panel, self.selected(panel)));
            }
            Err(reason) => {
                let since = self.outage.as_ref().map_or(now, |outage| outage.since);
                self.outage = Some(Outage { since, reason });
            }
        }
    }

    /// Applies a key's action.
    pub fn handle_action(&mut self, action: Action) -> Effect {
        let selected = self.selected(self.focus);
        match action {
            Action::Quit => return Effect::Quit,
            Action::Suspend => return Effect::Suspend,
            Action::Back if !self.shows_help => return Effect::Quit,
            Action::Back => self.shows_help = false,
            Action::Help => self.shows_help = !self.shows_help,
            Action::Move(rows) => self.select(self.focus, selected.saturating_add_signed(rows)),
            Action::Page(pages) => self.select(self.focus, selected.saturating_add_signed(pages * PAGE_ROWS)),
            Action::First => self.select(self.focus, 0),
            Action::Last => self.select(self.focus, usize::MAX),
            Action::NextPanel => self.focus = self.focus.moved(1),
            Action::PreviousPanel => self.focus = self.focus.moved(Panel::ALL.len() - 1),
            Action::Sort => {
                self.sort = next_sort(self.sort);
                self.focus = Panel::Sessions;
                self.select(Panel::Sessions, 0);
                return if self.is_paused { Effect::Draw } else { Effect::Poll };
            }
            Action::Pause => {
                self.is_paused = !self.is_paused;
                return if self.is_paused { Effect::Draw } else { Effect::Poll };
            }
            Action::Slower => {
                let slower = INTERVALS_MS.into_iter().find(|&ms| ms > self.interval_ms);
                self.interval_ms = slower.unwrap_or(self.interval_ms);
            }
            Action::Faster => {
                let faster = INTERVALS_MS.into_iter().rev().find(|&ms| ms < self.interval_ms);
                self.interval_ms = faster.unwrap_or(self.interval_ms);
            }
        }
        Effect::Draw
    }

    /// The selected row of a list, from 0.
    pub fn selected(&self, panel: Panel) -> usize {
        self.selected[panel as usize]
    }

    /// The number of rows of a list.
    pub fn rows(&self, panel: Panel) -> usize {
        let Some(figures) = &self.figures else { return 0 };
        match panel {
            Panel::Shards => figures.shards.len(),
            Panel::Topics => figures.topics.as_ref().map_or(0, Vec::len),
            Panel::Sessions => figures.sessions.as_ref().map_or(0, Vec::len),
        }
    }

    /// The order of the sessions on the screen. Differs from `sort` until the next poll completes.
    pub fn shown_sort(&self) -> SessionSort {
        self.sort_shown.unwrap_or(self.sort)
    }

    /// Time between two polls.
    pub fn interval_ns(&self) -> u64 {
        self.interval_ms * 1_000_000
    }

    fn select(&mut self, panel: Panel, row: usize) {
        self.selected[panel as usize] = row.min(self.rows(panel).saturating_sub(1));
    }
}

/// The name of an order in the query `sort=`.
pub fn sort_name(sort: SessionSort) -> &'static str {
    let found = SESSION_SORTS.into_iter().find(|(_, known)| *known == sort);
    debug_assert!(found.is_some(), "SESSION_SORTS lists every order");
    found.map_or("", |(name, _)| name)
}

fn next_sort(sort: SessionSort) -> SessionSort {
    let at = SESSION_SORTS.into_iter().position(|(_, known)| known == sort);
    debug_assert!(at.is_some(), "SESSION_SORTS lists every order");
    SESSION_SORTS[(at.unwrap_or(0) + 1) % SESSION_SORTS.len()].1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        limits::{TOP_INTERVAL_MS_HIGHEST, TOP_INTERVAL_MS_LOWEST},
        operator::top::figures::tests::snapshot,
    };

    fn now(seconds: u64) -> Now {
        Now { monotonic_ns: seconds * 1_000_000_000, realtime_ns: seconds * 1_000_000_000 }
    }

    fn model() -> Model {
        let mut model = Model::new("127.0.0.1:9490".into(), 1_000);
        model.handle_poll(Ok(snapshot(10, 2, 30, 5)), now(10));
        model
    }

    #[test]
    fn an_outage_keeps_the_last_figures_and_begins_with_the_first_failure() {
        let mut model = model();
        model.handle_poll(Err("refused".into()), now(11));
        model.handle_poll(Err("timed out".into()), now(12));
        assert_eq!(model.outage, Some(Outage { since: now(11), reason: "timed out".into() }));
        assert_eq!(model.figures.as_ref().map(|figures| figures.sessions_open), Some(4));
        model.handle_poll(Ok(snapshot(14, 2, 30, 5)), now(14));
        assert_eq!(model.outage, None);
        assert_eq!(model.figures.unwrap().seconds, Some(4.0));
    }

    /// A snapshot of a steady server after this many milliseconds.
    fn snapshot_at(ms: u64) -> Snapshot {
        let mut at = snapshot(ms, 1, 3, 5);
        at.received_ns = ms * 1_000_000;
        at
    }

    #[test]
    fn a_poll_soon_after_another_has_rates_over_an_interval() {
        let mut model = Model::new("127.0.0.1:9490".into(), 1_000);
        let mut seconds = |ms: u64| {
            model.handle_poll(Ok(snapshot_at(ms)), now(1));
            let figures = model.figures.as_ref().unwrap();
            let rate = figures.rates.map(|rates| rates.ticks.round());
            assert!(rate.is_none_or(|rate| rate == 100_000.0), "{ms}: {rate:?}");
            figures.seconds
        };
        assert_eq!(seconds(1_000), None);
        assert_eq!(seconds(1_003), None, "only the previous poll to compare with");
        assert_eq!(seconds(2_000), Some(1.0));
        assert_eq!(seconds(2_005), Some(1.005));
        assert_eq!(seconds(2_400), Some(1.4));
        assert_eq!(seconds(2_700), Some(0.7), "repeated keys do not stretch the interval");
        assert_eq!(seconds(2_710), Some(0.71));
        assert_eq!(seconds(3_710), Some(1.01));
    }

    #[test]
    fn a_restarted_server_is_not_compared_however_soon_the_poll() {
        let mut model = Model::new("127.0.0.1:9490".into(), 1_000);
        [1_000, 2_000].into_iter().for_each(|ms| model.handle_poll(Ok(snapshot_at(ms)), now(1)));
        let restarted = |ms: u64| {
            let mut snapshot = snapshot_at(ms);
            snapshot.server.start_seconds = Some(7.0);
            Ok(snapshot)
        };
        model.handle_poll(restarted(2_010), now(2));
        assert_eq!(model.figures.as_ref().unwrap().seconds, None);
        model.handle_poll(restarted(3_010), now(3));
        assert_eq!(model.figures.unwrap().seconds, Some(1.0));
    }

    #[test]
    fn the_selection_stays_within_the_rows_even_when_they_shrink() {
        let mut model = model();
        model.focus = Panel::Topics;
        model.handle_action(Action::Move(-1));
        assert_eq!(model.selected(Panel::Topics), 0);
        model.handle_action(Action::Page(1));
        model.handle_action(Action::Move(5));
        assert_eq!(model.selected(Panel::Topics), 15);
        model.handle_action(Action::Last);
        assert_eq!(model.selected(Panel::Topics), 29);
        model.handle_poll(Ok(snapshot(11, 2, 3, 5)), now(11));
        assert_eq!(model.selected(Panel::Topics), 2);
        model.handle_action(Action::First);
        assert_eq!(model.selected(Panel::Topics), 0);
        Model::new("".into(), 1).handle_action(Action::Last);
    }

    #[test]
    fn sorting_cycles_and_polls_at_once_unless_paused() {
        let mut model = model();
        let first = model.sort;
        for _ in 1..SESSION_SORTS.len() {
            assert_eq!(model.handle_action(Action::Sort), Effect::Poll);
            assert_ne!(model.sort, first);
            assert_eq!(model.shown_sort(), first, "until the next poll");
        }
        model.handle_action(Action::Sort);
        assert_eq!(model.sort, first);
        assert_eq!(model.handle_action(Action::Pause), Effect::Draw);
        assert_eq!(model.handle_action(Action::Sort), Effect::Draw);
        assert_eq!(model.handle_action(Action::Pause), Effect::Poll);
    }

    #[test]
    fn the_interval_stays_within_its_bounds() {
        let mut model = model();
        (0..20).for_each(|_| assert_eq!(model.handle_action(Action::Faster), Effect::Draw));
        assert_eq!(model.interval_ms, TOP_INTERVAL_MS_LOWEST);
        model.handle_action(Action::Slower);
        assert_eq!(model.interval_ms, 250);
        (0..20).for_each(|_| assert_eq!(model.handle_action(Action::Slower), Effect::Draw));
        assert_eq!(model.interval_ms, TOP_INTERVAL_MS_HIGHEST);
        model.interval_ms = 700;
        model.handle_action(Action::Faster);
        assert_eq!(model.interval_ms, 500);
    }

    #[test]
    fn escape_closes_the_help_first() {
        let mut model = model();
        model.handle_action(Action::Help);
        assert_eq!(model.handle_action(Action::Back), Effect::Draw);
        assert!(!model.shows_help);
        assert_eq!(model.handle_action(Action::Back), Effect::Quit);
        assert_eq!(model.handle_action(Action::Quit), Effect::Quit);
    }

    #[test]
    fn panels_cycle() {
        let mut model = model();
        for panel in [Panel::Shards, Panel::Topics, Panel::Sessions] {
            model.handle_action(Action::NextPanel);
            assert_eq!(model.focus, panel);
        }
        model.handle_action(Action::PreviousPanel);
        assert_eq!(model.focus, Panel::Topics);
    }
}
