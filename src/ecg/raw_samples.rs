//! Decoder for stored samples. See signal(5wfdb).
//!
//! ```text
//!  format  bytes                                       value that marks an invalid sample
//!       8  a difference to the signal's last sample                  none
//!  16, 61  16 bits, little-endian; big-endian                     -32,768
//!      24  24 bits, little-endian                              -8,388,608
//!      32  32 bits, little-endian                          -2,147,483,648
//!      80  8 bits + 128                                              -128
//!     160  16 bits + 32,768, little-endian                        -32,768
//!     212  aaaaaaaa BBBBAAAA bbbbbbbb                              -2,048
//!     310  aaaaaaa- cccccAAA bbbbbbb- CCCCCBBB                        -512
//!     311  aaaaaaaa bbbbbbAA ccccBBBB --CCCCCC                        -512
//! ```
//!
//! In the packed formats a, b and c are consecutive samples, the upper bits in capitals.

use std::io::{self, Read};

use super::header::Format;

/// Most samples that share bytes.
const GROUP_SAMPLES_MAX: usize = 3;
/// Most bytes that samples share.
const GROUP_BYTES_MAX: usize = 4;

/// Reads samples one by one, those of all signals in the file.
///
/// For format 8, it returns the differences.
pub(super) struct RawSamples<'a, R> {
    reader: &'a mut R,
    format: Format,
    /// Decoded samples of the current group, the next one at `at`.
    group: [i32; GROUP_SAMPLES_MAX],
    at: usize,
    len: usize,
}

impl<'a, R: Read> RawSamples<'a, R> {
    pub(super) fn new(reader: &'a mut R, format: Format) -> RawSamples<'a, R> {
        RawSamples { reader, format, group: [0; GROUP_SAMPLES_MAX], at: 0, len: 0 }
    }

    /// Returns the next value, or `None` at the end of the file, even in the middle of a sample.
    ///
    /// # Errors
    /// Those of the reader.
    pub(super) fn next(&mut self) -> io::Result<Option<i32>> {
        if self.at == self.len {
            let mut bytes = [0; GROUP_BYTES_MAX];
            let read = read_up_to(self.reader, &mut bytes[..group_bytes(self.format)])?;
            (self.at, self.len) = (0, complete_samples(self.format, read));
            self.group = decode(self.format, bytes);
            if self.len == 0 {
                return Ok(None);
            }
        }
        let value = self.group[self.at];
        self.at += 1;
        Ok(Some(value))
    }
}

/// Reads until `bytes` is full or the file ends, and returns how many bytes it read.
fn read_up_to(reader: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < bytes.len() {
        match reader.read(&mut bytes[read..]) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Bytes of a group of samples.
fn group_bytes(format: Format) -> usize {
    match format {
        Format::Format8 | Format::Format80 => 1,
        Format::Format16 | Format::Format61 | Format::Format160 => 2,
        Format::Format24 | Format::Format212 => 3,
        Format::Format32 | Format::Format310 | Format::Format311 => 4,
        Format::Unsupported(_) => 0,
    }
}

/// Number of samples in the first `bytes` bytes of a group: a file may end within one.
fn complete_samples(format: Format, bytes: usize) -> usize {
    match (format, bytes) {
        (Format::Unsupported(_), _) => 0,
        (Format::Format212 | Format::Format310 | Format::Format311, 2) => 1,
        (Format::Format212, 3) | (Format::Format311, 3) => 2,
        (Format::Format310, 3) => 1,
        (Format::Format310 | Format::Format311, 4) => 3,
        (format, bytes) => usize::from(bytes == group_bytes(format)),
    }
}

fn decode(format: Format, bytes: [u8; GROUP_BYTES_MAX]) -> [i32; GROUP_SAMPLES_MAX] {
    let [a, b, c, _] = bytes;
    let one = |value: i32| [value, 0, 0];
    let low = u16::from_le_bytes([a, b]);
    let word = u32::from_le_bytes(bytes);
    match format {
        Format::Format8 => one((a as i8).into()),
        Format::Format80 => one(i32::from(a) - 128),
        Format::Format16 => one((low as i16).into()),
        Format::Format61 => one((low.swap_bytes() as i16).into()),
        Format::Format160 => one(i32::from(low) - 32_768),
        Format::Format24 => one(sign_extend(word, 24)),
        Format::Format32 => one(word as i32),
        Format::Format212 => {
            let second = u32::from(b >> 4) << 8 | u32::from(c);
            [sign_extend(low.into(), 12), sign_extend(second, 12), 0]
        }
        Format::Format310 => {
            let (low, high) = (word & 0xffff, word >> 16);
            let third = high >> 11 << 5 | low >> 11;
            [low >> 1, high >> 1, third].map(|bits| sign_extend(bits, 10))
        }
        Format::Format311 => [word, word >> 10, word >> 20].map(|bits| sign_extend(bits, 10)),
        Format::Unsupported(_) => one(0),
    }
}

/// The two's-complement value of the lowest `width` bits.
fn sign_extend(bits: u32, width: u32) -> i32 {
    (bits << (32 - width)) as i32 >> (32 - width)
}

/// The value that marks an invalid sample.
pub(super) fn invalid_value(format: Format) -> Option<i32> {
    match format {
        Format::Format8 | Format::Unsupported(_) => None,
        Format::Format16 | Format::Format61 | Format::Format160 => Some(i16::MIN.into()),
        Format::Format24 => Some(-1 << 23),
        Format::Format32 => Some(i32::MIN),
        Format::Format80 => Some(i8::MIN.into()),
        Format::Format212 => Some(-1 << 11),
        Format::Format310 | Format::Format311 => Some(-1 << 9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(format: Format, mut bytes: &[u8]) -> Vec<i32> {
        let mut samples = RawSamples::new(&mut bytes, format);
        std::iter::from_fn(|| samples.next().unwrap()).collect()
    }

    /// Bytes by the definitions of signal(5wfdb), written out by hand.
    #[test]
    fn every_format_is_decoded_by_its_definition() {
        for (format, bytes, expected) in [
            (Format::Format8, &[0x01, 0xff, 0x7f, 0x80][..], &[1, -1, 127, -128][..]),
            (Format::Format16, &[0x02, 0x01, 0xff, 0xff, 0x00, 0x80], &[258, -1, -32_768]),
            (Format::Format61, &[0x01, 0x02, 0xff, 0xfe, 0x80, 0x00], &[258, -2, -32_768]),
            (Format::Format24, &[3, 2, 1, 0xfe, 0xff, 0xff, 0, 0, 0x80], &[66_051, -2, -8_388_608]),
            (
                Format::Format32,
                &[4, 3, 2, 1, 0xfe, 0xff, 0xff, 0xff, 0, 0, 0, 0x80],
                &[16_909_060, -2, i32::MIN],
            ),
            (Format::Format80, &[0x80, 0x00, 0xff, 0x7f], &[0, -128, 127, -1]),
            (Format::Format160, &[0x00, 0x80, 0x00, 0x00, 0xff, 0xff, 0xff, 0x7f], &[0, -32_768, 32_767, -1]),
            (
                Format::Format212,
                &[0x01, 0xf0, 0xff, 0xff, 0x17, 0x01, 0x00, 0x08, 0x05],
                &[1, -1, 2047, 257, -2048, 5],
            ),
            // 1 = 0b1 << 1; -1 = 0x3ff << 1; 37 = 0b00001_00101, its lower five bits in the first word.
            (Format::Format310, &[0x02, 0x28, 0xfe, 0x0f], &[1, -1, 37]),
            // -512, 511, and -2 = 0b11111_11110. The bits that the first two do not use are ignored.
            (Format::Format310, &[0x01, 0xf4, 0xff, 0xfb], &[-512, 511, -2]),
            // 1 | -1 << 10 | 37 << 20
            (Format::Format311, &[0x01, 0xfc, 0x5f, 0x02], &[1, -1, 37]),
            // -512 | 511 << 10 | -2 << 20
            (Format::Format311, &[0x00, 0xfe, 0xe7, 0x3f], &[-512, 511, -2]),
        ] {
            assert_eq!(decoded(format, bytes), expected, "{format:?}");
        }
    }

    #[test]
    fn a_file_may_end_within_a_group_of_samples() {
        for (format, bytes, expected) in [
            (Format::Format212, &[0x01, 0x02, 0x03, 0x04, 0x05][..], &[513, 3, 0x504][..]),
            (Format::Format212, &[0x01, 0x02, 0x03, 0x04], &[513, 3]),
            (Format::Format310, &[0x02, 0x00], &[1]),
            (Format::Format310, &[0x02, 0x00, 0x02], &[1]),
            (Format::Format311, &[0x01, 0x08], &[1]),
            (Format::Format311, &[0x01, 0x08, 0x00], &[1, 2]),
            (Format::Format24, &[1, 0], &[]),
            (Format::Format16, &[1], &[]),
        ] {
            assert_eq!(decoded(format, bytes), expected, "{format:?} {bytes:?}");
        }
    }

    #[test]
    fn bytes_that_arrive_one_by_one_are_decoded_as_well() {
        struct Slow<'a>(&'a [u8]);
        impl Read for Slow<'_> {
            fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
                let len = bytes.len().min(1);
                self.0.read(&mut bytes[..len])
            }
        }
        let mut reader = Slow(&[0x02, 0x28, 0xfe, 0x0f]);
        let mut samples = RawSamples::new(&mut reader, Format::Format310);
        assert_eq!([(); 4].map(|()| samples.next().unwrap()), [Some(1), Some(-1), Some(37), None]);
    }
}
