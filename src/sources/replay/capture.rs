//! The lines of a capture: a file or a pipe, plain or compressed with gzip or zstd.
//!
//! ```text
//!  file . pipe (waits for data, notices a stop)  ->  plain . gzip . zstd, by the first bytes  ->  lines
//! ```

use std::{
    fmt::Display,
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, ErrorKind, Read},
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use flate2::bufread::MultiGzDecoder;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

use crate::{
    NAP_NS, SourceContext, SourceStatus, StopFlag,
    health::{Health, Waiting},
    limits::{REPLAY_LINE_BYTES_MAX, REPLAY_WAIT_SAID_NS, REPLAY_WINDOW_BYTES_MAX},
};
use tickcast_common::clock;

/// Bytes per read call.
const READ_BYTES: usize = 64 << 10;
/// Bytes that identify a compression.
const MAGIC_BYTES: usize = 4;
/// Unsupported compressions, with the program that decompresses each.
const OTHER_COMPRESSIONS: [(&[u8], &str); 4] =
    [(b"\xfd7zX", "xz"), (b"BZh", "bzip2"), (b"\x04\x22\x4d\x18", "lz4"), (b"PK\x03\x04", "zip")];

/// Whether a path can be replayed, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CaptureKind {
    /// A regular file.
    File,
    /// A FIFO or an anonymous pipe, which can be read once.
    Pipe,
}

impl CaptureKind {
    /// The kind of the file at a path.
    ///
    /// # Errors
    /// The file does not exist, cannot be accessed, or is of another kind.
    pub(super) fn of(path: &Path) -> io::Result<CaptureKind> {
        let found = path.metadata()?.file_type();
        match (found.is_file(), found.is_fifo()) {
            (true, _) => Ok(CaptureKind::File),
            (_, true) => Ok(CaptureKind::Pipe),
            _ => Err(io::Error::other("neither a file nor a pipe")),
        }
    }
}

/// An open capture.
pub(super) struct Capture {
    reader: BufReader<Box<dyn Read>>,
    kind: CaptureKind,
}

impl Capture {
    /// Opens a capture. Does not wait for the writer of a FIFO.
    ///
    /// # Errors
    /// It cannot be opened or read, or is compressed with a program that is not supported.
    pub(super) fn open(path: &Path, context: &SourceContext) -> io::Result<Capture> {
        let kind = CaptureKind::of(path)?;
        let reader: Box<dyn Read> = match kind {
            CaptureKind::File => Box::new(File::open(path)?),
            CaptureKind::Pipe => Box::new(Pipe {
                file: OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?,
                path: path.into(),
                stop: context.stop.clone(),
                status: context.status.clone(),
            }),
        };
        Ok(Capture { reader: BufReader::with_capacity(READ_BYTES, decompressed(reader)?), kind })
    }

    /// Whether the next line may take arbitrarily long to arrive.
    pub(super) fn may_wait(&self) -> bool {
        self.kind == CaptureKind::Pipe && !self.reader.buffer().contains(&b'\n')
    }

    /// Reads one line into `bytes`, truncated to one byte more than a line may have. Returns `false` at the end.
    ///
    /// # Errors
    /// Those of the file, and damaged compressed data.
    pub(super) fn read_line(&mut self, bytes: &mut Vec<u8>) -> io::Result<bool> {
        read_line(&mut self.reader, bytes)
    }
}

fn read_line(reader: &mut impl BufRead, bytes: &mut Vec<u8>) -> io::Result<bool> {
    bytes.clear();
    loop {
        let available = reader.fill_buf()?;
        if available.is_empty() {
            return Ok(!bytes.is_empty());
        }
        let end = available.iter().position(|&byte| byte == b'\n');
        let taken = end.map_or(available.len(), |end| end + 1);
        let room = (REPLAY_LINE_BYTES_MAX + 1).saturating_sub(bytes.len());
        bytes.extend_from_slice(&available[..taken.min(room)]);
        reader.consume(taken);
        if end.is_some() {
            return Ok(true);
        }
    }
}

/// The text of a capture, whatever the name of its file: JSON never begins like a compressed file.
fn decompressed(mut reader: Box<dyn Read>) -> io::Result<Box<dyn Read>> {
    let mut magic = Vec::with_capacity(MAGIC_BYTES);
    reader.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut magic)?;
    if let Some((_, program)) = OTHER_COMPRESSIONS.iter().find(|(other, _)| magic.starts_with(other)) {
        let text =
            format!("compressed with {program}, which is not read; decompress it, or use gzip or zstd");
        return Err(io::Error::new(ErrorKind::InvalidData, text));
    }
    let (is_gzip, is_zstd) = (magic.starts_with(b"\x1f\x8b"), is_zstd(&magic));
    let whole = io::Cursor::new(magic).chain(reader);
    Ok(match (is_gzip, is_zstd) {
        (true, _) => Box::new(MultiGzDecoder::new(BufReader::with_capacity(READ_BYTES, whole))),
        (_, true) => Box::new(Zstd::new(BufReader::with_capacity(READ_BYTES, whole))),
        _ => Box::new(whole),
    })
}

/// Whether a file begins with a zstd frame, or a skippable one (RFC 8878, section 3.1).
fn is_zstd(magic: &[u8]) -> bool {
    magic == b"\x28\xb5\x2f\xfd" || matches!(magic, [0x50..=0x5f, 0x2a, 0x4d, 0x18])
}

/// Decompresses the zstd frames of a file, one after the other.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    is_in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(source: R) -> Zstd<R> {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(REPLAY_WINDOW_BYTES_MAX);
        Zstd { source, decoder, is_in_frame: false }
    }

    /// Begins the next frame. Returns `false` at the end of the file.
    fn begin_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let skipped = io::copy(&mut self.source.by_ref().take(length.into()), &mut io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(damaged("a skippable frame is cut"));
                    }
                }
                Err(error) => return Err(damaged(error)),
            }
        }
        Ok(false)
    }
}

fn damaged(error: impl Display) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("incomplete or damaged zstd data: {error}"))
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.is_in_frame {
                if !self.begin_frame()? {
                    return Ok(0);
                }
                self.is_in_frame = true;
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.source, one).map_err(damaged)?;
            }
            match self.decoder.read(bytes)? {
                0 if !bytes.is_empty() => {
                    let stored = self.decoder.get_checksum_from_data();
                    if stored.is_some() && stored != self.decoder.get_calculated_checksum() {
                        return Err(damaged("the checksum does not match"));
                    }
                    self.is_in_frame = false;
                }
                read => return Ok(read),
            }
        }
    }
}

/// A pipe whose reads end when the source must stop. Waits until a FIFO has a writer.
struct Pipe {
    /// Opened non-blocking, so that opening does not wait for a writer.
    file: File,
    path: PathBuf,
    stop: StopFlag,
    status: SourceStatus,
}

impl Read for Pipe {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let start_ns = clock::monotonic_ns();
        let mut is_said = false;
        let result = loop {
            if self.stop.is_set() {
                break Ok(0);
            }
            let mut files = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
            match poll(&mut files, PollTimeout::from((NAP_NS / 1_000_000) as u16)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Err(error) => break Err(error.into()),
                Ok(_) => match self.file.read(bytes) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    result => break result,
                },
            }
            if !is_said && clock::monotonic_ns() - start_ns > REPLAY_WAIT_SAID_NS {
                is_said = true;
                self.status.set_health(Health::Waiting(Waiting::Line));
                ::log::info!("replay: {}: no line for a minute; still waiting", self.path.display());
            }
        };
        if is_said {
            self.status.set_health(Health::Running);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    const TEXT: &[u8] = b"{\"at_ns\":0,\"topic\":\"a\",\"data\":1}\nlast";

    fn read(file: &[u8]) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        let reader: Box<dyn Read> = Box::new(io::Cursor::new(file.to_vec()));
        decompressed(reader)?.read_to_end(&mut text)?;
        Ok(text)
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        compress_to_vec(text, CompressionLevel::Fastest)
    }

    #[test]
    fn lines_are_read_whole_and_overlong_ones_are_cut() {
        let long = vec![b'x'; REPLAY_LINE_BYTES_MAX * 2];
        let input = [b"one\n", &long[..], b"\nlast"].concat();
        let mut reader = BufReader::with_capacity(64, &input[..]);
        let mut bytes = Vec::new();
        assert!(read_line(&mut reader, &mut bytes).unwrap() && bytes == b"one\n");
        assert!(read_line(&mut reader, &mut bytes).unwrap() && bytes.len() == REPLAY_LINE_BYTES_MAX + 1);
        assert!(read_line(&mut reader, &mut bytes).unwrap() && bytes == b"last");
        assert!(!read_line(&mut reader, &mut bytes).unwrap());
    }

    #[test]
    fn plain_gzip_and_zstd_are_told_apart_by_their_first_bytes() {
        let long = TEXT.repeat(10_000);
        for text in [TEXT, &long, b"", b"1"] {
            let skippable = [b"\x5a\x2a\x4d\x18\x03\0\0\0abc", &zstd(text)[..]].concat();
            for file in [text.to_vec(), gzip(text), zstd(text), skippable] {
                assert!(read(&file).unwrap() == text, "{} bytes", text.len());
            }
        }
    }

    #[test]
    fn compressed_files_may_be_concatenated() {
        let (one, two) = (TEXT.repeat(3), TEXT.repeat(5_000));
        let whole = [&one[..], &two].concat();
        assert!(read(&[gzip(&one), gzip(&two)].concat()).unwrap() == whole);
        assert!(read(&[zstd(&one), zstd(b""), zstd(&two)].concat()).unwrap() == whole);
    }

    #[test]
    fn a_truncated_or_foreign_compressed_file_is_an_error() {
        for whole in [gzip(&TEXT.repeat(5_000)), zstd(&TEXT.repeat(5_000))] {
            for len in [5, whole.len() / 2, whole.len() - 5] {
                assert!(read(&whole[..len]).is_err(), "{len}");
            }
        }
        for (magic, program) in OTHER_COMPRESSIONS {
            let error = read(&[magic, b"more"].concat()).unwrap_err().to_string();
            assert!(error.contains(&format!("compressed with {program}, which is not read")), "{error}");
        }
    }

    #[test]
    fn a_changed_byte_in_a_zstd_frame_is_an_error() {
        // What `zstd --check` makes of this line: a raw block, and the checksum of its content.
        const LINE: &[u8] = b"{\"topic\":\"a\",\"at_ns\":0,\"data\":1}\n";
        let frame = [b"\x28\xb5\x2f\xfd\x04\x58\x09\x01\x00", LINE, b"\xd6\x0c\x78\x68"].concat();
        assert!(read(&frame).unwrap() == LINE);
        for at in [9, frame.len() - 5, frame.len() - 1] {
            let mut changed = frame.clone();
            changed[at] ^= 1;
            assert!(read(&changed).is_err(), "byte {at}");
        }
        assert!(read(b"\x5a\x2a\x4d\x18\x03\0\0\0ab").is_err(), "a skippable frame of 3 bytes");
    }

    #[test]
    fn decompressing_any_bytes_never_panics() {
        let mut random = fastrand::Rng::with_seed(5);
        let whole = [gzip(&TEXT.repeat(50)), zstd(&TEXT.repeat(50))];
        for n in 0..2_000 {
            let mut file = whole[n % 2].clone();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(4..file.len());
                file[at] = random.u8(..);
            }
            let _ = read(&file);
        }
    }
}
