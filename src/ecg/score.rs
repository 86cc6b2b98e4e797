//! How well a detector did: its beats against those of an expert.

/// Beats of both, paired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// Beats that both have.
    pub found: usize,
    /// Beats of the expert that the detector has not.
    pub missed: usize,
    /// Beats of the detector that the expert has not.
    pub extra: usize,
}

impl Score {
    /// Pairs beats that are at most `within` samples apart, each at most once. Both in increasing order.
    pub fn new(expert: &[u64], detected: &[u64], within: u64) -> Score {
        let (mut score, mut at) = (Score::default(), 0);
        for (index, &beat) in expert.iter().enumerate() {
            while at < detected.len() && detected[at] + within < beat {
                score.extra += 1;
                at += 1;
            }
            let is_near = detected.get(at).is_some_and(|&found| found.abs_diff(beat) <= within);
            // What is nearer to the expert's next beat is left for that one, if this one loses nothing by it.
            let next_wants = expert.get(index + 1).is_some_and(|&next| {
                is_near
                    && detected[at].abs_diff(next) < detected[at].abs_diff(beat)
                    && detected.get(at + 1).is_none_or(|&after| after.abs_diff(next) > within)
            });
            if is_near && !next_wants {
                score.found += 1;
                at += 1;
            } else {
                score.missed += 1;
            }
        }
        score.extra += detected.len() - at;
        score
    }

    /// Share of the expert's beats that were found, percent; 100 where there are none.
    pub fn sensitivity_percent(&self) -> f64 {
        percent(self.found, self.missed)
    }

    /// Share of the detector's beats that the expert has too, percent; 100 where there are none.
    pub fn positive_predictivity_percent(&self) -> f64 {
        percent(self.found, self.extra)
    }
}

fn percent(found: usize, other: usize) -> f64 {
    match found + other {
        0 => 100.0,
        all => 100.0 * found as f64 / all as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_beat_is_paired_once_within_the_bound() {
        for (expert, detected, found) in [
            (&[100, 200][..], &[100, 200][..], 2),
            (&[100], &[90, 110], 1),
            (&[100, 120], &[110], 1),
            (&[100], &[89], 0),
            (&[100], &[90], 1),
            (&[100], &[111], 0),
            (&[], &[5], 0),
            (&[5], &[], 0),
            (&[100, 112], &[106, 118], 2),
            (&[100, 112, 130], &[50, 109, 131, 200], 2),
        ] {
            let score = Score::new(expert, detected, 10);
            let expected = Score { found, missed: expert.len() - found, extra: detected.len() - found };
            assert_eq!(score, expected, "{expert:?} {detected:?}");
        }
    }

    #[test]
    fn shares_are_of_the_expert_and_of_the_detector() {
        let score = Score { found: 3, missed: 1, extra: 2 };
        assert_eq!((score.sensitivity_percent(), score.positive_predictivity_percent()), (75.0, 60.0));
        assert_eq!(Score::default().sensitivity_percent(), 100.0);
    }
}
