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
/// pass for a shorter record.
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

    /// Moves the signal to the time of the others. What would follow its end was not recorded.
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
pub(crate) mod tests {
    use std::path::PathBuf;

    use super::*;

    /// The synthetic record of `tests/data`.
    pub(crate) fn made_record() -> PathBuf {
        let folders = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
        folders.map(|folder| folder.join("tests/data/ecg/made.hea")).find(|file| file.is_file()).unwrap()
    }

    /// Record 100 of the MIT-BIH Arrhythmia Database, which is not part of the repository.
    pub(crate) fn record_100() -> PathBuf {
        std::env::var_os("TICKCAST_RECORD").expect("TICKCAST_RECORD=path/to/100.hea").into()
    }

    /// Temporary folder with files, removed on drop.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str, files: &[(&str, &[u8])]) -> Folder {
            let folder = std::env::temp_dir().join(format!("tickcast-ecg-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            files.iter().for_each(|(name, bytes)| fs::write(folder.join(name), bytes).unwrap());
            Folder(folder)
        }
        fn load(&self, signal: usize) -> Result<Record, String> {
            load(&self.0.join("r.hea"), signal).map_err(|error| error.to_string())
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn load_bytes(name: &str, header: &str, data: &[u8], signal: usize) -> Result<Record, String> {
        Folder::new(name, &[("r.hea", header.as_bytes()), ("r.dat", data)]).load(signal)
    }

    fn samples(record: &Record) -> Vec<f32> {
        record.samples().collect()
    }

    /// Compares samples, NaN with NaN.
    fn assert_samples(record: &Record, expected: &[f32], what: &str) {
        let got = samples(record);
        let is_same = |(a, b): (&f32, &f32)| a == b || a.is_nan() && b.is_nan();
        assert!(got.len() == expected.len() && got.iter().zip(expected).all(is_same), "{what}: {got:?}");
    }

    #[test]
    fn the_value_that_marks_an_invalid_sample_is_nan_in_every_format() {
        const NAN: f32 = f32::NAN;
        for (format, data, expected) in [
            // Differences to the initial value, 7 here.
            ("8", &[1, 0xfe, 0x80][..], &[8.0, 6.0, -122.0][..]),
            ("16", &[1, 0, 0, 0x80], &[1.0, NAN]),
            ("24", &[1, 0, 0, 0, 0, 0x80], &[1.0, NAN]),
            ("32", &[1, 0, 0, 0, 0, 0, 0, 0x80], &[1.0, NAN]),
            ("61", &[0, 1, 0x80, 0], &[1.0, NAN]),
            ("80", &[129, 0], &[1.0, NAN]),
            ("160", &[1, 0x80, 0, 0], &[1.0, NAN]),
            ("212", &[0x01, 0x80, 0x00], &[1.0, NAN]),
            ("310", &[0x02, 0x28, 0x00, 0x0c], &[1.0, NAN, 37.0]),
            ("311", &[0x01, 0x00, 0x58, 0x02], &[1.0, NAN, 37.0]),
        ] {
            let header = format!("r 1 100 {}\nr.dat {format} 1(0)/mV 12 0 7", expected.len());
            let record = load_bytes(&format!("nan{format}"), &header, data, 0).unwrap();
            assert_samples(&record, expected, format);
        }
    }

    #[test]
    fn an_odd_number_of_packed_samples_is_read_whole() {
        // 1, -1; 2047, 257; -2048 (invalid), 5; then 2, an unpaired last sample in two bytes.
        let data = [0x01, 0xf0, 0xff, 0xff, 0x17, 0x01, 0x00, 0x08, 0x05, 0x02, 0x00];
        for header in ["r 1 100 7\nr.dat 212 1(0)/mV 12 0 1 6 0 x", "r 1 100\nr.dat 212 1(0)/mV"] {
            let record = load_bytes("212", header, &data, 0).unwrap();
            assert_samples(&record, &[1.0, -1.0, 2047.0, 257.0, f32::NAN, 5.0, 2.0], header);
        }
    }

    #[test]
    fn a_skewed_signal_is_moved_to_the_time_of_the_others() {
        let data: Vec<u8> = (1..=9i16).flat_map(i16::to_le_bytes).collect();
        let header = "r 2 100 3 \nr.dat 16 1 16 0 1 12\nr.dat 16x2:1 1 16 0 2 33\n";
        let load = |header: &str, signal| load_bytes("skew", header, &data, signal).unwrap();
        assert_samples(&load(header, 0), &[1.0, 4.0, 7.0], "no skew");
        assert_samples(&load(header, 1), &[5.0, 6.0, 8.0, 9.0, f32::NAN, f32::NAN], "one frame");
        // The checksum is that of the samples as stored: 2 + 3 + 5 + 6 + 8 + 9.
        assert!(!load(header, 1).checksum_differs);
        let far = header.replace("x2:1", "x2:18446744073709551615");
        assert_samples(&load(&far, 1), &[f32::NAN; 6], "beyond the end");
    }

    #[test]
    fn the_byte_offset_of_a_file_stands_on_its_first_signal() {
        let data = [b"HEAD", &[1, 0, 2, 0][..]].concat();
        for second in ["16", "16+4"] {
            let header = format!("r 2 100 1\nr.dat 16+4 1\nr.dat {second} 1\n");
            let signals =
                [0, 1].map(|signal| samples(&load_bytes("offset", &header, &data, signal).unwrap()));
            assert_eq!(signals, [[1.0], [2.0]], "{second}");
        }
    }

    /// Three segments as in the MIMIC databases: the first lacks V, a null segment, the third in another order and unit.
    const VARIABLE: [(&str, &[u8]); 6] = [
        ("r.hea", b"r/4 2 100 8 10:00:00\nr_layout 0\nr_1 3\n~ 2\nr_2 3\n"),
        ("r_layout.hea", b"r_layout 2 100 0\n~ 0 1/mV 12 0 0 0 0 II\n~ 0 1/mV 12 0 0 0 0 V\n"),
        ("r_1.hea", b"r_1 1 100 3\nr_1.dat 80 2(0)/mV 8 0 2 12 0 II\n"),
        ("r_1.dat", &[130, 132, 134]),
        ("r_2.hea", b"r_2 2 100 3\nr_2.dat 80 1(0)/uV 8 0 1 9 0 V\nr_2.dat 80 4(0)/mV 8 0 4 24 0 II\n"),
        ("r_2.dat", &[129, 132, 131, 136, 133, 140]),
    ];

    #[test]
    fn segments_of_a_variable_layout_are_joined_by_description_with_gaps() {
        const NAN: f32 = f32::NAN;
        let folder = Folder::new("variable", &VARIABLE);
        let record = folder.load(0).unwrap();
        assert_eq!((&*record.name, &*record.signal, record.fs_hz), ("r", "II", 100.0));
        assert_samples(&record, &[1.0, 2.0, 3.0, NAN, NAN, 1.0, 2.0, 3.0], "II");
        assert_eq!(
            (record.gaps(), record.samples_total(), record.checksum_differs),
            (vec![(3, 5)], 8, false)
        );
        let record = folder.load(1).unwrap();
        assert_eq!(record.signal, "V");
        // The segment without V and the null segment after it are one gap.
        assert_samples(&record, &[NAN, NAN, NAN, NAN, NAN, 0.001, 0.003, 0.005], "V");
        assert_eq!(record.gaps(), [(0, 5)]);
        assert!(folder.load(2).unwrap_err().contains("r_layout.hea: there is no signal 2"));
    }

    #[test]
    fn segments_of_a_fixed_layout_are_one_signal() {
        let files: [(&str, &[u8]); 4] = [
            ("r.hea", b"r/2 1 100 5\nr_1 2\nr_2 3\n"),
            ("r_1.hea", b"r_1 1 100 4\nr.dat 80 1 8 0 1 99 0 II\n"),
            ("r_2.hea", b"r_2 1 100 3\nr.dat 80+1 1 8 0 2 9 0 II\n"),
            ("r.dat", &[129, 130, 131, 132]),
        ];
        let record = Folder::new("fixed", &files).load(0).unwrap();
        assert_samples(&record, &[1.0, 2.0, 2.0, 3.0, 4.0], "II");
        assert_eq!((record.pieces.len(), record.gaps()), (1, vec![]));
        assert!(!record.checksum_differs, "a segment used in part has no checksum");
    }

    #[test]
    fn segments_that_do_not_fit_together_are_errors_that_name_the_segment() {
        for (name, of, from, to, parts) in [
            ("sum", "r.hea", "100 8", "100 9", ["r.hea", "do not add up"]),
            ("none", "r.hea", "r_2 3", "r_3 3", ["r_3.hea", "No such file"]),
            ("long", "r_2.hea", "100 3", "100 2", ["r.hea line 5", "r_2 is shorter than the 3"]),
            ("rate", "r_2.hea", "100 3", "200 3", ["r.hea line 5", "r_2 has 200 Hz"]),
            ("nest", "r_2.hea", "r_2 2", "r_2/2 2", ["r.hea line 5", "r_2 has segments itself"]),
            ("frame", "r_2.hea", "80 4(", "80x2 4(", ["r.hea line 5", "2 samples per frame here, and 1"]),
            ("flac", "r_2.hea", "80 4(", "516 4(", ["r_2.hea line 3", "FLAC"]),
            (
                "huge",
                "r.hea",
                "100 8 10:00:00\nr_layout 0\nr_1 3\n~ 2",
                "100 0\nr_layout 0\nr_1 3\n~ 18446744073709551609",
                ["r.hea", "more than 31104000 samples"],
            ),
            (
                "wrap",
                "r.hea",
                "100 8 10:00:00\nr_layout 0\nr_1 3\n~ 2",
                "100 0\nr_layout 0\nr_1 3\n~ 18446744073709551615",
                ["r.hea", "do not add up"],
            ),
            ("lost", "r_1.hea", "0 II", "0 III", ["r.hea", "no segment has samples"]),
        ] {
            let mut files = VARIABLE.map(|(name, bytes)| (name, bytes.to_vec()));
            let change = |(file, bytes): &mut (&str, Vec<u8>)| {
                if *file == of || name == "lost" && *file == "r_2.hea" {
                    *bytes = String::from_utf8(bytes.clone()).unwrap().replacen(from, to, 1).into_bytes();
                }
            };
            files.iter_mut().for_each(change);
            let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, &bytes[..])).collect();
            let folder = Folder::new(name, &files);
            if name == "frame" {
                // 2 + 1 samples in each frame.
                fs::write(folder.0.join("r_2.dat"), [129; 9]).unwrap();
            }
            let error = folder.load(0).expect_err(name);
            assert!(parts.iter().all(|part| error.contains(part)), "{name}: {error}");
        }
        let layout = Folder::new("layout", &VARIABLE);
        let error = load(&layout.0.join("r_layout.hea"), 0).unwrap_err().to_string();
        assert!(error.contains("format 0") || error.contains("layout of a record"), "{error}");
    }

    #[test]
    fn interleaved_signals_of_one_file_are_separated() {
        let values: [i16; 8] = [10, 1, 2, 100, 20, 3, i16::MIN, 200];
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let data = [b"HEAD", &data[..]].concat();
        let header = "r 3 100\nr.dat 16+4 10(0)/mV\nr.dat 16x2+4 1000/uV 16 1 0 -32763\nr.dat 16+4 0.1/V";
        let loaded = |signal| load_bytes(&format!("turns{signal}"), header, &data, signal).unwrap();
        assert_eq!(samples(&loaded(0)), [1.0, 2.0]);
        let second = loaded(1);
        assert_eq!((second.fs_hz, second.samples_per_frame, &*second.signal), (200.0, 2, "signal 1"));
        assert_samples(&second, &[0.0, 1e-6, 2e-6, f32::NAN], "x2");
        assert_eq!(samples(&loaded(2)), [1e6, 2e6]);
        assert!(load_bytes("turns3", header, &data, 3).unwrap_err().contains("0 to 2"));
    }

    #[test]
    fn a_checksum_mismatch_is_reported() {
        let header = |sum| format!("r 1 100\nr.dat 16 1 16 0 1 {sum}");
        for (name, sum, differs) in [("sum1", 3, false), ("sum2", 65_539, false), ("sum3", 4, true)] {
            let record = load_bytes(name, &header(sum), &[1, 0, 2, 0], 0).unwrap();
            assert_eq!(record.checksum_differs, differs, "{sum}");
        }
    }

    #[test]
    fn truncated_and_unsupported_files_are_errors_that_name_the_file() {
        for (name, header, data, parts) in [
            ("cut1", "r 1 100 3\nr.dat 16", &[1, 0, 2, 0][..], ["r.dat", "sample 2 of the 3"]),
            ("cut2", "r 1 100 3\nr.dat 212", &[1, 0, 2], ["r.dat", "sample 2 of the 3"]),
            ("cut3", "r 1 100\nr.dat 16", &[1], ["r.dat", "sample 0"]),
            ("cut4", "r 1 100\nr.dat 16+9", &[1, 0], ["r.dat", "sample 0"]),
            ("cut5", "r 2 100\nr.dat 16\nr.dat 16", &[1, 0, 2, 0, 3, 0], ["r.dat", "middle of sample 1"]),
            ("big1", "r 1 100 18446744073709551615\nr.dat 16", &[], ["r.hea", "more than"]),
            ("big2", "r 1 100 18446744073709551615\nr.dat 16x2", &[], ["r.hea", "samples"]),
            ("not1", "r 1 100\nother.dat 16", &[], ["other.dat", "No such file"]),
            ("not2", "r 1 100\n../r.dat 16", &[], ["line 2", "same directory as the header"]),
            ("not3", "r 1 100\n- 16", &[], ["line 2", "same directory as the header"]),
            ("not4", "r 1 100\nr.dat 17", &[], ["line 2", "format 17"]),
            ("not5", "r 1 100\nr.dat 508", &[], ["line 2", "format 508 is FLAC"]),
            ("not6", "r 1 100\nr.dat 16 1/mmHg", &[], ["line 2", "mmHg"]),
            ("not7", "r 1 1\nr.dat 16", &[], ["line 2", "sampling frequency 1 Hz"]),
            ("not8", "r 2 100\nr.dat 16\nr.dat 212", &[], ["line 3", "differ in format"]),
            ("not9", "r/2 1 100\n", &[], ["r.hea line 1", "2 segments"]),
            ("cut6", "r 1 100 3\nr.dat 311", &[1, 0, 0], ["r.dat", "sample 2 of the 3"]),
        ] {
            let error = load_bytes(name, header, data, 0).expect_err(name);
            assert!(parts.iter().all(|part| error.contains(part)), "{header:?}: {error}");
        }
        let long = Folder::new("long", &[("r.hea", &[b'#'; HEADER_BYTES_MAX + 1])]);
        assert!(long.load(0).unwrap_err().contains("larger"));
        assert!(load(&long.0, 0).unwrap_err().to_string().contains("not a regular file"));
        assert!(load(&long.0.join("none.hea"), 0).unwrap_err().to_string().contains("No such file"));
    }

    /// `tests/data/wfdb_reference.py` writes the values that the PyPI package `wfdb` reads, as little-endian doubles.
    #[test]
    #[ignore = "needs TICKCAST_WFDB=folder written by tests/data/wfdb_reference.py"]
    fn samples_are_those_that_wfdb_python_reads() {
        let folder = PathBuf::from(std::env::var_os("TICKCAST_WFDB").expect("TICKCAST_WFDB=folder"));
        let list = fs::read_to_string(folder.join("list")).unwrap();
        assert!(list.lines().count() > 20, "{list}");
        for line in list.lines() {
            let [header, signal, values] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let record = load(Path::new(header), signal.parse().unwrap()).unwrap();
            let expected = fs::read(folder.join(values)).unwrap();
            let expected: Vec<f64> =
                expected.as_chunks::<8>().0.iter().map(|value| f64::from_le_bytes(*value)).collect();
            let got = samples(&record);
            assert_eq!(got.len(), expected.len(), "{line}");
            for (at, (&got, expected)) in got.iter().zip(expected).enumerate() {
                let is_same = got.is_nan() && expected.is_nan() || got == expected as f32;
                assert!(is_same, "{line}: sample {at}: {got}, not {expected}");
            }
            println!("{header} {signal}: {} samples, {} gaps", got.len(), record.gaps().len());
        }
    }

    fn assert_read(file: &Path, name: &str, samples: u64, signals: [(&str, i16); 2]) {
        for (index, (signal, first)) in signals.into_iter().enumerate() {
            let record = load(file, index).unwrap();
            assert_eq!((&*record.name, &*record.signal, record.fs_hz), (name, signal, 360.0));
            assert_eq!(record.samples_total(), samples);
            assert_eq!(record.samples().next().unwrap(), ((f64::from(first) - 1024.0) / 200.0) as f32);
            assert!(!record.checksum_differs, "{signal}");
        }
    }

    #[test]
    fn made_record_matches_its_checksums() {
        assert_read(&made_record(), "made", 108_000, [("II", 1022), ("V5", 1036)]);
    }

    #[test]
    #[ignore = "needs TICKCAST_RECORD=path/to/100.hea"]
    fn record_100_matches_its_checksums() {
        assert_read(&record_100(), "100", 650_000, [("MLII", 995), ("V5", 1011)]);
    }
}
