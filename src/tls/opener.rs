//! Decrypts records that arrive in pieces.

use crate::record::{Outcome, RecordLayer};

/// The incomplete record of a connection. Usually empty and without memory.
#[derive(Debug, Default)]
pub struct Opener {
    /// At most one record of maximum length.
    partial: Vec<u8>,
}

impl Opener {
    /// Decrypts the records that `buffer`, the received bytes, completes. Leaves only their plaintext in it.
    ///
    /// Do not call it again after any [`Outcome`] but [`Outcome::Open`]. Cost in addition to [`RecordLayer::open`]: copies the
    /// incomplete record, if there is one.
    pub fn open(&mut self, records: &mut RecordLayer, buffer: &mut Vec<u8>) -> Outcome {
        let outcome = if self.partial.is_empty() {
            // Usually every record is complete, and the connection needs no buffer.
            let opened = records.open(buffer);
            self.partial = buffer[opened.used..].to_vec();
            buffer.truncate(opened.plaintext);
            opened.outcome
        } else {
            self.partial.extend_from_slice(buffer);
            let opened = records.open(&mut self.partial);
            buffer.clear();
            buffer.extend_from_slice(&self.partial[..opened.plaintext]);
            self.partial.drain(..opened.used);
            opened.outcome
        };
        if self.partial.is_empty() || outcome != Outcome::Open {
            self.partial = Vec::new();
        }
        outcome
    }

    /// Bytes of memory, including spare capacity.
    pub fn memory_bytes(&self) -> usize {
        self.partial.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn records_are_opened_wherever_they_are_cut_and_nothing_is_kept_between_them() {
        let [mut server, mut client] = testing::connect(&testing::configs());
        let mut opener = Opener::default();
        for step in [1, 2, 7, 30, 20_000, 1 << 20] {
            let (mut sent, mut plaintext, texts) =
                (Vec::new(), Vec::new(), ["first", &"second".repeat(9_000), "third"]);
            for text in texts {
                client.records.seal(text.as_bytes(), &mut sent);
            }
            for piece in sent.chunks(step) {
                let mut buffer = piece.to_vec();
                assert_eq!(opener.open(&mut server.records, &mut buffer), Outcome::Open);
                plaintext.extend(buffer);
                assert!(opener.memory_bytes() <= 64 << 10, "{step}");
            }
            assert!(plaintext == texts.concat().as_bytes(), "{step}");
            assert_eq!(opener.memory_bytes(), 0, "{step}");
        }
        let mut sent = Vec::new();
        client.records.seal(b"bye", &mut sent);
        client.records.close_notify(&mut sent);
        sent.extend_from_slice(b"what follows is not looked at");
        assert_eq!(opener.open(&mut server.records, &mut sent), Outcome::Closed);
        assert_eq!((&sent[..], opener.memory_bytes()), (&b"bye"[..], 0));
    }
}
