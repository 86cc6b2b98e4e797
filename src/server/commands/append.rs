//! The file of `tickcast sub --append`.
//! The positions to resume from are derived from the lines themselves, so they always agree. If the process is killed at any
//! moment, each tick is in the file exactly once; a crash of the machine may lose the last lines.

use std::{
    borrow::Cow,
    fs::{File, OpenOptions, TryLockError},
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use serde::Deserialize;

use crate::{
    commands::CommandError,
    limits::{FRAME_BYTES_MAX_HIGHEST, JSON_ENVELOPE_BYTES},
};
use tickcast_client::Positions;
use tickcast_proto::subscription::Position;

/// Longest line: the largest payload as base64, or as JSON.
const LINE_BYTES_MAX: usize = FRAME_BYTES_MAX_HIGHEST / 3 * 4 + JSON_ENVELOPE_BYTES;
/// Bytes of the file read in one call.
const READ_BYTES: usize = 256 << 10;

/// The file, and the positions after its last line.
pub(super) struct AppendFile {
    /// Opened for appending, and locked so that no other process appends.
    pub(super) file: File,
    pub(super) positions: Positions,
}

/// The fields of a line that determine a position. Others are ignored.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(default, borrow)]
    op: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    topic: Cow<'a, str>,
    #[serde(default)]
    epoch: u64,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    to: u64,
    #[serde(default)]
    exists: bool,
    #[serde(default)]
    sequence: u64,
    #[serde(default)]
    recovered: bool,
}

impl AppendFile {
    /// Opens or creates the file, reads it, and cuts off an incomplete last line.
    ///
    /// # Errors
    /// [`CommandError::Append`]: the file cannot be opened, another process appends to it, or a line was not written by
    /// `--append`. The file is not changed then.
    pub(super) fn open(path: &Path) -> Result<AppendFile, CommandError> {
        let fail = |text: String| CommandError::Append { path: path.into(), text };
        let failed = |error: io::Error| fail(error.to_string());
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(fail("another process is appending to it".into())),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let mut positions = Positions::new();
        let mut reader = BufReader::with_capacity(READ_BYTES, &file);
        let mut line = Vec::new();
        let mut whole_bytes = 0;
        for number in 1u64.. {
            line.clear();
            let limit = LINE_BYTES_MAX as u64 + 1;
            let read = reader.by_ref().take(limit).read_until(b'\n', &mut line).map_err(failed)?;
            let Some(text) = line.strip_suffix(b"\n") else {
                if read > LINE_BYTES_MAX {
                    return Err(fail(format!("line {number} is longer than {LINE_BYTES_MAX} bytes")));
                }
                if read > 0 {
                    file.set_len(whole_bytes).map_err(failed)?;
                }
                break;
            };
            apply(&mut positions, text).map_err(|why| {
                fail(format!("line {number} was not written by --append: {why}; choose another file"))
            })?;
            whole_bytes += read as u64;
        }
        Ok(AppendFile { file, positions })
    }
}

/// Applies a line to the positions, by the same rules as when it was written.
fn apply(positions: &mut Positions, text: &[u8]) -> Result<(), String> {
    let line: Line<'_> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let Line { epoch, seq, to, sequence, .. } = line;
    if line.topic.is_empty() || epoch == 0 {
        return Err("\"topic\" or \"epoch\" is missing".into());
    }
    match line.op.as_deref() {
        None if seq > 0 => positions.advance(&line.topic, Position { epoch, sequence: seq }),
        None => return Err("\"seq\" is missing".into()),
        Some("gap" | "conflated") if to > 0 => {
            positions.advance(&line.topic, Position { epoch, sequence: to - 1 });
        }
        Some("recovered") => {
            positions.handle_recovered(
                &line.topic,
                line.exists,
                Position { epoch, sequence },
                line.recovered,
            );
        }
        Some("missed") => {}
        Some(other) => return Err(format!("unknown op {other:?}")),
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
