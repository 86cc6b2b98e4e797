//! WFDB headers (`.hea`): which files hold a record's signals, and what the numbers in them mean. See header(5wfdb).

use super::SIGNALS_MAX;

/// Sampling rate where the header gives none, Hz.
const FS_HZ_DEFAULT: f64 = 250.0;
/// Steps a mV where the header gives none, or 0: an uncalibrated signal.
const GAIN_DEFAULT: f64 = 200.0;
/// Samples of one signal in a frame: more is no ECG.
const SAMPLES_PER_FRAME_MAX: usize = 256;

/// A header: one record of one segment.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// The record's name.
    pub record: String,
    /// Frames a second, Hz.
    pub frames_hz: f64,
    /// Frames; `None`: as many as the files hold.
    pub frames: Option<u64>,
    /// At least one.
    pub signals: Vec<Signal>,
}

/// One signal of a record.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    /// The file that holds it; signals of one file follow each other, and take turns in it.
    pub file: String,
    /// How samples are stored.
    pub format: Format,
    /// Samples in a frame.
    pub samples_per_frame: usize,
    /// Frames by which the signal is late in its file.
    pub skew: u64,
    /// Bytes before the first sample.
    pub byte_offset: u64,
    /// Steps of the converter for one unit; not 0.
    pub gain: f64,
    /// The step that is 0 units.
    pub baseline: i32,
    /// The unit.
    pub units: String,
    /// Sum of all samples, modulo 2^16; `None`: not given.
    pub checksum: Option<i16>,
    /// What it is, `MLII` say; empty: not given.
    pub description: String,
    /// The line of the header, from 1.
    pub line: usize,
}

/// How samples are stored. See signal(5wfdb).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Two samples of 12 bits in three bytes.
    Packed212,
    /// 16 bits, little-endian.
    Little16,
    /// One that is not read here: its number.
    Other(u32),
}

/// What is wrong with a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderError {
    /// The line, from 1; of the last where something is missing at the end.
    pub line: usize,
    /// What is wrong and what to do.
    pub text: String,
}

/// Reads a header. Comments and empty lines may stand anywhere.
///
/// # Errors
/// [`HeaderError`], for the first line that is wrong.
pub fn parse(bytes: &[u8]) -> Result<Header, HeaderError> {
    // Comments may be in any encoding; what matters is ASCII.
    let text = String::from_utf8_lossy(bytes);
    let mut lines =
        text.lines().enumerate().map(|(at, line)| (at + 1, line.trim())).filter(|(_, line)| is_said(line));
    let lines_total = text.lines().count().max(1);
    let Some((number, line)) = lines.next() else {
        return Err(HeaderError { line: lines_total, text: "no record line: is it a WFDB header?".into() });
    };
    let at = |number| move |text: String| HeaderError { line: number, text };
    let (mut header, count) = record_line(line).map_err(at(number))?;
    while header.signals.len() < count {
        let Some((number, line)) = lines.next() else {
            let text = format!("{count} signals are announced and {} are described", header.signals.len());
            return Err(HeaderError { line: lines_total, text });
        };
        header.signals.push(signal_line(line, number).map_err(at(number))?);
    }
    match lines.next() {
        None => Ok(header),
        Some((number, _)) => Err(HeaderError {
            line: number,
            text: format!("{count} signals are announced and more are described"),
        }),
    }
}

fn is_said(line: &str) -> bool {
    !line.is_empty() && !line.starts_with('#')
}

/// `name[/segments] signals [fs[/counter[(base)]] [frames [time [date]]]]`
fn record_line(line: &str) -> Result<(Header, usize), String> {
    let mut words = line.split_whitespace();
    let name = words.next().unwrap_or_default();
    if let Some((name, segments)) = name.split_once('/') {
        return Err(format!(
            "record {name} has {segments} segments, and only records of one are read: name the header of a segment"
        ));
    }
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')) {
        return Err(format!("{name:?} is no name of a record: is it a WFDB header?"));
    }
    let count = words.next().ok_or("the record line has no number of signals")?;
    let count: usize =
        count.parse().map_err(|_| format!("{count:?} is no number of signals: is it a WFDB header?"))?;
    if !(1..=SIGNALS_MAX).contains(&count) {
        return Err(format!("{count} signals: 1 to {SIGNALS_MAX} are read"));
    }
    let frames_hz = words.next().map_or(Ok(FS_HZ_DEFAULT), frequency)?;
    let frames = match words.next() {
        None => None,
        Some(word) => match word.parse().map_err(|_| format!("{word:?} is no number of samples"))? {
            0 => None,
            frames => Some(frames),
        },
    };
    // The base time and date that may follow are not needed.
    Ok((Header { record: name.into(), frames_hz, frames, signals: Vec::with_capacity(count) }, count))
}

/// `fs[/counter[(base)]]`: only the first matters, but all must be numbers.
fn frequency(word: &str) -> Result<f64, String> {
    let bad = || format!("{word:?} is no sampling rate: as in 360, 360/250 or 360/250(0)");
    let (fs, counter) = match word.split_once('/') {
        None => (word, None),
        Some((fs, counter)) => (fs, Some(counter)),
    };
    if let Some(counter) = counter {
        let (counter, base) = match counter.split_once('(') {
            None => (counter, None),
            Some((counter, base)) => (counter, Some(base.strip_suffix(')').ok_or_else(bad)?)),
        };
        for number in [Some(counter), base].into_iter().flatten() {
            number.parse::<f64>().ok().filter(|number| number.is_finite()).ok_or_else(bad)?;
        }
    }
    fs.parse().ok().filter(|fs: &f64| fs.is_finite() && *fs > 0.0).ok_or_else(bad)
}

/// `file format [gain [resolution [zero [first [checksum [block [description]]]]]]]`
fn signal_line(line: &str, number: usize) -> Result<Signal, String> {
    let mut rest = line;
    let file = next_word(&mut rest).unwrap_or_default();
    let format = next_word(&mut rest).ok_or("the signal line has no format")?;
    let (format, samples_per_frame, skew, byte_offset) = storage(format)?;
    let gain = next_word(&mut rest).map_or(Ok((GAIN_DEFAULT, None, "mV".into())), scale)?;
    let (gain, baseline, units) = gain;
    number_of::<i32>(&mut rest, "resolution of the converter")?;
    let zero = number_of::<i32>(&mut rest, "zero of the converter")?;
    number_of::<i32>(&mut rest, "first value")?;
    let checksum = number_of::<i64>(&mut rest, "checksum")?;
    number_of::<i64>(&mut rest, "block size")?;
    Ok(Signal {
        file: file.into(),
        format,
        samples_per_frame,
        skew,
        byte_offset,
        gain,
        baseline: baseline.or(zero).unwrap_or(0),
        units,
        // Some programs write it signed, others not: it is a sum modulo 2^16.
        checksum: checksum.map(|sum| sum as u16 as i16),
        description: rest.trim().into(),
        line: number,
    })
}

/// Takes a word off the front.
fn next_word<'a>(rest: &mut &'a str) -> Option<&'a str> {
    let text = rest.trim_start();
    let (word, after) = text.split_at(text.find(char::is_whitespace).unwrap_or(text.len()));
    *rest = after;
    Some(word).filter(|word| !word.is_empty())
}

fn number_of<T: std::str::FromStr>(rest: &mut &str, what: &str) -> Result<Option<T>, String> {
    next_word(rest)
        .map(|word| word.parse().map_err(|_| format!("{word:?} is no number: the {what} stands here")))
        .transpose()
}

/// `format[xSAMPLES][:SKEW][+OFFSET]`
fn storage(word: &str) -> Result<(Format, usize, u64, u64), String> {
    let bad = || format!("{word:?} is no format: as in 212, 16, 212x2, 16:1 or 16+512");
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, mut rest) = word.split_at(digits(word));
    let format = match number.parse().map_err(|_| bad())? {
        212 => Format::Packed212,
        16 => Format::Little16,
        other => Format::Other(other),
    };
    let (mut samples_per_frame, mut skew, mut byte_offset) = (1, 0, 0);
    // Each at most once, and in this order.
    for mark in ['x', ':', '+'] {
        if let Some(after) = rest.strip_prefix(mark) {
            let (number, after) = after.split_at(digits(after));
            let number: u64 = number.parse().map_err(|_| bad())?;
            rest = after;
            match mark {
                'x' => samples_per_frame = usize::try_from(number).unwrap_or(usize::MAX),
                ':' => skew = number,
                _ => byte_offset = number,
            }
        }
    }
    if !rest.is_empty() {
        return Err(bad());
    }
    if !(1..=SAMPLES_PER_FRAME_MAX).contains(&samples_per_frame) {
        return Err(format!("{samples_per_frame} samples in a frame: 1 to {SAMPLES_PER_FRAME_MAX} are read"));
    }
    Ok((format, samples_per_frame, skew, byte_offset))
}

/// `gain[(baseline)][/units]`
fn scale(word: &str) -> Result<(f64, Option<i32>, String), String> {
    let bad = || format!("{word:?} is no gain: as in 200, 200/mV or 200(1024)/mV");
    let (numbers, units) = word.split_once('/').unwrap_or((word, "mV"));
    let (gain, baseline) = match numbers.split_once('(') {
        None => (numbers, None),
        Some((gain, baseline)) => {
            let baseline = baseline.strip_suffix(')').and_then(|text| text.parse().ok()).ok_or_else(bad)?;
            (gain, Some(baseline))
        }
    };
    let gain: f64 = gain.parse().ok().filter(|gain: &f64| gain.is_finite()).ok_or_else(bad)?;
    if units.is_empty() {
        return Err(bad());
    }
    Ok((if gain == 0.0 { GAIN_DEFAULT } else { gain }, baseline, units.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(line: &str) -> Result<Signal, String> {
        parse(format!("r 1\n{line}\n").as_bytes())
            .map(|mut header| header.signals.remove(0))
            .map_err(|error| format!("{}: {}", error.line, error.text))
    }

    #[test]
    fn a_header_with_everything_is_read() {
        let text = b"# before\r\nr-1 2 360/250.5(-3) 650000 12:30:00 25/05/1989\r\n\r\n\
            a.dat 212x2:3+24 200.5(-7)/uV 11 1024 995 -22131 0 MLII upper  lead\r\n# \xff between\n\
            b.dat 16\n# after";
        let header = parse(text).unwrap();
        assert_eq!((&*header.record, header.frames_hz, header.frames), ("r-1", 360.0, Some(650_000)));
        let first = Signal {
            file: "a.dat".into(),
            format: Format::Packed212,
            samples_per_frame: 2,
            skew: 3,
            byte_offset: 24,
            gain: 200.5,
            baseline: -7,
            units: "uV".into(),
            checksum: Some(-22131),
            description: "MLII upper  lead".into(),
            line: 4,
        };
        let second = Signal {
            file: "b.dat".into(),
            format: Format::Little16,
            samples_per_frame: 1,
            skew: 0,
            byte_offset: 0,
            gain: 200.0,
            baseline: 0,
            units: "mV".into(),
            checksum: None,
            description: String::new(),
            line: 6,
        };
        assert_eq!(header.signals, [first, second]);
    }

    #[test]
    fn what_is_left_out_has_the_defaults_of_the_format() {
        let header = parse(b"r 1\nf 16").unwrap();
        assert_eq!((header.frames_hz, header.frames), (250.0, None));
        assert_eq!(parse(b"r 1 100 0\nf 16").unwrap().frames, None);
        let zero = signal("f 16 0 12 2048").unwrap();
        assert_eq!((zero.gain, zero.baseline, &*zero.units), (200.0, 2048, "mV"));
        assert_eq!(signal("f 16 1e3(5)/V 12 2048").unwrap().baseline, 5);
        assert_eq!(signal("f 16 1 12 0 0 43405 0").unwrap().checksum, Some(-22131));
        assert_eq!(signal("f 310").unwrap().format, Format::Other(310));
    }

    #[test]
    fn what_is_wrong_is_said_with_the_line() {
        for (text, line, part) in [
            (&b""[..], 1, "no record line"),
            (b"# only\n# comments\n", 2, "no record line"),
            (b"r/3 2 360\n", 1, "3 segments"),
            (b"r\n", 1, "number of signals"),
            (b"r two\n", 1, "\"two\""),
            (b"r 0\n", 1, "1 to 32"),
            (b"r 99999999999\n", 1, "1 to 32"),
            (b"r -1\n", 1, "\"-1\""),
            (b"<html> 1\n", 1, "is it a WFDB header"),
            (b"r 1 fast\nf 16", 1, "sampling rate"),
            (b"r 1 0\nf 16", 1, "sampling rate"),
            (b"r 1 NaN\nf 16", 1, "sampling rate"),
            (b"r 1 inf\nf 16", 1, "sampling rate"),
            (b"r 1 -5\nf 16", 1, "sampling rate"),
            (b"r 1 360/\nf 16", 1, "sampling rate"),
            (b"r 1 360/250(\nf 16", 1, "sampling rate"),
            (b"r 1 360 many\nf 16", 1, "number of samples"),
            (b"r 1 360 -1\nf 16", 1, "number of samples"),
            (b"r 2 360\n\nf 16\n", 3, "2 signals are announced and 1 are described"),
            (b"r 1 360\nf 16\nf 16\n", 3, "more are described"),
            (b"r 1\nf\n", 2, "no format"),
            (b"r 1\nf x2\n", 2, "no format"),
            (b"r 1\nf 16x\n", 2, "is no format"),
            (b"r 1\nf 16x0\n", 2, "0 samples in a frame"),
            (b"r 1\nf 16x99999999999999999999\n", 2, "is no format"),
            (b"r 1\nf 16+9:1\n", 2, "is no format"),
            (b"r 1\nf 16 gain\n", 2, "gain"),
            (b"r 1\nf 16 inf\n", 2, "gain"),
            (b"r 1\nf 16 200(1024/mV\n", 2, "gain"),
            (b"r 1\nf 16 200/\n", 2, "gain"),
            (b"r 1\nf 16 200 MLII\n", 2, "resolution"),
            (b"r 1\nf 16 200 11 1e3\n", 2, "zero"),
            (b"r 1\nf 16 200 11 1 1 1 B\n", 2, "block size"),
        ] {
            let error = parse(text).expect_err(&String::from_utf8_lossy(text));
            assert!(error.line == line && error.text.contains(part), "{:?}: {error:?}", text.escape_ascii());
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let whole = b"# c\nr/1 2 360/1(2) 10 1:2:3\nf 212x2:3+24 200(1)/mV 11 1 995 -2 0 M L\ng 16\n";
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let mut bytes = whole[..random.usize(..=whole.len())].to_vec();
            for _ in 0..random.usize(..4) {
                if !bytes.is_empty() {
                    let at = random.usize(..bytes.len());
                    bytes[at] =
                        if random.bool() { random.u8(..) } else { whole[random.usize(..whole.len())] };
                }
            }
            let _ = parse(&bytes);
        }
    }
}
