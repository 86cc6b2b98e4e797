//! WFDB annotations in MIT format (`.atr`): what cardiologists wrote beside the samples. See annot(5wfdb).
//!
//! ```text
//!  15      10 9                  0      little-endian
//! +----------+--------------------+
//! |   code   |      interval      |     frames since the annotation before
//! +----------+--------------------+
//! 59 SKIP: the interval is in the next four bytes, its high half first      62 CHN: the field is the channel
//! 60 NUM, 61 SUB: the field is about the annotation before                  63 AUX: so many bytes of text follow
//!  0 with interval 0: the end
//! ```

use std::path::Path;

use super::{ANNOTATION_BYTES_MAX, FileError, record::read_bounded};

const SKIP: u16 = 59;
const NUM: u16 = 60;
const SUB: u16 = 61;
const CHN: u16 = 62;
const AUX: u16 = 63;

/// One annotation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotation {
    /// Its frame.
    pub at_frame: u64,
    /// Its kind; 1 is a normal beat.
    pub code: u8,
    /// The field NUM; it holds until it changes.
    pub number: i8,
    /// The field SUB.
    pub subtype: i8,
    /// The field CHN; it holds until it changes.
    pub channel: u8,
    /// The text.
    pub aux: Vec<u8>,
}

impl Annotation {
    /// Whether it marks a beat, normal or not: WFDB's `isqrs`.
    pub fn is_beat(&self) -> bool {
        matches!(self.code, 1..=13 | 25 | 30 | 34 | 35 | 38 | 41)
    }
}

/// Reads an annotation file.
///
/// # Errors
/// [`FileError`], with the byte that is wrong.
pub fn load(file: &Path) -> Result<Vec<Annotation>, FileError> {
    let bytes = read_bounded(file, ANNOTATION_BYTES_MAX)?;
    parse(&bytes).map_err(|text| FileError::new(file, text))
}

/// Reads annotations. An end that is not marked is an end where no annotation is cut.
///
/// # Errors
/// What is wrong, and at which byte.
pub fn parse(bytes: &[u8]) -> Result<Vec<Annotation>, String> {
    let mut annotations: Vec<Annotation> = Vec::new();
    let (mut at, mut time, mut number, mut channel) = (0, 0u64, 0, 0);
    while at < bytes.len() {
        let begin = at;
        let cut = || format!("it ends in the middle of the annotation at byte {begin}: get the whole file");
        let mut word = || {
            let word = bytes.get(at..)?.first_chunk::<2>()?;
            at += 2;
            Some(u16::from_le_bytes(*word))
        };
        let first = word().ok_or_else(cut)?;
        let (code, interval) = (first >> 10, first & 0x3ff);
        match code {
            0 if interval == 0 => break,
            SKIP => {
                let (high, low) = (word().ok_or_else(cut)?, word().ok_or_else(cut)?);
                let interval = (u32::from(high) << 16 | u32::from(low)) as i32;
                time = time
                    .checked_add_signed(interval.into())
                    .ok_or_else(|| format!("the annotation at byte {begin} is before the record"))?;
            }
            NUM | SUB | CHN | AUX => {
                let Some(last) = annotations.last_mut() else {
                    return Err(format!("the field at byte {begin} belongs to no annotation"));
                };
                match code {
                    NUM => (last.number, number) = (interval as i8, interval as i8),
                    SUB => last.subtype = interval as i8,
                    CHN => (last.channel, channel) = (interval as u8, interval as u8),
                    _ => {
                        let len = usize::from(interval);
                        last.aux = bytes.get(at..at + len).ok_or_else(cut)?.to_vec();
                        // Padded to a whole word.
                        at += len.next_multiple_of(2);
                    }
                }
            }
            _ => {
                time += u64::from(interval);
                let code = code as u8;
                annotations.push(Annotation {
                    at_frame: time,
                    code,
                    number,
                    channel,
                    ..Annotation::default()
                });
            }
        }
    }
    Ok(annotations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ecg::record::tests::{made_record, record_100};

    fn words(words: &[u16]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
    fn word(code: u16, field: u16) -> u16 {
        code << 10 | field
    }

    #[test]
    fn fields_are_of_the_annotation_before_and_some_hold_on() {
        let mut bytes = words(&[word(28, 18), word(AUX, 3)]);
        bytes.extend(b"(N\0\0");
        bytes.extend(words(&[word(1, 59), word(NUM, 2), word(SUB, 0x3ff), word(CHN, 1)]));
        bytes.extend(words(&[word(SKIP, 0), 1, 2, word(5, 3), word(SKIP, 0), 0xffff, 0xfffe, word(1, 0)]));
        bytes.extend(words(&[0, 0x1234]));
        let annotations = parse(&bytes).unwrap();
        let annotation = |at_frame, code, number, subtype, channel, aux: &[u8]| Annotation {
            at_frame,
            code,
            number,
            subtype,
            channel,
            aux: aux.to_vec(),
        };
        assert_eq!(
            annotations,
            [
                annotation(18, 28, 0, 0, 0, b"(N\0"),
                annotation(77, 1, 2, -1, 1, b""),
                annotation(77 + 65_538 + 3, 5, 2, 0, 1, b""),
                annotation(77 + 65_538 + 3 - 2, 1, 2, 0, 1, b""),
            ]
        );
        assert_eq!(
            annotations.iter().map(Annotation::is_beat).collect::<Vec<_>>(),
            [false, true, true, true]
        );
    }

    #[test]
    fn what_is_cut_or_impossible_is_an_error_with_its_byte() {
        for (bytes, part) in [
            (&words(&[word(1, 5)])[..1], "byte 0"),
            (&words(&[word(1, 5), word(SKIP, 0), 0]), "byte 2"),
            (&words(&[word(1, 5), word(AUX, 9), 0]), "byte 2"),
            (&words(&[word(AUX, 0)]), "no annotation"),
            (&words(&[word(SKIP, 0), 0xffff, 0xffff]), "before the record"),
        ] {
            let error = parse(bytes).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(parse(b"").unwrap(), []);
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..random.usize(..40)).map(|_| random.u8(..)).collect();
            let _ = parse(&bytes);
        }
    }

    fn assert_beats(header: &Path, normal: usize, atrial: usize, ventricular: usize) {
        let annotations = load(&header.with_extension("atr")).unwrap();
        let count = |code| annotations.iter().filter(|annotation| annotation.code == code).count();
        assert_eq!((count(1), count(8), count(5)), (normal, atrial, ventricular));
        let beats = annotations.iter().filter(|annotation| annotation.is_beat()).count();
        assert_eq!(beats, normal + atrial + ventricular);
        assert_eq!(annotations[0].aux, b"(N\0");
    }

    #[test]
    fn the_made_record_has_its_beats() {
        assert_beats(&made_record(), 348, 15, 6);
    }

    #[test]
    #[ignore = "needs TICKCAST_RECORD=path/to/100.hea"]
    fn record_100_has_its_beats() {
        // As the database's own table counts them.
        assert_beats(&record_100(), 2_239, 33, 1);
    }
}
