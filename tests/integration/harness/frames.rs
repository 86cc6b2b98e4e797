//! Native frames written and read by the offsets of PROTOCOL.md, independently of the code under test.

/// A frame that a test may break at will.
#[derive(Clone, Debug)]
pub struct Raw {
    /// The field; `None`: the correct value.
    pub frame_len: Option<u32>,
    /// The field.
    pub magic: u16,
    /// The field.
    pub version: u8,
    /// The field.
    pub flags: u8,
    /// The field.
    pub kind: u16,
    /// The field; `None`: the record's length.
    pub stride: Option<u16>,
    /// The field; `None`: the payload's length.
    pub payload_len: Option<u32>,
    /// After the header.
    pub record: Vec<u8>,
    /// After the record.
    pub payload: Vec<u8>,
}

pub const HELLO: u16 = 1;
pub const SUBSCRIBE: u16 = 2;
pub const UNSUBSCRIBE: u16 = 3;
pub const PUBLISH: u16 = 4;
pub const PING: u16 = 5;
pub const UPDATE: u16 = 6;
pub const RESUME: u16 = 7;
pub const WELCOME: u16 = 64;
pub const SUBSCRIBED: u16 = 65;
pub const UNSUBSCRIBED: u16 = 66;
pub const TICK: u16 = 67;
pub const PONG: u16 = 68;
pub const ERROR: u16 = 69;
pub const CLOSING: u16 = 70;
pub const CONFLATED: u16 = 71;
pub const GAP: u16 = 72;
pub const RECOVERED: u16 = 73;

/// The options of a SUBSCRIBE or UPDATE as they appear on the wire.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    pub from: u8,
    pub policy: u8,
    pub epoch: u64,
    pub sequence: u64,
    pub max_rate_millihertz: u32,
}

pub const FROM_LATEST: u8 = 1;
pub const FROM_PLACE: u8 = 2;
pub const FROM_RESUMES: u8 = 3;
pub const CONFLATE: u8 = 1;
pub const DROP: u8 = 2;
pub const DISCONNECT: u8 = 3;

impl Raw {
    /// A well-formed frame.
    pub fn new(kind: u16, record: &[u8], payload: &[u8]) -> Raw {
        Raw {
            frame_len: None,
            magic: 0x6374,
            version: 1,
            flags: 0,
            kind,
            stride: None,
            payload_len: None,
            record: record.to_vec(),
            payload: payload.to_vec(),
        }
    }

    /// HELLO, SUBSCRIBE and UNSUBSCRIBE: a request number and text.
    pub fn request(kind: u16, request: u32, text: &[u8]) -> Raw {
        Raw::new(kind, &[request.to_le_bytes(), [0; 4]].concat(), text)
    }

    /// SUBSCRIBE and UPDATE with their whole record.
    pub fn with_options(kind: u16, request: u32, pattern: &str, options: Options) -> Raw {
        let record = [
            &request.to_le_bytes()[..],
            &[options.from, options.policy, 0, 0],
            &options.epoch.to_le_bytes(),
            &options.sequence.to_le_bytes(),
            &options.max_rate_millihertz.to_le_bytes(),
            &[0; 4],
        ];
        Raw::new(kind, &record.concat(), pattern.as_bytes())
    }

    /// RESUME.
    pub fn resume(topic: &str, epoch: u64, sequence: u64) -> Raw {
        Raw::new(RESUME, &[epoch.to_le_bytes(), sequence.to_le_bytes()].concat(), topic.as_bytes())
    }

    /// PUBLISH with a key.
    pub fn publish_key(topic: &[u8], key: u64, payload: &[u8]) -> Raw {
        let mut frame = Raw::publish(0, topic, payload);
        frame.record.extend_from_slice(&key.to_le_bytes());
        frame
    }

    /// PUBLISH.
    pub fn publish(request: u32, topic: &[u8], payload: &[u8]) -> Raw {
        let record = [
            &7u64.to_le_bytes()[..],
            &[0; 8],
            &request.to_le_bytes(),
            &(topic.len() as u16).to_le_bytes(),
            &[0; 2],
        ];
        Raw::new(PUBLISH, &record.concat(), &[topic, payload].concat())
    }

    /// PING.
    pub fn ping(token: u64) -> Raw {
        Raw::new(PING, &token.to_le_bytes(), b"")
    }

    /// The bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let len = (32 + self.record.len() + self.payload.len()).next_multiple_of(16);
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(&self.frame_len.unwrap_or(len as u32).to_le_bytes());
        bytes.extend_from_slice(&self.magic.to_le_bytes());
        bytes.extend_from_slice(&[self.version, self.flags]);
        bytes.extend_from_slice(&self.kind.to_le_bytes());
        bytes.extend_from_slice(&self.stride.unwrap_or(self.record.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&self.payload_len.unwrap_or(self.payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&[0; 16]);
        bytes.extend_from_slice(&self.record);
        bytes.extend_from_slice(&self.payload);
        bytes.resize(len, 0);
        bytes
    }
}

/// A frame from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub kind: u16,
    pub flags: u8,
    pub sequence: u64,
    pub topic_id: u32,
    pub record: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Received {
    /// Takes the first frame off `bytes`, which must follow PROTOCOL.md; `None` while it is incomplete.
    pub fn take(bytes: &mut Vec<u8>) -> Option<Received> {
        if bytes.len() < 32 {
            return None;
        }
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let (len, stride, payload_len) = (u32_at(0) as usize, usize::from(u16_at(10)), u32_at(12) as usize);
        assert_eq!((u16_at(4), bytes[6]), (0x6374, 1), "magic and version");
        assert_eq!(len, (32 + stride + payload_len).next_multiple_of(16), "frame_len");
        if bytes.len() < len {
            return None;
        }
        let frame = Received {
            kind: u16_at(8),
            flags: bytes[7],
            sequence: u64::from_le_bytes(bytes[16..24].try_into().unwrap()),
            topic_id: u32_at(24),
            record: bytes[32..32 + stride].to_vec(),
            payload: bytes[32 + stride..32 + stride + payload_len].to_vec(),
        };
        assert!(bytes[32 + stride + payload_len..len].iter().all(|&byte| byte == 0), "padding");
        bytes.drain(..len);
        Some(frame)
    }

    /// The code of an ERROR or CLOSING.
    pub fn code(&self) -> u16 {
        assert!([ERROR, CLOSING].contains(&self.kind), "{self:?}");
        u16::from_le_bytes(self.record[4..6].try_into().unwrap())
    }

    /// The request a reply answers.
    pub fn request(&self) -> u32 {
        let at = match self.kind {
            WELCOME => 16,
            SUBSCRIBED => 8,
            UNSUBSCRIBED | ERROR => 0,
            _ => panic!("{self:?} answers no request"),
        };
        u32::from_le_bytes(self.record[at..at + 4].try_into().unwrap())
    }

    /// The range `[from, to)` of a CONFLATED or GAP.
    pub fn skipped(&self) -> (u64, u64) {
        assert!([CONFLATED, GAP].contains(&self.kind), "{self:?}");
        (self.u64_at(0), self.u64_at(8))
    }

    /// A number of the record.
    pub fn u64_at(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.record[at..at + 8].try_into().unwrap())
    }

    /// The token of a PONG.
    pub fn token(&self) -> u64 {
        assert_eq!(self.kind, PONG, "{self:?}");
        u64::from_le_bytes(self.record[..8].try_into().unwrap())
    }

    /// The payload as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).unwrap()
    }
}
