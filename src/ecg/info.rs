//! Description of the wave in [`super::WAVE_TOPIC`]: the payload of [`super::INFO_TOPIC`].

use serde::{Deserialize, Serialize};

use super::{FS_HZ_HIGHEST, FS_HZ_LOWEST};

/// Description of a wave. The JSON fields have the same names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// Sampling frequency, Hz.
    pub fs: f64,
    /// Unit of the samples: `mV`.
    pub units: String,
    /// Signal description, such as the lead `MLII`.
    pub signal: String,
    /// Record name, or `synthetic`.
    pub record: String,
    /// Samples per batch.
    pub batch: usize,
    /// Time of sample 0, nanoseconds since the Unix epoch.
    pub start_ns: u64,
}

impl Info {
    /// Serializes the description as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        // Serializing numbers and strings cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Parses and validates a payload, which any client may have published.
    ///
    /// # Errors
    /// Describes what is invalid.
    pub fn from_json(payload: &[u8]) -> Result<Info, String> {
        let info: Info = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
        if !(FS_HZ_LOWEST..=FS_HZ_HIGHEST).contains(&info.fs) {
            return Err(format!(
                "sampling frequency {} Hz is not between {FS_HZ_LOWEST} and {FS_HZ_HIGHEST} Hz",
                info.fs
            ));
        }
        Ok(info)
    }

    /// Time of a sample, nanoseconds since the Unix epoch.
    ///
    /// Exact for about a hundred days, then within a few nanoseconds.
    pub fn time_ns(&self, at_sample: u64) -> u64 {
        self.start_ns.saturating_add(after_ns(self.fs, at_sample))
    }

    /// Number of the sample taken at a time; `None` before sample 0.
    pub fn at_sample(&self, time_ns: u64) -> Option<u64> {
        let after_ns = time_ns.checked_sub(self.start_ns)?;
        Some((after_ns as f64 * self.fs / 1e9).round() as u64)
    }
}

/// Nanoseconds from sample 0 to sample `at_sample`.
pub fn after_ns(fs_hz: f64, at_sample: u64) -> u64 {
    (at_sample as f64 * 1e9 / fs_hz) as u64
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn info(fs: f64) -> Info {
        Info {
            fs,
            units: "mV".into(),
            signal: "MLII".into(),
            record: "100".into(),
            batch: 10,
            start_ns: 1_793_322_000_000_000_000,
        }
    }

    #[test]
    fn sample_numbers_and_times_convert_both_ways() {
        for fs in [60.0, 128.0, 250.0, 360.0, 333.3, 999.9, 10_000.0] {
            let info = info(fs);
            for at_sample in (0..1_000).chain([1 << 20, 1 << 30, 86_400 * 10_000 * 90]) {
                assert_eq!(info.at_sample(info.time_ns(at_sample)), Some(at_sample), "{fs}");
            }
            assert_eq!(info.at_sample(info.start_ns - 1), None);
        }
    }

    #[test]
    fn a_payload_survives_a_round_trip_and_an_invalid_one_is_rejected() {
        let info = info(360.0);
        assert_eq!(Info::from_json(&info.to_json()), Ok(info.clone()));
        for (from, to) in [
            ("360.0", "0"),
            ("360.0", "1e99"),
            ("\"fs\"", "\"hz\""),
            ("{", "["),
            ("\"batch\":10", "\"batch\":-1"),
        ] {
            let text = String::from_utf8(info.to_json()).unwrap().replacen(from, to, 1);
            assert!(Info::from_json(text.as_bytes()).is_err(), "{text}");
        }
    }
}
