//! WFDB header files (`.hea`): a record's signals, signal files and units. See header(5wfdb).

use std::borrow::Cow;

use super::SIGNALS_MAX;

/// Sampling frequency if the header omits it, Hz.
const FS_HZ_DEFAULT: f64 = 250.0;
/// ADC gain if the header omits it or gives 0 (uncalibrated signal), ADC units per mV.
const GAIN_DEFAULT: f64 = 200.0;
/// Maximum samples per frame of a signal; no ECG has more.
const SAMPLES_PER_FRAME_MAX: usize = 256;

/// Header of a record, or of a segment of one.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// Record name.
    pub record: String,
    /// Frame rate, Hz.
    pub frames_hz: f64,
    /// Number of frames; `None` if not specified.
    pub frames: Option<u64>,
    /// Signals, at least one; none if the record has segments, whose headers describe them.
    pub signals: Vec<Signal>,
    /// Segments of a multi-segment record, in order; else none.
    pub segments: Vec<Segment>,
}

/// One segment of a multi-segment record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Record name of the segment; `None` for a null segment, written `~`, in which no signal was recorded.
    pub name: Option<String>,
    /// Number of frames. A first segment without any is the layout of a record whose segments differ in their signals.
    pub frames: u64,
    /// Line number in the header, from 1.
    pub line: usize,
}

/// One signal of a record.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    /// File that holds the signal.
    ///
    /// Signals that share a file are consecutive in the header and interleaved in the file.
    pub file: String,
    /// Storage format of the samples.
    pub format: Format,
    /// Samples per frame.
    pub samples_per_frame: usize,
    /// Skew, in frames.
    pub skew: u64,
    /// Byte offset of the first sample.
    pub byte_offset: u64,
    /// ADC gain, ADC units per physical unit; not 0.
    pub gain: f64,
    /// Sample value that corresponds to 0 physical units.
    pub baseline: i32,
    /// Physical unit.
    pub units: String,
    /// First sample value, to which format 8 adds its differences.
    pub initial_value: i32,
    /// Sum of all samples, modulo 2^16; `None` if not specified.
    pub checksum: Option<i16>,
    /// Description, such as `MLII`; empty if not specified.
    pub description: String,
    /// Line number in the header, from 1.
    pub line: usize,
}

/// Signal formats, named by their number in signal(5wfdb).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 8-bit differences.
    Format8,
    /// 16-bit two's complement, little-endian.
    Format16,
    /// 24-bit two's complement, little-endian.
    Format24,
    /// 32-bit two's complement, little-endian.
    Format32,
    /// 16-bit two's complement, big-endian.
    Format61,
    /// 8-bit offset binary.
    Format80,
    /// 16-bit offset binary, little-endian.
    Format160,
    /// Two 12-bit samples in three bytes.
    Format212,
    /// Three 10-bit samples in two 16-bit words, the third one in their upper bits.
    Format310,
    /// Three 10-bit samples in one 32-bit word.
    Format311,
    /// An unsupported format, by its number.
    Unsupported(u32),
}

impl Format {
    fn from_number(number: u32) -> Format {
        match number {
            8 => Format::Format8,
            16 => Format::Format16,
            24 => Format::Format24,
            32 => Format::Format32,
            61 => Format::Format61,
            80 => Format::Format80,
            160 => Format::Format160,
            212 => Format::Format212,
            310 => Format::Format310,
            311 => Format::Format311,
            other => Format::Unsupported(other),
        }
    }
}

/// Error in a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderError {
    /// Line number, from 1; that of the last line if something is missing at the end.
    pub line: usize,
    /// What is wrong and what to do about it.
    pub text: String,
}

/// Parses a header. Comments and blank lines may occur anywhere.
///
/// # Errors
/// [`HeaderError`] for the first invalid line.
pub fn parse(bytes: &[u8]) -> Result<Header, HeaderError> {
    // Editors on Windows write a byte order mark.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let texts: Vec<Cow<'_, str>> = bytes.split(|&byte| byte == b'\n').map(decode).collect();
    let mut lines = texts
        .iter()
        .enumerate()
        .map(|(at, line)| (at + 1, line.trim()))
        .filter(|(_, line)| is_specification(line));
    let lines_total =
        texts.len() - usize::from(texts.len() > 1 && texts.last().is_some_and(|last| last.is_empty()));
    let Some((number, line)) = lines.next() else {
        return Err(HeaderError { line: lines_total, text: "no record line: is this a WFDB header?".into() });
    };
    let at = |number| move |text: String| HeaderError { line: number, text };
    let (mut header, count, what) = record_line(line).map_err(at(number))?;
    let mut described = 0;
    while described < count {
        let Some((number, line)) = lines.next() else {
            let text =
                format!("record line specifies {count} {what}, but the header describes only {described}");
            return Err(HeaderError { line: lines_total, text });
        };
        if what == SEGMENTS {
            header.segments.push(segment_line(line, number).map_err(at(number))?);
        } else {
            header.signals.push(signal_line(line, number).map_err(at(number))?);
        }
        described += 1;
    }
    match lines.next() {
        None => Ok(header),
        Some((number, _)) => Err(HeaderError {
            line: number,
            text: format!("record line specifies {count} {what}, but the header describes more"),
        }),
    }
}

/// A line as UTF-8, or else as Latin-1: edf2mit and others write the micro sign of a unit as one byte.
fn decode(line: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(line) {
        Ok(text) => text.into(),
        Err(_) => line.iter().copied().map(char::from).collect::<String>().into(),
    }
}

fn is_specification(line: &str) -> bool {
    !line.is_empty() && !line.starts_with('#')
}

/// What the lines after the record line describe.
const SIGNALS: &str = "signals";
const SEGMENTS: &str = "segments";

/// `name[/segments] signals [fs[/counter[(base)]] [frames [time [date]]]]`
///
/// Returns the header, and how many lines of which kind follow.
fn record_line(line: &str) -> Result<(Header, usize, &'static str), String> {
    let mut words = line.split_whitespace();
    let name = words.next().unwrap_or_default();
    let (name, segments) = match name.split_once('/') {
        None => (name, None),
        Some((name, segments)) => (name, Some(segments)),
    };
    if !is_record_name(name) {
        return Err(format!("{name:?} is not a record name: is this a WFDB header?"));
    }
    let signals = words.next().ok_or("record line lacks the number of signals")?;
    let bad = |word: &str, what: &str| format!("{word:?} is not a number of {what}: is this a WFDB header?");
    let signals: usize = signals.parse().map_err(|_| bad(signals, SIGNALS))?;
    if !(1..=SIGNALS_MAX).contains(&signals) {
        return Err(format!("{signals} signals; supported are 1 to {SIGNALS_MAX}"));
    }
    let (count, what) = match segments {
        None => (signals, SIGNALS),
        Some(word) => (word.parse().map_err(|_| bad(word, SEGMENTS))?, SEGMENTS),
    };
    if count == 0 {
        return Err("the record has no segments".into());
    }
    let frames_hz = words.next().map_or(Ok(FS_HZ_DEFAULT), frequency)?;
    let frames = match words.next() {
        None => None,
        Some(word) => match word.parse().map_err(|_| format!("{word:?} is not a number of samples"))? {
            0 => None,
            frames => Some(frames),
        },
    };
    // A base time and base date may follow; they are not needed.
    let (signals, segments) = (Vec::new(), Vec::new());
    Ok((Header { record: name.into(), frames_hz, frames, signals, segments }, count, what))
}

fn is_record_name(name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    !name.is_empty() && name.chars().all(is_part) && !name.starts_with('.')
}

/// `name frames`, or `~ frames`
fn segment_line(line: &str, number: usize) -> Result<Segment, String> {
    let mut words = line.split_whitespace();
    let (name, frames) = (words.next().unwrap_or_default(), words.next());
    if name.contains('/') {
        return Err(format!("{name:?}: a segment cannot have segments, and lies in the same directory"));
    }
    if name != "~" && !is_record_name(name) {
        return Err(format!("{name:?} is not a record name of a segment"));
    }
    let frames = frames.ok_or("segment line lacks the number of samples")?;
    let frames = frames.parse().map_err(|_| format!("{frames:?} is not a number of samples"))?;
    Ok(Segment { name: (name != "~").then(|| name.to_owned()), frames, line: number })
}

/// Parses `fs[/counter[(base)]]`.
///
/// Only the sampling frequency is used, but the others must be numbers too.
fn frequency(word: &str) -> Result<f64, String> {
    let bad = || format!("{word:?} is not a sampling frequency; examples: 360, 360/250, 360/250(0)");
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

/// `file format [gain [ADC-resolution [ADC-zero [initial-value [checksum [block-size [description]]]]]]]`
fn signal_line(line: &str, number: usize) -> Result<Signal, String> {
    let mut rest = line;
    let file = next_word(&mut rest).unwrap_or_default();
    let format = next_word(&mut rest).ok_or("signal line lacks the format")?;
    let (format, samples_per_frame, skew, byte_offset) = storage(format)?;
    let gain = next_word(&mut rest).map_or(Ok((GAIN_DEFAULT, None, "mV".into())), scale)?;
    let (gain, baseline, units) = gain;
    optional_number::<i32>(&mut rest, "ADC resolution")?;
    let adc_zero = optional_number::<i32>(&mut rest, "ADC zero")?;
    let initial_value = optional_number::<i32>(&mut rest, "initial value")?;
    let checksum = optional_number::<i64>(&mut rest, "checksum")?;
    optional_number::<i64>(&mut rest, "block size")?;
    Ok(Signal {
        file: file.into(),
        format,
        samples_per_frame,
        skew,
        byte_offset,
        gain,
        baseline: baseline.or(adc_zero).unwrap_or(0),
        units,
        initial_value: initial_value.or(adc_zero).unwrap_or(0),
        // Some programs write the checksum signed, others unsigned; modulo 2^16 both are the same.
        checksum: checksum.map(|sum| sum as u16 as i16),
        description: rest.trim().into(),
        line: number,
    })
}

/// Removes and returns the first word.
fn next_word<'a>(rest: &mut &'a str) -> Option<&'a str> {
    let text = rest.trim_start();
    let (word, after) = text.split_at(text.find(char::is_whitespace).unwrap_or(text.len()));
    *rest = after;
    Some(word).filter(|word| !word.is_empty())
}

fn optional_number<T: std::str::FromStr>(rest: &mut &str, what: &str) -> Result<Option<T>, String> {
    next_word(rest)
        .map(|word| word.parse().map_err(|_| format!("{word:?} is not a valid {what}")))
        .transpose()
}

/// `format[xSAMPLES][:SKEW][+OFFSET]`
fn storage(word: &str) -> Result<(Format, usize, u64, u64), String> {
    let bad = || format!("{word:?} is not a format; examples: 212, 16, 212x2, 16:1, 16+512");
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, mut rest) = word.split_at(digits(word));
    let format = Format::from_number(number.parse().map_err(|_| bad())?);
    let (mut samples_per_frame, mut skew, mut byte_offset) = (1, 0, 0);
    // Each is optional, in this order.
    for separator in ['x', ':', '+'] {
        if let Some(after) = rest.strip_prefix(separator) {
            let (number, after) = after.split_at(digits(after));
            let number: u64 = number.parse().map_err(|_| bad())?;
            rest = after;
            match separator {
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
        return Err(format!(
            "{samples_per_frame} samples per frame; supported are 1 to {SAMPLES_PER_FRAME_MAX}"
        ));
    }
    Ok((format, samples_per_frame, skew, byte_offset))
}

/// `gain[(baseline)][/units]`
fn scale(word: &str) -> Result<(f64, Option<i32>, String), String> {
    let bad = || format!("{word:?} is not an ADC gain; examples: 200, 200/mV, 200(1024)/mV");
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
    fn a_header_with_every_field_is_parsed() {
        let text = b"# before\r\nr-1 2 360/250.5(-3) 650000 12:30:00 25/05/1989\r\n\r\n\
            a.dat 212x2:3+24 200.5(-7)/uV 11 1024 995 -22131 0 MLII upper  lead\r\n# \xff between\n\
            b.dat 16\n# after";
        let header = parse(text).unwrap();
        assert_eq!((&*header.record, header.frames_hz, header.frames), ("r-1", 360.0, Some(650_000)));
        let first = Signal {
            file: "a.dat".into(),
            format: Format::Format212,
            samples_per_frame: 2,
            skew: 3,
            byte_offset: 24,
            gain: 200.5,
            baseline: -7,
            units: "uV".into(),
            initial_value: 995,
            checksum: Some(-22131),
            description: "MLII upper  lead".into(),
            line: 4,
        };
        let second = Signal {
            file: "b.dat".into(),
            format: Format::Format16,
            samples_per_frame: 1,
            skew: 0,
            byte_offset: 0,
            gain: 200.0,
            baseline: 0,
            units: "mV".into(),
            initial_value: 0,
            checksum: None,
            description: String::new(),
            line: 6,
        };
        assert_eq!(header.signals, [first, second]);
    }

    #[test]
    fn a_byte_order_mark_and_latin_1_change_nothing() {
        let parsed = |units: &[u8]| {
            let text =
                [&b"\xef\xbb\xbfr 1 360\r\nr.dat 16 200/"[..], units, b" 12\r\n# \xe9t\xe9\n"].concat();
            parse(&text).map(|mut header| (header.record, header.signals.remove(0).units))
        };
        for units in [&b"\xb5V"[..], "\u{b5}V".as_bytes()] {
            assert_eq!(parsed(units).unwrap(), ("r".into(), "\u{b5}V".into()));
        }
        assert_eq!(parsed("\u{3bc}V".as_bytes()).unwrap().1, "\u{3bc}V");
    }

    #[test]
    fn segments_are_listed_with_their_gaps() {
        let header = parse(b"m/4 3 125 1200 10:00:00\nm_layout 0\nm_1 500\n~ 300\nm_2 400\n# end\n").unwrap();
        assert_eq!((header.frames, header.signals.len()), (Some(1200), 0));
        let segment = |name: Option<&str>, frames, line| Segment { name: name.map(Into::into), frames, line };
        let expected = [
            segment(Some("m_layout"), 0, 2),
            segment(Some("m_1"), 500, 3),
            segment(None, 300, 4),
            segment(Some("m_2"), 400, 5),
        ];
        assert_eq!(header.segments, expected);
    }

    #[test]
    fn omitted_fields_have_the_defaults_of_the_wfdb_format() {
        let header = parse(b"r 1\nf 16").unwrap();
        assert_eq!((header.frames_hz, header.frames), (250.0, None));
        assert_eq!(parse(b"r 1 100 0\nf 16").unwrap().frames, None);
        let uncalibrated = signal("f 16 0 12 2048").unwrap();
        assert_eq!((uncalibrated.gain, uncalibrated.baseline, &*uncalibrated.units), (200.0, 2048, "mV"));
        assert_eq!(signal("f 16 1e3(5)/V 12 2048").unwrap().baseline, 5);
        assert_eq!(signal("f 16 1 12 0 0 43405 0").unwrap().checksum, Some(-22131));
        assert_eq!(signal("f 310").unwrap().format, Format::Format310);
        assert_eq!(signal("f 516").unwrap().format, Format::Unsupported(516));
        assert_eq!(signal("f 8 1 12 7").unwrap().initial_value, 7);
    }

    #[test]
    fn an_invalid_header_is_an_error_with_its_line() {
        for (text, line, part) in [
            (&b""[..], 1, "no record line"),
            (b"# only\n# comments\n", 2, "no record line"),
            (b"r/3 2 360\na 5\n~ 2\n", 3, "specifies 3 segments, but the header describes only 2"),
            (b"r/1 2 360\na 5\n~ 2\n", 3, "describes more"),
            (b"r/0 2 360\n", 1, "no segments"),
            (b"r/many 2 360\n", 1, "\"many\""),
            (b"r/1 2 360\na\n", 2, "lacks the number of samples"),
            (b"r/1 2 360\na -5\n", 2, "number of samples"),
            (b"r/1 2 360\na/2 5\n", 2, "cannot have segments"),
            (b"r/1 2 360\n../a 5\n", 2, "cannot have segments"),
            (b"r/1 2 360\n.. 5\n", 2, "not a record name"),
            (b"r\n", 1, "number of signals"),
            (b"r two\n", 1, "\"two\""),
            (b"r 0\n", 1, "1 to 256"),
            (b"r 99999999999\n", 1, "1 to 256"),
            (b"r -1\n", 1, "\"-1\""),
            (b"<html> 1\n", 1, "is this a WFDB header"),
            (b"r 1 fast\nf 16", 1, "sampling frequency"),
            (b"r 1 0\nf 16", 1, "sampling frequency"),
            (b"r 1 NaN\nf 16", 1, "sampling frequency"),
            (b"r 1 inf\nf 16", 1, "sampling frequency"),
            (b"r 1 -5\nf 16", 1, "sampling frequency"),
            (b"r 1 360/\nf 16", 1, "sampling frequency"),
            (b"r 1 360/250(\nf 16", 1, "sampling frequency"),
            (b"r 1 360 many\nf 16", 1, "number of samples"),
            (b"r 1 360 -1\nf 16", 1, "number of samples"),
            (b"r 2 360\n\nf 16\n", 3, "specifies 2 signals, but the header describes only 1"),
            (b"r 1 360\nf 16\nf 16\n", 3, "describes more"),
            (b"r 1\nf\n", 2, "lacks the format"),
            (b"r 1\nf x2\n", 2, "is not a format"),
            (b"r 1\nf 16x\n", 2, "is not a format"),
            (b"r 1\nf 16x0\n", 2, "0 samples per frame"),
            (b"r 1\nf 16x99999999999999999999\n", 2, "is not a format"),
            (b"r 1\nf 16+9:1\n", 2, "is not a format"),
            (b"r 1\nf 16 gain\n", 2, "is not an ADC gain"),
            (b"r 1\nf 16 inf\n", 2, "is not an ADC gain"),
            (b"r 1\nf 16 200(1024/mV\n", 2, "is not an ADC gain"),
            (b"r 1\nf 16 200/\n", 2, "is not an ADC gain"),
            (b"r 1\nf 16 200 MLII\n", 2, "ADC resolution"),
            (b"r 1\nf 16 200 11 1e3\n", 2, "ADC zero"),
            (b"r 1\nf 16 200 11 1 1 1 B\n", 2, "block size"),
        ] {
            let error = parse(text).expect_err(&String::from_utf8_lossy(text));
            assert!(error.line == line && error.text.contains(part), "{:?}: {error:?}", text.escape_ascii());
        }
    }

    #[test]
    fn parsing_never_panics() {
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
