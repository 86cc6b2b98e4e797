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
//!  0        with interval 0: end of file; else an empty annotation, which only moves the time
//! ```
//! Notes at time 0 that begin with `##` are not annotations: they describe the file. `## time resolution: 1000` means that
//! times count milliseconds, not frames. If these notes are complete, a SKIP of -1 and an empty annotation end them.

use std::path::Path;

use super::{
    ANNOTATION_BYTES_MAX, FileError,
    record::{Record, read_bounded},
};

const SKIP: u16 = 59;
const NUM: u16 = 60;
const SUB: u16 = 61;
const CHN: u16 = 62;
const AUX: u16 = 63;
/// Code of a note.
const NOTE: u8 = 22;
/// Begins a note about the file.
const ABOUT_FILE: &[u8] = b"## ";
/// Begins the note with the number of times per second.
const TIME_RESOLUTION: &[u8] = b"## time resolution:";

/// The annotations of a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Annotations {
    /// Times per second, if the file gives it; else times are frame numbers.
    pub times_hz: Option<f64>,
    /// The annotations, in the order of the file.
    pub all: Vec<Annotation>,
}

impl Annotations {
    /// Sample numbers of the beats in a record, in increasing order.
    pub fn beats(&self, record: &Record) -> Vec<u64> {
        let per_time = match self.times_hz {
            Some(times_hz) => record.fs_hz / times_hz,
            None => record.samples_per_frame as f64,
        };
        let beats = self.all.iter().filter(|annotation| annotation.is_beat());
        // Exact up to 2^53; a larger product saturates.
        let mut at: Vec<u64> = beats.map(|beat| (beat.at as f64 * per_time).round() as u64).collect();
        at.sort_unstable();
        at
    }
}

/// One annotation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotation {
    /// Its time: a frame number, or as [`Annotations::times_hz`] says.
    pub at: u64,
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
pub fn load(file: &Path) -> Result<Annotations, FileError> {
    let bytes = read_bounded(file, ANNOTATION_BYTES_MAX)?;
    parse(&bytes).map_err(|text| FileError::new(file, text))
}

/// Parses annotations. The end-of-file marker may be missing if no annotation is truncated.
///
/// # Errors
/// Describes the error and its byte offset.
pub fn parse(bytes: &[u8]) -> Result<Annotations, String> {
    let mut annotations: Vec<Annotation> = Vec::new();
    let (mut at, mut time, mut number, mut channel) = (0, 0i64, 0, 0);
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
                // The sum of all intervals in a file of bounded size fits.
                time += i64::from((u32::from(high) << 16 | u32::from(low)) as i32);
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
                time += i64::from(interval);
                let before_start = || format!("annotation at byte {begin} is before the start of the record");
                let at = u64::try_from(time).map_err(|_| before_start())?;
                annotations.push(Annotation {
                    at,
                    code: code as u8,
                    number,
                    channel,
                    ..Annotation::default()
                });
            }
        }
    }
    let mut times_hz = None;
    for resolution in annotations.iter().filter_map(time_resolution) {
        times_hz = Some(resolution?);
    }
    // Fields may follow an empty annotation, so it was kept until here.
    annotations.retain(|annotation| annotation.code != 0 && !is_about_file(annotation));
    Ok(Annotations { times_hz, all: annotations })
}

fn is_about_file(annotation: &Annotation) -> bool {
    annotation.at == 0 && annotation.code == NOTE && annotation.aux.starts_with(ABOUT_FILE)
}

/// Times per second, if this annotation is the note that gives it.
fn time_resolution(annotation: &Annotation) -> Option<Result<f64, String>> {
    let text = annotation.aux.strip_prefix(TIME_RESOLUTION).filter(|_| is_about_file(annotation))?;
    let text = String::from_utf8_lossy(text);
    let word = text
        .split(|c: char| c.is_whitespace() || c == '\0')
        .find(|word| !word.is_empty())
        .unwrap_or_default();
    let number = word.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    Some(number.ok_or_else(|| format!("time resolution {word:?} is not a number of times per second")))
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

    /// A note at time 0, without the words that end such notes.
    fn note(text: &str) -> Vec<u8> {
        let mut bytes = words(&[word(NOTE.into(), 0), word(AUX, text.len() as u16)]);
        bytes.extend(text.bytes());
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        bytes
    }

    /// The end of the notes about the file, as wrann of wfdb-python writes it.
    const END_OF_NOTES: [u8; 8] = [0, 236, 255, 255, 255, 255, 1, 0];

    #[test]
    fn notes_about_the_file_are_no_annotations_and_say_what_times_count() {
        let beats = words(&[word(1, 100), word(5, 30)]);
        let expected = [100, 130].map(|at| (at, if at == 100 { 1 } else { 5 }));
        let definitions =
            ["## annotation type definitions", "42 ~ x", "## end of definitions"].map(note).concat();
        for (file, times_hz) in [
            (beats.clone(), None),
            ([&note("## time resolution: 1000")[..], &END_OF_NOTES, &beats].concat(), Some(1000.0)),
            ([&note("## time resolution: 62.5\0")[..], &beats].concat(), Some(62.5)),
            (
                [&note("## time resolution: 360")[..], &definitions, &END_OF_NOTES, &beats].concat(),
                Some(360.0),
            ),
            ([&definitions[..], &END_OF_NOTES, &beats].concat(), None),
        ] {
            let Annotations { times_hz: got_hz, all } = parse(&file).unwrap();
            assert_eq!(got_hz, times_hz);
            let got: Vec<_> = all.iter().map(|annotation| (annotation.at, annotation.code)).collect();
            // "42 ~ x" does not begin with ##: a note as any other.
            assert_eq!(got.into_iter().filter(|(_, code)| *code != NOTE).collect::<Vec<_>>(), expected);
        }
        let later = [words(&[word(1, 9)]), words(&[word(NOTE.into(), 5)])].concat();
        assert_eq!(parse(&later).unwrap().all.len(), 2, "a note elsewhere is an annotation");
    }

    #[test]
    fn times_are_converted_to_samples_by_frame_or_by_resolution() {
        let record = Record {
            name: "r".into(),
            signal: "II".into(),
            fs_hz: 500.0,
            samples_per_frame: 2,
            pieces: Vec::new(),
            checksum_differs: false,
        };
        let beat = |at| Annotation { at, code: 1, ..Annotation::default() };
        for (times_hz, expected) in
            [(None, [20, 400]), (Some(250.0), [20, 400]), (Some(1000.0), [5, 100]), (Some(300.0), [17, 333])]
        {
            let annotations = Annotations { times_hz, all: vec![beat(200), beat(10)] };
            assert_eq!(annotations.beats(&record), expected, "{times_hz:?}");
        }
        let last = Annotations { times_hz: Some(1e-300), all: vec![beat(u64::MAX)] };
        assert_eq!(last.beats(&record), [u64::MAX]);
    }

    #[test]
    fn fields_belong_to_the_previous_annotation_and_some_persist() {
        let mut bytes = words(&[word(28, 18), word(AUX, 3)]);
        bytes.extend(b"(N\0\0");
        bytes.extend(words(&[word(1, 59), word(NUM, 2), word(SUB, 0x3ff), word(CHN, 1)]));
        bytes.extend(words(&[word(SKIP, 0), 1, 2, word(5, 3), word(SKIP, 0), 0xffff, 0xfffe, word(1, 0)]));
        bytes.extend(words(&[0, 0x1234]));
        let annotations = parse(&bytes).unwrap().all;
        let annotation = |at, code, number, subtype, channel, aux: &[u8]| Annotation {
            at,
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
            (&words(&[word(SKIP, 0), 0xffff, 0xfffe, word(1, 1)]), "before the start of the record"),
            (&note("## time resolution: fast"), "time resolution \"fast\""),
            (&note("## time resolution: 0"), "time resolution \"0\""),
            (&note("## time resolution:"), "time resolution \"\""),
        ] {
            let error = parse(bytes).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(parse(b"").unwrap(), Annotations::default());
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
        let annotations = load(&header.with_extension("atr")).unwrap().all;
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
