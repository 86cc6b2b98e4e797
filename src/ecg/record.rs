//! Reader for one signal of a WFDB record, converted to mV. See signal(5wfdb).

use std::{
    fmt,
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use super::{
    FS_HZ_HIGHEST, FS_HZ_LOWEST, FileError, HEADER_BYTES_MAX, SAMPLES_MAX,
    header::{self, Format, Header, Segment, Signal},
    raw_samples::{RawSamples, invalid_value},
};

/// Bytes per read call.
const READ_BYTES: usize = 64 << 10;

/// One signal of a record. At most [`SAMPLES_MAX`] samples, 4 bytes each; a gap takes no memory.
#[derive(Clone, PartialEq)]
pub struct Record {
    /// Record name.
    pub name: String,
    /// Signal description, or `signal N` if the header has none.
    pub signal: String,
    /// Sampling frequency, Hz; [`FS_HZ_LOWEST`] to [`FS_HZ_HIGHEST`].
    pub fs_hz: f64,
    /// Samples per frame. Annotation times are frame numbers, unless the file has a time resolution of its own.
    pub samples_per_frame: usize,
    /// The signal in order. At least one sample.
    pub pieces: Vec<Piece>,
    /// A checksum in a header does not match the samples: a file was modified or damaged.
    pub checksum_differs: bool,
}

/// A part of a record. Not empty; the next one is of the other kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Samples, mV; NaN if marked invalid.
    Samples(Vec<f32>),
    /// Number of samples that were not recorded.
    Gap(u64),
}

/// A position in a record, for [`Record::next`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    piece: usize,
    at: usize,
}

impl Record {
    /// Number of samples, those in gaps included.
    pub fn samples_total(&self) -> u64 {
        let len = |piece: &Piece| match piece {
            Piece::Samples(samples) => samples.len() as u64,
            Piece::Gap(samples) => *samples,
        };
        self.pieces.iter().map(len).sum()
    }

    /// The sample at the cursor, mV, and advances it. NaN in a gap; `None` at the end.
    pub fn next(&self, cursor: &mut Cursor) -> Option<f32> {
        loop {
            let sample = match self.pieces.get(cursor.piece)? {
                Piece::Samples(samples) => samples.get(cursor.at).copied(),
                Piece::Gap(samples) => ((cursor.at as u64) < *samples).then_some(f32::NAN),
            };
            if sample.is_some() {
                cursor.at += 1;
                return sample;
            }
            *cursor = Cursor { piece: cursor.piece + 1, at: 0 };
        }
    }

    /// All samples in order, mV. NaN in a gap.
    pub fn samples(&self) -> impl Iterator<Item = f32> {
        let mut cursor = Cursor::default();
        std::iter::from_fn(move || self.next(&mut cursor))
    }

    /// The gaps between segments, as sample numbers `[from, to)`.
    pub fn gaps(&self) -> Vec<(u64, u64)> {
        let mut at = 0;
        let mut gaps = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Samples(samples) => at += samples.len() as u64,
                Piece::Gap(samples) => {
                    gaps.push((at, at + samples));
                    at += samples;
                }
            }
        }
        gaps
    }

    fn append_samples(&mut self, more: Vec<f32>) {
        match self.pieces.last_mut() {
            Some(Piece::Samples(samples)) => samples.extend(more),
            _ if more.is_empty() => {}
            _ => self.pieces.push(Piece::Samples(more)),
        }
    }

    fn append_gap(&mut self, more: u64) {
        match self.pieces.last_mut() {
            Some(Piece::Gap(samples)) => *samples += more,
            _ if more == 0 => {}
            _ => self.pieces.push(Piece::Gap(more)),
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { name, signal, fs_hz, .. } = self;
        write!(f, "Record {{ {name} {signal} {fs_hz} Hz, {} samples }}", self.samples_total())
    }
}

/// Reads signal number `signal`, counted from 0, of the record whose header is `file`.
///
/// A record may have segments. If their signals differ (a variable layout), the signal is looked up by its description in each
/// segment, and is a gap in those that lack it, as in null segments.
///
/// # Errors
/// [`FileError`] if a file cannot be read or is invalid. A truncated signal file is an error, because it would otherwise
/// look like a shorter record.
pub fn load(file: &Path, signal: usize) -> Result<Record, FileError> {
    let header = read_header(file)?;
    if header.segments.is_empty() {
        let part = Part::read(file, &header, signal, header.frames)?;
        return Ok(Record {
            name: header.record,
            signal: described(&part.description, signal),
            fs_hz: part.fs_hz,
            samples_per_frame: part.samples_per_frame,
            pieces: vec![Piece::Samples(part.samples)],
            checksum_differs: part.checksum_differs,
        });
    }
    load_segments(file, &header, signal)
}

fn described(description: &str, signal: usize) -> String {
    if description.is_empty() { format!("signal {signal}") } else { description.to_owned() }
}

fn read_header(file: &Path) -> Result<Header, FileError> {
    let bytes = read_bounded(file, HEADER_BYTES_MAX)?;
    header::parse(&bytes).map_err(|error| FileError {
        file: file.into(),
        line: Some(error.line),
        text: error.text,
    })
}

/// Where a signal is in each segment.
enum Lookup {
    /// At the same index: all segments have the same signals.
    Index(usize),
    /// By its description, as the `occurrence`-th signal of that description, from 0.
    Description { description: String, occurrence: usize },
}

impl Lookup {
    /// Finds a signal of a layout, by its index there.
    fn by_layout(layout: &Header, index: usize) -> Lookup {
        let description = layout.signals[index].description.clone();
        let earlier = layout.signals[..index].iter();
        let occurrence = earlier.filter(|signal| signal.description == description).count();
        Lookup::Description { description, occurrence }
    }

    /// The index in a segment, `None` if the segment lacks the signal.
    fn find(&self, segment: &Header) -> Option<usize> {
        match self {
            Lookup::Index(index) => Some(*index),
            Lookup::Description { description, occurrence } => {
                let mut same = segment
                    .signals
                    .iter()
                    .enumerate()
                    .filter(|(_, signal)| signal.description == *description);
                same.nth(*occurrence).map(|(index, _)| index)
            }
        }
    }
}

fn load_segments(file: &Path, header: &Header, signal: usize) -> Result<Record, FileError> {
    let refuse =
        |segment: &Segment, text: String| FileError { file: file.into(), line: Some(segment.line), text };
    let frames = header.segments.iter().try_fold(0u64, |sum, segment| sum.checked_add(segment.frames));
    if frames.is_none() || header.frames.is_some_and(|specified| frames != Some(specified)) {
        let text = "the lengths of the segments do not add up to the length of the record";
        return Err(FileError::new(file, text));
    }
    let segment_header = |segment: &Segment, name: &str| {
        let path = file.with_file_name(format!("{name}.hea"));
        let own = read_header(&path)?;
        if !own.segments.is_empty() {
            return Err(refuse(segment, format!("{name} has segments itself, which a segment cannot have")));
        }
        if own.frames_hz != header.frames_hz {
            let text = format!("{name} has {} Hz, and the record {} Hz", own.frames_hz, header.frames_hz);
            return Err(refuse(segment, text));
        }
        Ok((path, own))
    };
    let mut segments = &header.segments[..];
    let (mut lookup, mut name) = (Lookup::Index(signal), String::new());
    if let [first @ Segment { name: Some(layout), frames: 0, .. }, rest @ ..] = segments {
        let (path, layout) = segment_header(first, layout)?;
        let Some(wanted) = layout.signals.get(signal) else { return Err(no_signal(&path, &layout, signal)) };
        name.clone_from(&wanted.description);
        lookup = Lookup::by_layout(&layout, signal);
        segments = rest;
    }
    let mut record = Record {
        name: header.record.clone(),
        signal: String::new(),
        fs_hz: 0.0,
        samples_per_frame: 0,
        pieces: Vec::new(),
        checksum_differs: false,
    };
    // Frames without samples before the first segment that has the signal, and so the number of samples per frame.
    let mut leading_frames = 0u64;
    for segment in segments.iter().filter(|segment| segment.frames > 0) {
        let found = match &segment.name {
            None => None,
            Some(name) => {
                let (path, own) = segment_header(segment, name)?;
                if own.frames.is_some_and(|frames| frames < segment.frames) {
                    let text =
                        format!("{name} is shorter than the {} samples specified here", segment.frames);
                    return Err(refuse(segment, text));
                }
                lookup
                    .find(&own)
                    .map(|index| Part::read(&path, &own, index, Some(segment.frames)))
                    .transpose()?
            }
        };
        let Some(part) = found else {
            match record.samples_per_frame {
                0 => leading_frames += segment.frames,
                samples => record.append_gap(segment.frames.saturating_mul(samples as u64)),
            }
            check_total(file, record.samples_total())?;
            continue;
        };
        if record.samples_per_frame == 0 {
            (record.samples_per_frame, record.fs_hz) = (part.samples_per_frame, part.fs_hz);
            record.append_gap(leading_frames.saturating_mul(part.samples_per_frame as u64));
            name = if name.is_empty() { part.description } else { name };
        } else if record.samples_per_frame != part.samples_per_frame {
            let text = format!(
                "the signal has {} samples per frame here, and {} before",
                part.samples_per_frame, record.samples_per_frame
            );
            return Err(refuse(segment, text));
        }
        record.append_samples(part.samples);
        record.checksum_differs |= part.checksum_differs;
        check_total(file, record.samples_total())?;
    }
    if record.samples_per_frame == 0 {
        return Err(FileError::new(file, format!("no segment has samples of signal {signal}")));
    }
    record.signal = described(&name, signal);
    Ok(record)
}

fn check_total(file: &Path, samples: u64) -> Result<(), FileError> {
    if samples > SAMPLES_MAX as u64 {
        return Err(FileError::new(file, too_long()));
    }
    Ok(())
}

fn too_long() -> String {
    format!("record has more than {SAMPLES_MAX} samples, the limit (one day at 360 Hz)")
}

fn no_signal(file: &Path, header: &Header, index: usize) -> FileError {
    let text = match header.signals.len() {
        1 => format!("there is no signal {index}: the record has only signal 0"),
        count => format!("there is no signal {index}: the record has signals 0 to {}", count - 1),
    };
    FileError::new(file, text)
}

/// Reads a regular file of at most `bytes_max` bytes.
pub(super) fn read_bounded(file: &Path, bytes_max: usize) -> Result<Vec<u8>, FileError> {
    let failed = |error: io::Error| FileError::new(file, error.to_string());
    if !fs::metadata(file).map_err(failed)?.is_file() {
        return Err(FileError::new(file, "not a regular file"));
    }
    let mut bytes = Vec::new();
    let reader = File::open(file).map_err(failed)?;
    reader.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > bytes_max {
        return Err(FileError::new(file, format!("file is larger than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// One signal of a record or segment.
struct Part {
    description: String,
    fs_hz: f64,
    samples_per_frame: usize,
    samples: Vec<f32>,
    checksum_differs: bool,
}

impl Part {
    /// Reads `frames` frames, or all if `None`. `file` is the header's.
    fn read(file: &Path, header: &Header, index: usize, frames: Option<u64>) -> Result<Part, FileError> {
        if index >= header.signals.len() {
            return Err(no_signal(file, header, index));
        }
        let layout = Layout::new(header, index, frames).map_err(|(line, text)| FileError {
            file: file.into(),
            line,
            text,
        })?;
        let data = file.with_file_name(&layout.signal.file);
        let failed = |error: io::Error| FileError::new(&data, error.to_string());
        // A device or a pipe might never end, and cannot seek.
        if !fs::metadata(&data).map_err(failed)?.is_file() {
            return Err(FileError::new(&data, "not a regular file"));
        }
        let mut reader = File::open(&data).map_err(failed)?;
        reader.seek(SeekFrom::Start(layout.byte_offset)).map_err(failed)?;
        let mut reader = BufReader::with_capacity(READ_BYTES, reader);
        let (samples, sum) = layout.read(&mut reader).map_err(|error| match error {
            ReadError::Io(error) => failed(error),
            ReadError::Text(text) => FileError::new(&data, text),
        })?;
        // The checksum covers the whole file, of which a segment may use less.
        let is_whole = frames == header.frames;
        let expected = layout.signal.checksum.filter(|_| is_whole);
        Ok(Part {
            description: layout.signal.description.clone(),
            fs_hz: layout.fs_hz,
            samples_per_frame: layout.signal.samples_per_frame,
            samples,
            checksum_differs: expected.is_some_and(|expected| expected != sum),
        })
    }
}

/// Layout of one signal within its file.
struct Layout<'a> {
    signal: &'a Signal,
    fs_hz: f64,
    /// Factor from the header's physical unit to mV.
    mv_per_unit: f64,
    /// Samples per frame of all signals in the file.
    frame_samples: usize,
    /// Index within the frame of this signal's first sample.
    first: usize,
    /// Byte offset of the first frame.
    byte_offset: u64,
    frames: Option<u64>,
}

enum ReadError {
    Io(io::Error),
    Text(String),
}

impl<'a> Layout<'a> {
    /// On failure, returns the line of the header that is invalid, if any, and the reason. The signal exists.
    fn new(
        header: &'a Header,
        index: usize,
        frames: Option<u64>,
    ) -> Result<Layout<'a>, (Option<usize>, String)> {
        let signal = &header.signals[index];
        let refuse = |text: String| Err((Some(signal.line), text));
        match signal.format {
            Format::Unsupported(number @ (508 | 516 | 524)) => {
                return refuse(format!(
                    "format {number} is FLAC, which is not supported: convert the record to format 16 with xform"
                ));
            }
            Format::Unsupported(number) => {
                return refuse(format!(
                    "format {number} is not supported: convert the record to format 16 with xform"
                ));
            }
            _ => {}
        }
        if signal.file == "~" {
            return refuse("the signal has no file: this is the layout of a record with segments".into());
        }
        if signal.file.contains('/') || matches!(&*signal.file, "-" | ".." | ".") {
            return refuse(format!(
                "{:?} is not a file name: the signal file must be in the same directory as the header",
                signal.file
            ));
        }
        let mv_per_unit = match &*signal.units {
            "mV" | "mv" => 1.0,
            "uV" | "uv" | "\u{b5}V" | "\u{3bc}V" => 1e-3,
            "V" => 1e3,
            units => {
                return refuse(format!(
                    "signal {index} is in {units}, so it is not an ECG: choose a signal in mV, uV or V"
                ));
            }
        };
        let fs_hz = header.frames_hz * signal.samples_per_frame as f64;
        if !(FS_HZ_LOWEST..=FS_HZ_HIGHEST).contains(&fs_hz) {
            return refuse(format!(
                "sampling frequency {fs_hz} Hz is not between {FS_HZ_LOWEST} and {FS_HZ_HIGHEST} Hz"
            ));
        }
        let is_same_file = |other: &&Signal| other.file == signal.file;
        let first = header.signals[..index].iter().rev().take_while(is_same_file);
        let first: usize = first.map(|other| other.samples_per_frame).sum();
        let rest = header.signals[index..].iter().take_while(is_same_file);
        // As in the WFDB library, the file's first signal has the byte offset; others may repeat it.
        let byte_offset = header.signals.iter().find(is_same_file).map_or(0, |first| first.byte_offset);
        let differs =
            |other: &&Signal| other.format != signal.format || ![0, byte_offset].contains(&other.byte_offset);
        if let Some(other) = header.signals.iter().filter(is_same_file).find(differs) {
            let text = format!("signals in {} differ in format or byte offset", signal.file);
            return Err((Some(other.line), text));
        }
        let frame_samples = first + rest.map(|other| other.samples_per_frame).sum::<usize>();
        if frames.is_some_and(|frames| {
            frames.checked_mul(signal.samples_per_frame as u64).is_none_or(|all| all > SAMPLES_MAX as u64)
        }) {
            return Err((None, too_long()));
        }
        Ok(Layout { signal, fs_hz, mv_per_unit, frame_samples, first, byte_offset, frames })
    }

    /// Reads the samples and their sum modulo 2^16.
    ///
    /// Memory grows with the samples present, not with the number in the header.
    fn read(&self, reader: &mut impl Read) -> Result<(Vec<f32>, i16), ReadError> {
        let own = self.first..self.first + self.signal.samples_per_frame;
        let mut raw = RawSamples::new(reader, self.signal.format);
        let (mut samples, mut sum, mut frame) = (Vec::new(), 0i16, 0u64);
        let mut last = self.signal.initial_value;
        'frames: while self.frames.is_none_or(|frames| frame < frames) {
            for at in 0..self.frame_samples {
                let Some(mut value) = raw.next().map_err(ReadError::Io)? else {
                    if at == 0 && self.frames.is_none() && frame > 0 {
                        break 'frames;
                    }
                    return Err(self.too_short(frame));
                };
                if own.contains(&at) {
                    if self.signal.format == Format::Format8 {
                        last = last.wrapping_add(value);
                        value = last;
                    }
                    sum = sum.wrapping_add(value as i16);
                    samples.push(self.millivolts(value));
                }
            }
            if samples.len() > SAMPLES_MAX {
                return Err(ReadError::Text(too_long()));
            }
            frame += 1;
        }
        self.remove_skew(&mut samples);
        Ok((samples, sum))
    }

    /// Shifts the signal to the time of the others. Samples missing at its end were not recorded.
    fn remove_skew(&self, samples: &mut Vec<f32>) {
        let skew = self.signal.skew.saturating_mul(self.signal.samples_per_frame as u64);
        let (len, skew) = (samples.len(), usize::try_from(skew).unwrap_or(usize::MAX));
        samples.drain(..skew.min(len));
        samples.resize(len, f32::NAN);
    }

    fn too_short(&self, frame: u64) -> ReadError {
        ReadError::Text(match self.frames {
            Some(frames) => format!(
                "file ends at sample {frame} of the {frames} specified in the header: download the complete file"
            ),
            None => {
                format!("file ends in the middle of sample {frame}: download the complete file")
            }
        })
    }

    fn millivolts(&self, value: i32) -> f32 {
        if invalid_value(self.signal.format) == Some(value) {
            return f32::NAN;
        }
        let adc_units = f64::from(value) - f64::from(self.signal.baseline);
        (adc_units / self.signal.gain * self.mv_per_unit) as f32
    }
}

#[cfg(test)]
pub(crate) mod tests;
