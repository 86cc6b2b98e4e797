//! Tests of the record reader, with values written out by hand from signal(5wfdb) and header(5wfdb).

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
        let signals = [0, 1].map(|signal| samples(&load_bytes("offset", &header, &data, signal).unwrap()));
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
    assert_eq!((record.gaps(), record.samples_total(), record.checksum_differs), (vec![(3, 5)], 8, false));
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

/// `tests/data/wfdb_reference.py` writes the values that the PyPI package `wfdb` reads, as little-endian doubles in the signal's
/// unit. Ours are in mV; a signal in a unit that is not a voltage is refused.
#[test]
#[ignore = "needs TICKCAST_WFDB=folder written by tests/data/wfdb_reference.py"]
fn samples_are_those_that_wfdb_python_reads() {
    let folder = PathBuf::from(std::env::var_os("TICKCAST_WFDB").expect("TICKCAST_WFDB=folder"));
    let list = fs::read_to_string(folder.join("list")).unwrap();
    assert!(list.lines().count() > 20, "{list}");
    for line in list.lines() {
        let [header, signal, unit, values] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let loaded = load(Path::new(header), signal.parse().unwrap());
        let mv_per_unit = match unit {
            "mV" => 1.0,
            "uV" => 1e-3,
            "V" => 1e3,
            other => {
                let refusal = loaded.unwrap_err().to_string();
                assert!(
                    refusal.contains(&format!("is in {other}, so it is not an ECG")),
                    "{line}: {refusal}"
                );
                continue;
            }
        };
        let record = loaded.unwrap();
        let expected = fs::read(folder.join(values)).unwrap();
        let expected: Vec<f64> =
            expected.as_chunks::<8>().0.iter().map(|value| f64::from_le_bytes(*value)).collect();
        let got = samples(&record);
        assert_eq!(got.len(), expected.len(), "{line}");
        for (at, (&got, expected)) in got.iter().zip(expected).enumerate() {
            let expected = expected * mv_per_unit;
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
