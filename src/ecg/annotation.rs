//! WFDB annotation files in MIT format (`.atr`), such as reference beats. See annot(5wfdb).
//!
//! ```text
//!  15      10 9                  0      little-endian
//! +----------+--------------------+
//! |   code   |      interval      |     frames since the previous annotation
//! +----------+--------------------+
//!  1 to 49  type of an annotation          59 SKIP  the interval is in the next four bytes, high word first
//! 60 NUM    the field is its number        61 SUB   the field is its subtype
//! 62 CHN    the field is its channel       63 AUX   the field is the length of the text that follows
//!  0        with interval 0: end of file
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
    /// Frame number.
    pub at_frame: u64,
    /// Annotation code; 1 is a normal beat.
    pub code: u8,
    /// NUM field. Applies to all following annotations until it changes.
    pub number: i8,
    /// SUB field.
    pub subtype: i8,
    /// CHN field. Applies to all following annotations until it changes.
    pub channel: u8,
    /// AUX string.
    pub aux: Vec<u8>,
}

impl Annotation {
    /// Whether the annotation marks a QRS complex, normal or not, as `isqrs` in WFDB.
    pub fn is_beat(&self) -> bool {
        matches!(self.code, 1..=13 | 25 | 30 | 34 | 35 | 38 | 41)
    }
}

/// Reads an annotation file.
///
/// # Errors
/// [`FileError`] if the file cannot be read or is malformed; the text names the byte offset.
pub fn load(file: &Path) -> Result<Vec<Annotation>, FileError> {
    let bytes = read_bounded(file, ANNOTATION_BYTES_MAX)?;
    parse(&bytes).map_err(|text| FileError::new(file, text))
}

/// Parses annotations. The end-of-file marker may be missing if no annotation is truncated.
///
/// # Errors
/// Describes the error and its byte offset.
pub fn parse(bytes: &[u8]) -> Result<Vec<Annotation>, String> {
    let mut annotations: Vec<Annotation> = Vec::new();
    let (mut at, mut time, mut number, mut channel) = (0, 0u64, 0, 0);
    while at < bytes.len() {
        let begin = at;
        let truncated = || {
            format!("file ends in the middle of the annotation at byte {begin}: download the complete file")
        };
        let mut word = || {
            let word = bytes.get(at..)?.first_chunk::<2>()?;
            at += 2;
            Some(u16::from_le_bytes(*word))
        };
        let first = word().ok_or_else(truncated)?;
        let (code, interval) = (first >> 10, first & 0x3ff);
        match code {
            0 if interval == 0 => break,
            SKIP => {
                let (high, low) = (word().ok_or_else(truncated)?, word().ok_or_else(truncated)?);
                let interval = (u32::from(high) << 16 | u32::from(low)) as i32;
                time = time
                    .checked_add_signed(interval.into())
                    .ok_or_else(|| format!("annotation at byte {begin} is before the start of the record"))?;
            }
            NUM | SUB | CHN | AUX => {
                let Some(last) = annotations.last_mut() else {
                    return Err(format!("field at byte {begin} is not preceded by an annotation"));
                };
                match code {
                    NUM => (last.number, number) = (interval as i8, interval as i8),
                    SUB => last.subtype = interval as i8,
                    CHN => (last.channel, channel) = (interval as u8, interval as u8),
                    _ => {
                        let len = usize::from(interval);
                        last.aux = bytes.get(at..at + len).ok_or_else(truncated)?.to_vec();
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
    use crate::record::tests::{made_record, record_100};

    fn words(words: &[u16]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
    fn word(code: u16, field: u16) -> u16 {
        code << 10 | field
    }

    #[test]
    fn fields_belong_to_the_previous_annotation_and_some_persist() {
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
    fn truncated_and_invalid_annotations_are_errors_with_a_byte_offset() {
        for (bytes, part) in [
            (&words(&[word(1, 5)])[..1], "byte 0"),
            (&words(&[word(1, 5), word(SKIP, 0), 0]), "byte 2"),
            (&words(&[word(1, 5), word(AUX, 9), 0]), "byte 2"),
            (&words(&[word(AUX, 0)]), "not preceded by an annotation"),
            (&words(&[word(SKIP, 0), 0xffff, 0xffff]), "before the start of the record"),
        ] {
            let error = parse(bytes).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(parse(b"").unwrap(), []);
    }

    #[test]
    fn parsing_never_panics() {
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
    fn made_record_has_its_beats() {
        assert_beats(&made_record(), 348, 15, 6);
    }

    #[test]
    #[ignore = "needs TICKCAST_RECORD=path/to/100.hea"]
    fn record_100_has_the_published_number_of_beats() {
        // From the tables of the MIT-BIH database.
        assert_beats(&record_100(), 2_239, 33, 1);
    }
}
