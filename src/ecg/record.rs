//! One signal of a WFDB record, read whole: header, samples, units. See signal(5wfdb).

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

/// Bytes read in one call.
const READ_BYTES: usize = 64 << 10;

/// One signal of a record. At most [`SAMPLES_MAX`] samples, 4 bytes each.
#[derive(Clone, PartialEq)]
pub struct Record {
    /// The record's name.
    pub name: String,
    /// The signal's description, or `signal N` where the header has none.
    pub signal: String,
    /// Samples a second, Hz; [`FS_HZ_LOWEST`] to [`FS_HZ_HIGHEST`].
    pub fs_hz: f64,
    /// Samples in one frame: annotations count frames.
    pub samples_per_frame: usize,
    /// The samples, mV; NaN where the recorder had none. At least one.
    pub samples: Vec<f32>,
    /// The header's checksum is not that of the samples: the file was changed or damaged.
    pub checksum_differs: bool,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { name, signal, fs_hz, samples, .. } = self;
        write!(f, "Record {{ {name} {signal} {fs_hz} Hz, {} samples }}", samples.len())
    }
}

/// Reads the signal of this number, from 0, of the record whose header is `file`.
///
/// # Errors
/// [`FileError`]: the file and line that are wrong, and what to do. What is cut short is an error: a record without
/// its end would be taken for a shorter one.
pub fn load(file: &Path, signal: usize) -> Result<Record, FileError> {
    let bytes = read_bounded(file, HEADER_BYTES_MAX)?;
    let header = header::parse(&bytes).map_err(|error| FileError {
        file: file.into(),
        line: Some(error.line),
        text: error.text,
    })?;
    let plan =
        Plan::new(&header, signal).map_err(|(line, text)| FileError { file: file.into(), line, text })?;
    let data = file.with_file_name(&plan.signal.file);
    let failed = |error: io::Error| FileError::new(&data, error.to_string());
    // A device or a pipe would not end, and not be rewound.
    if !fs::metadata(&data).map_err(failed)?.is_file() {
        return Err(FileError::new(&data, "not a regular file"));
    }
    let mut reader = File::open(&data).map_err(failed)?;
    reader.seek(SeekFrom::Start(plan.signal.byte_offset)).map_err(failed)?;
    let mut reader = BufReader::with_capacity(READ_BYTES, reader);
    let (samples, sum) = plan.read(&mut reader).map_err(|error| match error {
        ReadError::Io(error) => failed(error),
        ReadError::Text(text) => FileError::new(&data, text),
    })?;
    let description = &plan.signal.description;
    Ok(Record {
        name: header.record.clone(),
        signal: if description.is_empty() { format!("signal {signal}") } else { description.clone() },
        fs_hz: plan.fs_hz,
        samples_per_frame: plan.signal.samples_per_frame,
        samples,
        checksum_differs: plan.signal.checksum.is_some_and(|expected| expected != sum),
    })
}

/// Reads a file of at most so many bytes.
pub(super) fn read_bounded(file: &Path, bytes_max: usize) -> Result<Vec<u8>, FileError> {
    let failed = |error: io::Error| FileError::new(file, error.to_string());
    if !fs::metadata(file).map_err(failed)?.is_file() {
        return Err(FileError::new(file, "not a regular file"));
    }
    let mut bytes = Vec::new();
    let reader = File::open(file).map_err(failed)?;
    reader.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > bytes_max {
        return Err(FileError::new(file, format!("longer than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// Where one signal's samples are in its file.
struct Plan<'a> {
    signal: &'a Signal,
    fs_hz: f64,
    /// mV in a unit of the header.
    mv_per_unit: f64,
    /// Samples of a frame in this file, of all its signals.
    frame_samples: usize,
    /// This signal's first one of them.
    first: usize,
    frames: Option<u64>,
}

enum ReadError {
    Io(io::Error),
    Text(String),
}

impl<'a> Plan<'a> {
    /// Or the header's line to blame, and why.
    fn new(header: &'a Header, index: usize) -> Result<Plan<'a>, (Option<usize>, String)> {
        let Some(signal) = header.signals.get(index) else {
            let text =
                format!("there is no signal {index}: the record has 0 to {}", header.signals.len() - 1);
            return Err((None, text));
        };
        let refuse = |text: String| Err((Some(signal.line), text));
        if let Format::Other(number) = signal.format {
            return refuse(format!("format {number} is not read: 212 and 16 are (xform converts)"));
        }
        if signal.skew != 0 {
            return refuse(format!("a skew of {} frames is not read: 0 is", signal.skew));
        }
        if signal.file.contains('/') || matches!(&*signal.file, "-" | "~" | ".." | ".") {
            return refuse(format!("{:?} is no file beside the header", signal.file));
        }
        let mv_per_unit = match &*signal.units {
            "mV" | "mv" => 1.0,
            "uV" | "uv" | "\u{b5}V" | "\u{3bc}V" => 1e-3,
            "V" => 1e3,
            units => {
                return refuse(format!("signal {index} is in {units}, no ECG: choose one in mV, uV or V"));
            }
        };
        let fs_hz = header.frames_hz * signal.samples_per_frame as f64;
        if !(FS_HZ_LOWEST..=FS_HZ_HIGHEST).contains(&fs_hz) {
            return refuse(format!("{fs_hz} samples a second: {FS_HZ_LOWEST} to {FS_HZ_HIGHEST} are read"));
        }
        let is_beside = |other: &&Signal| other.file == signal.file;
        let first = header.signals[..index].iter().rev().take_while(is_beside);
        let first: usize = first.map(|other| other.samples_per_frame).sum();
        let rest = header.signals[index..].iter().take_while(is_beside);
        if let Some(other) = header
            .signals
            .iter()
            .filter(is_beside)
            .find(|other| (other.format, other.byte_offset) != (signal.format, signal.byte_offset))
        {
            let text = format!("{} has two formats or offsets: one file, one format", signal.file);
            return Err((Some(other.line), text));
        }
        let frame_samples = first + rest.map(|other| other.samples_per_frame).sum::<usize>();
        if header.frames.is_some_and(|frames| {
            frames.checked_mul(signal.samples_per_frame as u64).is_none_or(|all| all > SAMPLES_MAX as u64)
        }) {
            let text = format!("more than {SAMPLES_MAX} samples: a day at 360 Hz is read");
            return Err((None, text));
        }
        Ok(Plan { signal, fs_hz, mv_per_unit, frame_samples, first, frames: header.frames })
    }

    /// The samples, and their sum modulo 2^16. Memory grows with what is there, not with what is announced.
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
                let text = format!("more than {SAMPLES_MAX} samples: a day at 360 Hz is read");
                return Err(ReadError::Text(text));
            }
            frame += 1;
        }
        Ok((samples, sum))
    }

    fn too_short(&self, frame: u64) -> ReadError {
        ReadError::Text(match self.frames {
            Some(frames) => format!(
                "it ends in sample {frame} of the {frames} that the header announces: get the whole file"
            ),
            None => format!("it ends in the middle of sample {frame}: get the whole file"),
        })
    }

    fn millivolts(&self, value: i16) -> f32 {
        let invalid = if self.signal.format == Format::Packed212 { -2048 } else { i16::MIN };
        if value == invalid {
            return f32::NAN;
        }
        let steps = f64::from(value) - f64::from(self.signal.baseline);
        (steps / self.signal.gain * self.mv_per_unit) as f32
    }
}

/// Samples as they are stored.
struct RawSamples<'a, R> {
    reader: &'a mut R,
    format: Format,
    /// Of 212: what the third byte completes to the second sample of a pair.
    second: Option<u8>,
}

impl<R: Read> RawSamples<'_, R> {
    /// The next one; `None` at the end, be it in the middle of a sample.
    fn next(&mut self) -> Result<Option<i16>, ReadError> {
        if let Some(high) = self.second.take() {
            let Some([low]) = self.bytes()? else { return Ok(None) };
            return Ok(Some(extend_12(high >> 4, low)));
        }
        let Some([low, high]) = self.bytes()? else { return Ok(None) };
        if self.format == Format::Packed212 {
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

/// 12 bits with their sign.
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

    /// A folder with files, gone when dropped.
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
    fn format_212_gives_both_samples_of_three_bytes_with_their_signs() {
        // 1, -1; 2047, -2047; -2048 is no sample; an odd last one takes two bytes.
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
    fn signals_of_one_file_take_turns_and_are_told_apart() {
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
    fn a_checksum_that_differs_is_noted() {
        let header = |sum| format!("r 1 100\nr.dat 16 1 16 0 1 {sum}");
        for (name, sum, differs) in [("sum1", 3, false), ("sum2", 65_539, false), ("sum3", 4, true)] {
            let record = load_bytes(name, &header(sum), &[1, 0, 2, 0], 0).unwrap();
            assert_eq!(record.checksum_differs, differs, "{sum}");
        }
    }

    #[test]
    fn files_that_are_cut_or_not_meant_are_errors_that_name_them() {
        for (name, header, data, parts) in [
            ("cut1", "r 1 100 3\nr.dat 16", &[1, 0, 2, 0][..], ["r.dat", "sample 2 of the 3"]),
            ("cut2", "r 1 100 3\nr.dat 212", &[1, 0, 2], ["r.dat", "sample 2 of the 3"]),
            ("cut3", "r 1 100\nr.dat 16", &[1], ["r.dat", "sample 0"]),
            ("cut4", "r 1 100\nr.dat 16+9", &[1, 0], ["r.dat", "sample 0"]),
            ("cut5", "r 2 100\nr.dat 16\nr.dat 16", &[1, 0, 2, 0, 3, 0], ["r.dat", "middle of sample 1"]),
            ("big1", "r 1 100 18446744073709551615\nr.dat 16", &[], ["r.hea", "more than"]),
            ("big2", "r 1 100 18446744073709551615\nr.dat 16x2", &[], ["r.hea", "samples"]),
            ("not1", "r 1 100\nother.dat 16", &[], ["other.dat", "No such file"]),
            ("not2", "r 1 100\n../r.dat 16", &[], ["line 2", "beside the header"]),
            ("not3", "r 1 100\n- 16", &[], ["line 2", "beside the header"]),
            ("not4", "r 1 100\nr.dat 310", &[], ["line 2", "format 310"]),
            ("not5", "r 1 100\nr.dat 16:4", &[], ["line 2", "skew"]),
            ("not6", "r 1 100\nr.dat 16 1/mmHg", &[], ["line 2", "mmHg"]),
            ("not7", "r 1 1\nr.dat 16", &[], ["line 2", "1 samples a second"]),
            ("not8", "r 2 100\nr.dat 16\nr.dat 212", &[], ["line 3", "one format"]),
            ("not9", "r/2 1 100\n", &[], ["r.hea line 1", "2 segments"]),
        ] {
            let error = load_bytes(name, header, data, 0).expect_err(name);
            assert!(parts.iter().all(|part| error.contains(part)), "{header:?}: {error}");
        }
        let long = Folder::new("long", &[("r.hea", &[b'#'; HEADER_BYTES_MAX + 1])]);
        assert!(long.load(0).unwrap_err().contains("longer"));
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
    fn the_made_record_is_read_to_its_checksums() {
        assert_read(&made_record(), "made", 108_000, [("II", 1022), ("V5", 1036)]);
    }

    #[test]
    #[ignore = "needs TICKCAST_RECORD=path/to/100.hea"]
    fn record_100_is_read_to_its_checksums() {
        assert_read(&record_100(), "100", 650_000, [("MLII", 995), ("V5", 1011)]);
    }
}
