//! Reader for one signal of a WFDB record, converted to mV. See signal(5wfdb).

use std::{
    fmt,
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use super::{
    FS_HZ_HIGHEST, FS_HZ_LOWEST, FileError, HEADER_BYTES_MAX, SAMPLES_MAX,
    header::{self, Format, Header, Signal},
};

/// Bytes per read call.
const READ_BYTES: usize = 64 << 10;

/// One signal of a record. At most [`SAMPLES_MAX`] samples, 4 bytes each.
#[derive(Clone, PartialEq)]
pub struct Record {
    /// Record name.
    pub name: String,
    /// Signal description, or `signal N` if the header has none.
    pub signal: String,
    /// Sampling frequency, Hz; [`FS_HZ_LOWEST`] to [`FS_HZ_HIGHEST`].
    pub fs_hz: f64,
    /// Samples per frame. Annotation times are frame numbers.
    pub samples_per_frame: usize,
    /// Samples, mV; NaN if marked invalid. At least one.
    pub samples: Vec<f32>,
    /// The checksum in the header does not match the samples: the file was modified or damaged.
    pub checksum_differs: bool,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { name, signal, fs_hz, samples, .. } = self;
        write!(f, "Record {{ {name} {signal} {fs_hz} Hz, {} samples }}", samples.len())
    }
}

/// Reads signal number `signal`, counted from 0, of the record whose header is `file`.
///
/// # Errors
/// [`FileError`] if a file cannot be read or is invalid. A truncated signal file is an error, because it would otherwise
/// pass for a shorter record.
pub fn load(file: &Path, signal: usize) -> Result<Record, FileError> {
    let bytes = read_bounded(file, HEADER_BYTES_MAX)?;
    let header = header::parse(&bytes).map_err(|error| FileError {
        file: file.into(),
        line: Some(error.line),
        text: error.text,
    })?;
    let layout =
        Layout::new(&header, signal).map_err(|(line, text)| FileError { file: file.into(), line, text })?;
    let data = file.with_file_name(&layout.signal.file);
    let failed = |error: io::Error| FileError::new(&data, error.to_string());
    // A device or a pipe might never end, and cannot seek.
    if !fs::metadata(&data).map_err(failed)?.is_file() {
        return Err(FileError::new(&data, "not a regular file"));
    }
    let mut reader = File::open(&data).map_err(failed)?;
    reader.seek(SeekFrom::Start(layout.signal.byte_offset)).map_err(failed)?;
    let mut reader = BufReader::with_capacity(READ_BYTES, reader);
    let (samples, sum) = layout.read(&mut reader).map_err(|error| match error {
        ReadError::Io(error) => failed(error),
        ReadError::Text(text) => FileError::new(&data, text),
    })?;
    let description = &layout.signal.description;
    Ok(Record {
        name: header.record.clone(),
        signal: if description.is_empty() { format!("signal {signal}") } else { description.clone() },
        fs_hz: layout.fs_hz,
        samples_per_frame: layout.signal.samples_per_frame,
        samples,
        checksum_differs: layout.signal.checksum.is_some_and(|expected| expected != sum),
    })
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
    frames: Option<u64>,
}

enum ReadError {
    Io(io::Error),
    Text(String),
}

impl<'a> Layout<'a> {
    /// On failure, returns the line of the header that is invalid, if any, and the reason.
    fn new(header: &'a Header, index: usize) -> Result<Layout<'a>, (Option<usize>, String)> {
        let Some(signal) = header.signals.get(index) else {
            let text = match header.signals.len() {
                1 => format!("there is no signal {index}: the record has only signal 0"),
                count => format!("there is no signal {index}: the record has signals 0 to {}", count - 1),
            };
            return Err((None, text));
        };
        let refuse = |text: String| Err((Some(signal.line), text));
        if let Format::Unsupported(number) = signal.format {
            return refuse(format!(
                "format {number} is not supported: convert the record to format 212 or 16 with xform"
            ));
        }
        if signal.skew != 0 {
            return refuse(format!(
                "skew of {} frames is not supported: use a record without skew",
                signal.skew
            ));
        }
        if signal.file.contains('/') || matches!(&*signal.file, "-" | "~" | ".." | ".") {
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
        if let Some(other) = header
            .signals
            .iter()
            .filter(is_same_file)
            .find(|other| (other.format, other.byte_offset) != (signal.format, signal.byte_offset))
        {
            let text = format!("signals in {} differ in format or byte offset", signal.file);
            return Err((Some(other.line), text));
        }
        let frame_samples = first + rest.map(|other| other.samples_per_frame).sum::<usize>();
        if header.frames.is_some_and(|frames| {
            frames.checked_mul(signal.samples_per_frame as u64).is_none_or(|all| all > SAMPLES_MAX as u64)
        }) {
            let text = format!("record has more than {SAMPLES_MAX} samples, the limit (one day at 360 Hz)");
            return Err((None, text));
        }
        Ok(Layout { signal, fs_hz, mv_per_unit, frame_samples, first, frames: header.frames })
    }

    /// Reads the samples and their sum modulo 2^16.
    ///
    /// Memory grows with the samples present, not with the number in the header.
    fn read(&self, reader: &mut impl Read) -> Result<(Vec<f32>, i16), ReadError> {
        let own = self.first..self.first + self.signal.samples_per_frame;
        let mut raw = RawSamples { reader, format: self.signal.format, second: None };
        let (mut samples, mut sum, mut frame) = (Vec::new(), 0i16, 0u64);
        while self.frames.is_none_or(|frames| frame < frames) {
            for at in 0..self.frame_samples {
                let Some(value) = raw.next()? else {
                    let is_end = at == 0 && self.frames.is_none() && frame > 0;
                    return if is_end { Ok((samples, sum)) } else { Err(self.too_short(frame)) };
                };
                if own.contains(&at) {
                    sum = sum.wrapping_add(value);
                    samples.push(self.millivolts(value));
                }
            }
            if samples.len() > SAMPLES_MAX {
                let text =
                    format!("record has more than {SAMPLES_MAX} samples, the limit (one day at 360 Hz)");
                return Err(ReadError::Text(text));
            }
            frame += 1;
        }
        Ok((samples, sum))
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

    fn millivolts(&self, value: i16) -> f32 {
        let invalid = if self.signal.format == Format::Format212 { -2048 } else { i16::MIN };
        if value == invalid {
            return f32::NAN;
        }
        let adc_units = f64::from(value) - f64::from(self.signal.baseline);
        (adc_units / self.signal.gain * self.mv_per_unit) as f32
    }
}

/// Decoder for stored sample values.
struct RawSamples<'a, R> {
    reader: &'a mut R,
    format: Format,
    /// In format 212, the middle byte of a pair; it holds the high bits of the pair's second sample.
    second: Option<u8>,
}

impl<R: Read> RawSamples<'_, R> {
    /// Returns the next value, or `None` at the end of the file, even in the middle of a sample.
    fn next(&mut self) -> Result<Option<i16>, ReadError> {
        if let Some(high) = self.second.take() {
            let Some([low]) = self.bytes()? else { return Ok(None) };
            return Ok(Some(extend_12(high >> 4, low)));
        }
        let Some([low, high]) = self.bytes()? else { return Ok(None) };
        if self.format == Format::Format212 {
            self.second = Some(high);
            return Ok(Some(extend_12(high & 0xf, low)));
        }
        Ok(Some(i16::from_le_bytes([low, high])))
    }

    fn bytes<const N: usize>(&mut self) -> Result<Option<[u8; N]>, ReadError> {
        let mut bytes = [0; N];
        match self.reader.read_exact(&mut bytes) {
            Ok(()) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(ReadError::Io(error)),
        }
    }
}

/// Sign-extends a 12-bit value.
fn extend_12(high: u8, low: u8) -> i16 {
    (i16::from(high) << 12 | i16::from(low) << 4) >> 4
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

    #[test]
    fn format_212_decodes_two_signed_samples_from_three_bytes() {
        // 1, -1; 2047, 257; -2048 (invalid), 5; then 2, an unpaired last sample in two bytes.
        let data = [0x01, 0xf0, 0xff, 0xff, 0x17, 0x01, 0x00, 0x08, 0x05, 0x02, 0x00];
        let data = [&data[..6], &[0x00, 0x08, 0x05], &data[9..]].concat();
        let header = "r 1 100 7\nr.dat 212 1(0)/mV 12 0 1 6 0 x";
        let record = load_bytes("212", header, &data, 0).unwrap();
        assert_eq!(record.samples[..4], [1.0, -1.0, 2047.0, 257.0]);
        assert!(record.samples[4].is_nan());
        assert_eq!(record.samples[5..], [5.0, 2.0]);
        let [a, b] = [(0xf8, 0x01), (0x08, 0x00)].map(|(high, low)| extend_12(high & 0xf, low));
        assert_eq!((a, b), (-2047, -2048));
    }

    #[test]
    fn interleaved_signals_of_one_file_are_separated() {
        let values: [i16; 8] = [10, 1, 2, 100, 20, 3, i16::MIN, 200];
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let data = [b"HEAD", &data[..]].concat();
        let header = "r 3 100\nr.dat 16+4 10(0)/mV\nr.dat 16x2+4 1000/uV 16 1 0 -32763\nr.dat 16+4 0.1/V";
        let samples = |signal| load_bytes(&format!("turns{signal}"), header, &data, signal).unwrap();
        assert_eq!(samples(0).samples, [1.0, 2.0]);
        let second = samples(1);
        assert_eq!((second.fs_hz, second.samples_per_frame, &*second.signal), (200.0, 2, "signal 1"));
        assert_eq!(second.samples[..3], [0.0, 1e-6, 2e-6]);
        assert!(second.samples[3].is_nan());
        assert_eq!(samples(2).samples, [1e6, 2e6]);
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
            ("not4", "r 1 100\nr.dat 310", &[], ["line 2", "format 310"]),
            ("not5", "r 1 100\nr.dat 16:4", &[], ["line 2", "skew"]),
            ("not6", "r 1 100\nr.dat 16 1/mmHg", &[], ["line 2", "mmHg"]),
            ("not7", "r 1 1\nr.dat 16", &[], ["line 2", "sampling frequency 1 Hz"]),
            ("not8", "r 2 100\nr.dat 16\nr.dat 212", &[], ["line 3", "differ in format"]),
            ("not9", "r/2 1 100\n", &[], ["r.hea line 1", "2 segments"]),
        ] {
            let error = load_bytes(name, header, data, 0).expect_err(name);
            assert!(parts.iter().all(|part| error.contains(part)), "{header:?}: {error}");
        }
        let long = Folder::new("long", &[("r.hea", &[b'#'; HEADER_BYTES_MAX + 1])]);
        assert!(long.load(0).unwrap_err().contains("larger"));
        assert!(load(&long.0, 0).unwrap_err().to_string().contains("not a regular file"));
        assert!(load(&long.0.join("none.hea"), 0).unwrap_err().to_string().contains("No such file"));
    }

    fn assert_read(file: &Path, name: &str, samples: usize, signals: [(&str, i16); 2]) {
        for (index, (signal, first)) in signals.into_iter().enumerate() {
            let record = load(file, index).unwrap();
            assert_eq!((&*record.name, &*record.signal, record.fs_hz), (name, signal, 360.0));
            assert_eq!(record.samples.len(), samples);
            assert_eq!(record.samples[0], ((f64::from(first) - 1024.0) / 200.0) as f32);
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
