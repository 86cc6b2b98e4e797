//! Beat-by-beat comparison of a detector with the reference annotations of an expert.

/// Result of a beat-by-beat comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// True positives: reference beats that were detected.
    pub found: usize,
    /// False negatives: reference beats that were not detected.
    pub missed: usize,
    /// False positives: detections without a reference beat.
    pub extra: usize,
}

impl Score {
    /// Matches each expert beat with at most one detected beat, at most `within` samples apart.
    ///
    /// Both slices must be in increasing order.
    pub fn new(expert: &[u64], detected: &[u64], within: u64) -> Score {
        let (mut score, mut at) = (Score::default(), 0);
        for (index, &beat) in expert.iter().enumerate() {
            while at < detected.len() && detected[at] + within < beat {
                score.extra += 1;
                at += 1;
            }
            let is_near = detected.get(at).is_some_and(|&found| found.abs_diff(beat) <= within);
            // Leave this detection to the next reference beat if it is nearer to that one and that one has no other match.
            let is_for_next = expert.get(index + 1).is_some_and(|&next| {
                is_near
                    && detected[at].abs_diff(next) < detected[at].abs_diff(beat)
                    && detected.get(at + 1).is_none_or(|&after| after.abs_diff(next) > within)
            });
            if is_near && !is_for_next {
                score.found += 1;
                at += 1;
            } else {
                score.missed += 1;
            }
        }
        score.extra += detected.len() - at;
        score
    }

    /// Sensitivity, TP / (TP + FN), percent; 100 if there are no reference beats.
    pub fn sensitivity_percent(&self) -> f64 {
        percent(self.found, self.missed)
    }

    /// Positive predictivity, TP / (TP + FP), percent; 100 if there are no detections.
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
    fn each_beat_is_matched_at_most_once_within_the_tolerance() {
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
    fn sensitivity_counts_missed_beats_and_predictivity_counts_extra_ones() {
        let score = Score { found: 3, missed: 1, extra: 2 };
        assert_eq!((score.sensitivity_percent(), score.positive_predictivity_percent()), (75.0, 60.0));
        assert_eq!(Score::default().sensitivity_percent(), 100.0);
    }
}
