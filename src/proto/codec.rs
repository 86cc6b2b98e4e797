//! How a message is encoded, whatever delimits and carries it.
//!
//! ```text
//!  to a client:    tick, announcement, reply --Codec--> message body --Framing--> bytes
//!  from a client:  bytes --framing::Decoder--> Message --Codec--> Requests, each a Command
//! ```

pub mod json;
pub mod native;

use tungstenite::{Bytes, Utf8Bytes};

use crate::{DecodeError, WireFormat, command::Command, frame::Frame, ids::TopicId, reply::Reply};

/// What encodes a session's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// Native frames.
    Native = 0,
    /// JSON objects.
    Json = 1,
    /// A tick's payload alone; the server sends nothing else. Requests are JSON or native frames.
    Raw = 2,
}

/// Whether a message is text or binary, for framings that tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageType {
    /// UTF-8.
    Text,
    /// Any bytes.
    Binary,
}

/// One whole message from a peer.
#[derive(Clone, Debug)]
pub enum Message<'a> {
    /// A native frame, its header checked.
    Frame(Frame<'a>),
    /// Text, its UTF-8 checked.
    Text(Utf8Bytes),
    /// Bytes.
    Binary(Bytes),
}

/// A topic, as its announcement and its ticks are encoded from.
#[derive(Debug)]
pub struct TopicInfo {
    /// Its number.
    pub id: TopicId,
    /// The life of the log that counts its ticks.
    pub epoch: u64,
    /// Its name.
    pub name: Box<str>,
    json_prefix: Box<[u8]>,
}

impl TopicInfo {
    /// A topic. Encodes once what every tick of it repeats.
    pub fn new(id: TopicId, epoch: u64, name: &str) -> TopicInfo {
        TopicInfo { id, epoch, name: name.into(), json_prefix: json::tick_prefix(name).into() }
    }

    /// Appends its announcement, as a whole message; nothing where the codec has none.
    pub fn encode(&self, format: WireFormat, out: &mut Vec<u8>) {
        let WireFormat { codec, framing } = format;
        framing.write_with(codec.message_type(), out, |body| codec.encode_topic(self, body));
    }
}

impl Codec {
    /// Number of codecs.
    pub const COUNT: usize = 3;

    /// The type of the messages that the server sends.
    pub fn message_type(self) -> MessageType {
        match self {
            Codec::Native | Codec::Raw => MessageType::Binary,
            Codec::Json => MessageType::Text,
        }
    }

    /// Whether requests are answered; where they are not, a request that fails ends its session.
    pub fn has_replies(self) -> bool {
        self != Codec::Raw
    }

    /// Encodes a tick: the body of one message. No copy where the tick's own frame has the bytes; else they are written
    /// to `scratch`, whatever it held. No allocation once `scratch` has grown.
    #[inline]
    pub fn encode_tick<'a>(self, tick: &Frame<'a>, topic: &TopicInfo, scratch: &'a mut Vec<u8>) -> &'a [u8] {
        match self {
            Codec::Native => tick.bytes,
            Codec::Raw => tick.payload(),
            Codec::Json => {
                scratch.clear();
                json::encode_frame(scratch, &topic.json_prefix, tick);
                scratch
            }
        }
    }

    /// Appends a topic's announcement: the body of one message, or nothing.
    pub fn encode_topic(self, topic: &TopicInfo, out: &mut Vec<u8>) {
        let TopicInfo { id, epoch, ref name, .. } = *topic;
        match self {
            Codec::Native => crate::frame::encode_topic(out, id, epoch, name),
            Codec::Json => json::encode_topic(out, id, epoch, name),
            Codec::Raw => {}
        }
    }

    /// Appends a reply: the body of one message, or nothing.
    pub fn encode_reply(self, reply: &Reply<'_>, out: &mut Vec<u8>) {
        match self {
            Codec::Native => native::encode_reply(reply, out),
            Codec::Json => json::encode_reply(reply, out),
            Codec::Raw => {}
        }
    }

    /// Decodes a message: its requests, in order.
    ///
    /// # Errors
    /// [`DecodeError::WrongMessageType`] for text where the codec takes binary messages, and the other way round.
    #[inline]
    pub fn decode<'a>(
        self,
        message: &'a Message<'_>,
        frame_bytes_max: usize,
    ) -> Result<Requests<'a>, DecodeError> {
        let left = match (message, self) {
            (Message::Frame(frame), _) => Left::Frame(*frame),
            (Message::Text(_), Codec::Native) => {
                return Err(DecodeError::WrongMessageType("tickcast.v1.rkyv takes binary messages"));
            }
            (Message::Binary(_), Codec::Json) => {
                return Err(DecodeError::WrongMessageType("tickcast.v1.json takes text messages"));
            }
            (Message::Text(text), Codec::Json | Codec::Raw) => Left::Json(text),
            (Message::Binary(frames), Codec::Native | Codec::Raw) => Left::Frames(frames),
        };
        Ok(Requests { left, frame_bytes_max })
    }
}

/// The requests of one message, in order: what [`Codec::decode`] returns.
#[derive(Debug)]
pub struct Requests<'a> {
    left: Left<'a>,
    frame_bytes_max: usize,
}

/// What of the message is still to be decoded.
#[derive(Debug)]
enum Left<'a> {
    Nothing,
    Frame(Frame<'a>),
    /// Whole frames, one after the other.
    Frames(&'a [u8]),
    /// One JSON object.
    Json(&'a str),
}

/// Why a request could not be decoded.
#[derive(Debug, PartialEq, Eq)]
pub enum RequestFault {
    /// Its session cannot go on.
    Message(DecodeError),
    /// The request failed; the session lives on.
    Request(json::RequestError),
}

impl<'a> Requests<'a> {
    /// The frames not yet decoded: a binary message of their own, where the session has to wait before it goes on.
    pub fn frames_left(&self) -> &'a [u8] {
        match self.left {
            Left::Frames(frames) => frames,
            Left::Nothing | Left::Frame(_) | Left::Json(_) => &[],
        }
    }
}

impl<'a> Iterator for Requests<'a> {
    type Item = Result<Command<'a>, RequestFault>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match std::mem::replace(&mut self.left, Left::Nothing) {
            Left::Nothing | Left::Frames([]) => None,
            Left::Frame(frame) => Some(Command::from_frame(&frame).map_err(RequestFault::Message)),
            Left::Frames(frames) => {
                let next = native::decode_next(frames, self.frame_bytes_max);
                Some(next.map_err(RequestFault::Message).map(|(command, rest)| {
                    self.left = Left::Frames(rest);
                    command
                }))
            }
            Left::Json(text) => Some(json::decode(text).map_err(RequestFault::Request)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        command::encode_request,
        frame::{self, Kind},
        records::TickTimes,
    };

    const ALL: [Codec; Codec::COUNT] = [Codec::Native, Codec::Json, Codec::Raw];

    fn subscribes() -> Vec<u8> {
        let mut frames = Vec::new();
        ["a", "b"].iter().for_each(|pattern| encode_request(&mut frames, Kind::Subscribe, 1, pattern));
        frames
    }

    #[test]
    fn a_binary_message_may_hold_several_requests_and_its_rest_is_a_message_too() {
        let message = Message::Binary(subscribes().into());
        for codec in [Codec::Native, Codec::Raw] {
            let mut requests = codec.decode(&message, 1 << 10).unwrap();
            assert!(matches!(requests.next(), Some(Ok(Command::Subscribe { .. }))));
            let rest = Message::Binary(requests.frames_left().to_vec().into());
            assert_eq!(codec.decode(&rest, 1 << 10).unwrap().count(), 1);
            assert_eq!(requests.count(), 1);
        }
    }

    #[test]
    fn a_binary_message_that_ends_within_a_frame_is_refused_at_that_frame() {
        let mut frames = subscribes();
        frames.truncate(frames.len() - 1);
        let message = Message::Binary(frames.into());
        let mut requests = Codec::Native.decode(&message, 1 << 10).unwrap();
        assert!(requests.next().unwrap().is_ok());
        let Some(Err(RequestFault::Message(DecodeError::BadLength(_)))) = requests.next() else {
            panic!("refused")
        };
        assert!(requests.next().is_none());
    }

    #[test]
    fn messages_of_the_wrong_type_are_refused_where_the_codec_has_one() {
        let (text, binary) = (Message::Text("{\"op\":\"ping\"}".into()), Message::Binary(Bytes::new()));
        let taken = |codec: Codec| [&text, &binary].map(|message| codec.decode(message, 1 << 10).is_ok());
        assert_eq!(ALL.map(taken), [[false, true], [true, false], [true, true]]);
    }

    #[test]
    fn a_tick_is_copied_only_where_its_frame_does_not_have_the_bytes() {
        let topic = TopicInfo::new(TopicId(5), 1, "a.b");
        let mut frame = Vec::new();
        let tick = frame::TickParts { times: TickTimes::default(), payload: b"{}", ..Default::default() };
        frame::encode_tick(&mut frame, topic.id, crate::ids::Sequence(3), &tick);
        let Ok(crate::Step::Complete(_, tick)) = frame::decode(&frame, 1 << 10) else { panic!("a tick") };
        let mut scratch = b"of before".to_vec();
        assert_eq!(Codec::Native.encode_tick(&tick, &topic, &mut scratch).as_ptr(), frame.as_ptr());
        assert_eq!(Codec::Raw.encode_tick(&tick, &topic, &mut scratch), b"{}");
        assert_eq!(scratch, b"of before");
        let json = br#"{"topic":"a.b","seq":3,"ts":0,"encoding":"base64","data":"e30="}"#;
        assert_eq!(Codec::Json.encode_tick(&tick, &topic, &mut scratch), json);
    }
}
