//! What is looked at: the newest figures, whether the server still answers, and what the operator chose.

use super::{
    answers::Answers,
    figures::{Figures, is_same_life},
    keys::Action,
};
use crate::operator::admin::query::SESSION_SORTS;
use tickcast_core::{now::Now, shard::survey::SessionSort};

/// Times between two looks that the keys go through, milliseconds.
const INTERVALS_MS: [u64; 9] = [100, 250, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000];
/// Rows that a page has, whatever is seen of it.
const PAGE_ROWS: isize = 10;

/// A list of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Panel {
    /// Shards.
    Shards,
    /// Topics by rate.
    Topics,
    /// Sessions.
    Sessions,
}

impl Panel {
    /// From the top down.
    pub const ALL: [Panel; 3] = [Panel::Shards, Panel::Topics, Panel::Sessions];

    fn moved(self, by: usize) -> Panel {
        Panel::ALL[(self as usize + by) % Panel::ALL.len()]
    }
}

/// Since when a server has not answered, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// When the first look failed.
    pub since: Now,
    /// Why the last one did.
    pub reason: String,
}

/// What the terminal's owner has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Draw.
    Draw,
    /// Look at the server at once.
    Look,
    /// End.
    Quit,
}

/// All that a screen is made of.
///
/// Invariant: each selected row is one of its list's, or 0.
///
/// Rates are of looks that are half an interval apart at least: one that a key asked for comes a few milliseconds after
/// another, and what happened in those is noise.
///
/// ```text
///  looks    earlier ---------- base -- now       now is compared with earlier, and base stays
///           earlier ---------- base ------- now  now is compared with base, and becomes it
/// ```
#[derive(Clone, Debug)]
pub struct Model {
    /// The server's admin listener, as it was given.
    pub address: String,
    /// Time between two looks.
    pub interval_ms: u64,
    /// What sessions are chosen by.
    pub sort: SessionSort,
    /// Whether it does not look.
    pub is_paused: bool,
    /// Whether the keys are shown.
    pub shows_help: bool,
    /// The list that the keys move in.
    pub focus: Panel,
    /// Of the last answers, whenever they came.
    pub figures: Option<Figures>,
    /// `None` while it answers.
    pub silence: Option<Silence>,
    selected: [usize; Panel::ALL.len()],
    base: Option<Answers>,
    earlier: Option<Answers>,
    /// Of the figures.
    sort_shown: Option<SessionSort>,
}

impl Model {
    /// Of a server that was not looked at yet.
    pub fn new(address: String, interval_ms: u64) -> Model {
        Model {
            address,
            interval_ms,
            sort: SessionSort::default(),
            is_paused: false,
            shows_help: false,
            focus: Panel::Sessions,
            figures: None,
            silence: None,
            selected: [0; Panel::ALL.len()],
            base: None,
            earlier: None,
            sort_shown: None,
        }
    }

    /// A look's answers, or why there are none: then the figures stay as they were.
    pub fn handle_look(&mut self, look: Result<Answers, String>, now: Now) {
        match look {
            Ok(answers) => {
                self.silence = None;
                self.sort_shown = Some(answers.sort);
                let is_soon = self.base.as_ref().is_some_and(|base| {
                    let since_ns = answers.received_ns.saturating_sub(base.received_ns);
                    since_ns < self.interval_ns() / 2 && is_same_life(base, &answers)
                });
                if !is_soon {
                    self.earlier = self.base.take();
                }
                self.figures = Some(Figures::of(self.earlier.as_ref(), &answers));
                self.base.get_or_insert(answers);
                Panel::ALL.into_iter().for_each(|panel| self.select(panel, self.selected(panel)));
            }
            Err(reason) => {
                let since = self.silence.as_ref().map_or(now, |silence| silence.since);
                self.silence = Some(Silence { since, reason });
            }
        }
    }

    /// What the operator wants.
    pub fn handle_action(&mut self, action: Action) -> Effect {
        let selected = self.selected(self.focus);
        match action {
            Action::Quit => return Effect::Quit,
            Action::Back if !self.shows_help => return Effect::Quit,
            Action::Back => self.shows_help = false,
            Action::Help => self.shows_help = !self.shows_help,
            Action::Move(rows) => self.select(self.focus, selected.saturating_add_signed(rows)),
            Action::Page(pages) => self.select(self.focus, selected.saturating_add_signed(pages * PAGE_ROWS)),
            Action::First => self.select(self.focus, 0),
            Action::Last => self.select(self.focus, usize::MAX),
            Action::NextPanel => self.focus = self.focus.moved(1),
            Action::PanelBefore => self.focus = self.focus.moved(Panel::ALL.len() - 1),
            Action::Sort => {
                self.sort = next_sort(self.sort);
                self.focus = Panel::Sessions;
                self.select(Panel::Sessions, 0);
                return if self.is_paused { Effect::Draw } else { Effect::Look };
            }
            Action::Pause => {
                self.is_paused = !self.is_paused;
                return if self.is_paused { Effect::Draw } else { Effect::Look };
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

    /// The row of a list that is selected, counted from 0.
    pub fn selected(&self, panel: Panel) -> usize {
        self.selected[panel as usize]
    }

    /// The rows that there are of a list.
    pub fn rows(&self, panel: Panel) -> usize {
        let Some(figures) = &self.figures else { return 0 };
        match panel {
            Panel::Shards => figures.shards.len(),
            Panel::Topics => figures.topics.as_ref().map_or(0, Vec::len),
            Panel::Sessions => figures.sessions.as_ref().map_or(0, Vec::len),
        }
    }

    /// What the sessions that are shown were chosen by: another answer may be on its way.
    pub fn shown_sort(&self) -> SessionSort {
        self.sort_shown.unwrap_or(self.sort)
    }

    /// Time between two looks.
    pub fn interval_ns(&self) -> u64 {
        self.interval_ms * 1_000_000
    }

    fn select(&mut self, panel: Panel, row: usize) {
        self.selected[panel as usize] = row.min(self.rows(panel).saturating_sub(1));
    }
}

/// The name of an order, as a query has it.
pub fn sort_name(sort: SessionSort) -> &'static str {
    SESSION_SORTS.into_iter().find(|(_, known)| *known == sort).map_or("", |(name, _)| name)
}

fn next_sort(sort: SessionSort) -> SessionSort {
    let at = SESSION_SORTS.into_iter().position(|(_, known)| known == sort).unwrap_or(0);
    SESSION_SORTS[(at + 1) % SESSION_SORTS.len()].1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        limits::{TOP_INTERVAL_MS_HIGHEST, TOP_INTERVAL_MS_LOWEST},
        operator::top::figures::tests::answers,
    };

    fn now(seconds: u64) -> Now {
        Now { monotonic_ns: seconds * 1_000_000_000, realtime_ns: seconds * 1_000_000_000 }
    }

    fn model() -> Model {
        let mut model = Model::new("127.0.0.1:9490".into(), 1_000);
        model.handle_look(Ok(answers(10, 2, 30, 5)), now(10));
        model
    }

    #[test]
    fn a_server_that_goes_leaves_its_figures_and_is_silent_since_the_first_failure() {
        let mut model = model();
        model.handle_look(Err("refused".into()), now(11));
        model.handle_look(Err("timed out".into()), now(12));
        assert_eq!(model.silence, Some(Silence { since: now(11), reason: "timed out".into() }));
        assert_eq!(model.figures.as_ref().map(|figures| figures.sessions_open), Some(4));
        model.handle_look(Ok(answers(14, 2, 30, 5)), now(14));
        assert_eq!(model.silence, None);
        assert_eq!(model.figures.unwrap().seconds, Some(4.0));
    }

    /// Answers of a steady server after so many milliseconds.
    fn answers_at(ms: u64) -> Answers {
        let mut at = answers(ms, 1, 3, 5);
        at.received_ns = ms * 1_000_000;
        at
    }

    #[test]
    fn looks_that_come_soon_after_another_have_rates_of_an_interval_all_the_same() {
        let mut model = Model::new("127.0.0.1:9490".into(), 1_000);
        let mut seconds = |ms: u64| {
            model.handle_look(Ok(answers_at(ms)), now(1));
            let figures = model.figures.as_ref().unwrap();
            let rate = figures.rates.map(|rates| rates.ticks.round());
            assert!(rate.is_none_or(|rate| rate == 100_000.0), "{ms}: {rate:?}");
            figures.seconds
        };
        assert_eq!(seconds(1_000), None);
        assert_eq!(seconds(1_003), None, "nothing to compare with but the look before");
        assert_eq!(seconds(2_000), Some(1.0));
        assert_eq!(seconds(2_005), Some(1.005));
        assert_eq!(seconds(2_400), Some(1.4));
        assert_eq!(seconds(2_700), Some(0.7), "keys that go on do not make it longer and longer");
        assert_eq!(seconds(2_710), Some(0.71));
        assert_eq!(seconds(3_710), Some(1.01));
    }

    #[test]
    fn a_server_that_was_started_anew_is_not_compared_however_soon_the_look_is() {
        let mut model = Model::new("127.0.0.1:9490".into(), 1_000);
        [1_000, 2_000].into_iter().for_each(|ms| model.handle_look(Ok(answers_at(ms)), now(1)));
        let anew = |ms: u64| {
            let mut answers = answers_at(ms);
            answers.server.start_seconds = Some(7.0);
            Ok(answers)
        };
        model.handle_look(anew(2_010), now(2));
        assert_eq!(model.figures.as_ref().unwrap().seconds, None);
        model.handle_look(anew(3_010), now(3));
        assert_eq!(model.figures.unwrap().seconds, Some(1.0));
    }

    #[test]
    fn moving_stays_within_the_rows_even_when_they_become_fewer() {
        let mut model = model();
        model.focus = Panel::Topics;
        model.handle_action(Action::Move(-1));
        assert_eq!(model.selected(Panel::Topics), 0);
        model.handle_action(Action::Page(1));
        model.handle_action(Action::Move(5));
        assert_eq!(model.selected(Panel::Topics), 15);
        model.handle_action(Action::Last);
        assert_eq!(model.selected(Panel::Topics), 29);
        model.handle_look(Ok(answers(11, 2, 3, 5)), now(11));
        assert_eq!(model.selected(Panel::Topics), 2);
        model.handle_action(Action::First);
        assert_eq!(model.selected(Panel::Topics), 0);
        Model::new("".into(), 1).handle_action(Action::Last);
    }

    #[test]
    fn sorting_goes_round_and_looks_at_once_unless_paused() {
        let mut model = model();
        let first = model.sort;
        for _ in 1..SESSION_SORTS.len() {
            assert_eq!(model.handle_action(Action::Sort), Effect::Look);
            assert_ne!(model.sort, first);
            assert_eq!(model.shown_sort(), first, "until the answer is there");
        }
        model.handle_action(Action::Sort);
        assert_eq!(model.sort, first);
        assert_eq!(model.handle_action(Action::Pause), Effect::Draw);
        assert_eq!(model.handle_action(Action::Sort), Effect::Draw);
        assert_eq!(model.handle_action(Action::Pause), Effect::Look);
    }

    #[test]
    fn the_interval_keeps_to_its_bounds() {
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
    fn panels_go_round() {
        let mut model = model();
        for panel in [Panel::Shards, Panel::Topics, Panel::Sessions] {
            model.handle_action(Action::NextPanel);
            assert_eq!(model.focus, panel);
        }
        model.handle_action(Action::PanelBefore);
        assert_eq!(model.focus, Panel::Topics);
    }
}
