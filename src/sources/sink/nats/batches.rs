//! Batches of ticks whose markers are in flight, and the ticks of them that the server has refused.
//!
//! The server names a refused tick only by its subject, in an error that precedes the marker of the tick's batch. The client
//! passes errors on through a queue of [`EVENTS_MAX`], and drops those that find it full. So a batch is confirmed only if no
//! error can have been dropped, and every error has been matched to its tick.

use std::collections::{HashMap, VecDeque};

use crate::{
    nats::connection::EVENTS_MAX,
    sink::{Confirmed, Outlet, PublishId},
};
use tickcast_core::routes::Outcome;

/// Ticks of one marker, with their subjects.
#[derive(Debug, Default)]
struct Batch {
    ticks: Vec<(PublishId, String)>,
    /// Whether an error about one of them may be missing.
    is_uncertain: bool,
}

/// The batches whose markers are in flight, oldest first. Bound: the ticks that the outlet lets the writer take.
#[derive(Debug, Default)]
pub(super) struct Batches {
    batches: VecDeque<Batch>,
    /// Subjects of refused ticks that are not settled yet, one for each tick. Bound: the ticks of `batches`.
    denied: Vec<String>,
}

impl Batches {
    /// Adds the ticks that precede the next marker.
    pub fn push(&mut self, ticks: Vec<(PublishId, String)>) {
        self.batches.push_back(Batch { ticks, is_uncertain: false });
    }

    /// Notes the subjects of `denied` ticks, and how many events of any kind the client has passed on since the last call.
    pub fn note(&mut self, denied: Vec<String>, events: u64) {
        let mut is_uncertain = events >= EVENTS_MAX;
        for subject in denied {
            let mut ticks = self.batches.iter().flat_map(|batch| &batch.ticks);
            match ticks.any(|(_, known)| *known == subject) {
                true => self.denied.push(subject),
                // It concerns some tick, but cannot be parsed.
                false => is_uncertain = true,
            }
        }
        if is_uncertain {
            self.batches.iter_mut().for_each(|batch| batch.is_uncertain = true);
        }
    }

    /// Settles the ticks of the oldest batch, whose marker has come back: the server has taken them, or has said which it refuses.
    pub fn settle(&mut self, outlet: &mut Outlet) {
        let Batch { ticks, is_uncertain } = self.batches.pop_front().unwrap_or_default();
        let mut by_subject = HashMap::<String, Vec<PublishId>>::new();
        let is_denied = |subject: &String| self.denied.contains(subject);
        for (id, subject) in ticks {
            match is_denied(&subject) {
                true => by_subject.entry(subject).or_default().push(id),
                false if is_uncertain => outlet.fail(id, Outcome::Unconfirmed),
                false => outlet.confirm(id, Confirmed::default()),
            }
        }
        for (subject, ids) in by_subject {
            let mut left = ids.len();
            self.denied.retain(|denied| {
                let is_spent = left > 0 && *denied == subject;
                left -= usize::from(is_spent);
                !is_spent
            });
            for id in ids {
                match left {
                    0 => {
                        let why = format_args!("NATS does not permit to publish on {subject:?}");
                        outlet.fail_because(id, Outcome::Refused, &why);
                    }
                    // Only some of them were refused, and it is not known which.
                    _ => outlet.fail(id, Outcome::Unconfirmed),
                }
            }
        }
        if self.batches.is_empty() {
            self.denied.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::tests::Sink;

    /// Sends ticks with these subjects, one batch for each list. Their tickets count up from `ticket`.
    fn send(sink: &mut Sink, batches: &mut Batches, mut ticket: u64, subjects: &[&[&str]]) {
        for batch in subjects {
            let ticks = batch.iter().map(|&subject| {
                sink.send(0, ticket, "x", u64::MAX >> 1);
                ticket += 1;
                (sink.outlet.take().unwrap().id, subject.to_owned())
            });
            batches.push(ticks.collect());
        }
    }

    fn settled(sink: &mut Sink, batches: &mut Batches) -> Vec<(u64, Outcome)> {
        batches.settle(&mut sink.outlet);
        let mut answers: Vec<_> =
            sink.answers(0).into_iter().map(|(ticket, outcome, _)| (ticket, outcome)).collect();
        answers.sort_by_key(|(ticket, _)| *ticket);
        answers
    }

    fn named(subjects: &[&str]) -> Vec<String> {
        subjects.iter().map(|&subject| subject.to_owned()).collect()
    }

    #[test]
    fn refusal_that_comes_with_an_earlier_marker_is_kept_for_its_own_batch() {
        let (mut sink, mut batches) = (Sink::new(), Batches::default());
        send(&mut sink, &mut batches, 0, &[&["a", "denied"], &["b", "denied", "other"]]);
        batches.note(named(&["denied", "denied", "other"]), 3);
        assert_eq!(settled(&mut sink, &mut batches), [(0, Outcome::Confirmed), (1, Outcome::Refused)]);
        batches.note(Vec::new(), 0);
        let second = [(2, Outcome::Confirmed), (3, Outcome::Refused), (4, Outcome::Refused)];
        assert_eq!(settled(&mut sink, &mut batches), second);
        send(&mut sink, &mut batches, 5, &[&["denied"]]);
        assert_eq!(settled(&mut sink, &mut batches), [(5, Outcome::Confirmed)], "it may again");
    }

    #[test]
    fn ticks_are_unconfirmed_when_the_client_may_have_dropped_a_refusal() {
        let (mut sink, mut batches) = (Sink::new(), Batches::default());
        send(&mut sink, &mut batches, 0, &[&["a", "denied"], &["b"]]);
        batches.note(named(&["denied"]), EVENTS_MAX);
        send(&mut sink, &mut batches, 3, &[&["c"]]);
        assert_eq!(settled(&mut sink, &mut batches), [(0, Outcome::Unconfirmed), (1, Outcome::Refused)]);
        batches.note(Vec::new(), EVENTS_MAX - 1);
        assert_eq!(settled(&mut sink, &mut batches), [(2, Outcome::Unconfirmed)]);
        assert_eq!(settled(&mut sink, &mut batches), [(3, Outcome::Confirmed)], "sent after the flood");
    }

    #[test]
    fn ticks_are_unconfirmed_when_a_refusal_does_not_say_which_it_is_about() {
        let (mut sink, mut batches) = (Sink::new(), Batches::default());
        send(&mut sink, &mut batches, 0, &[&["a"]]);
        batches.note(named(&["nobody's"]), 1);
        assert_eq!(settled(&mut sink, &mut batches), [(0, Outcome::Unconfirmed)]);
        // One refusal for two ticks.
        send(&mut sink, &mut batches, 1, &[&["a", "a", "b"]]);
        batches.note(named(&["a"]), 1);
        let unconfirmed = [1, 2].map(|ticket| (ticket, Outcome::Unconfirmed));
        assert_eq!(settled(&mut sink, &mut batches), [&unconfirmed[..], &[(3, Outcome::Confirmed)]].concat());
    }
}
