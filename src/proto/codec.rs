//! Codecs: how messages are encoded, independent of framing and transport.
//!
//! ```text
//!  to a client:    tick, announcement, reply --Codec--> message body --Framing--> bytes
//!  from a client:  bytes --framing::Decoder--> Message --Codec--> Requests, each a Command
//! ```

pub mod json;
pub mod native;
pub mod protobuf;
pub mod socket_io;

pub use tungstenite::Bytes;
use tungstenite::Utf8Bytes;

use crate::{
    DecodeError, WireFormat, command::Command, features::Features, frame::Frame, ids::TopicId, logged,
    reply::Reply,
};

/// Encodes a session's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// Native frames.
    Native = 0,
    /// JSON objects.
    Json = 1,
    /// The server sends tick payloads and nothing else. Requests are JSON objects or native frames.
    Raw = 2,
    /// Native frames whose ticks have `previous`: [`Features::PREVIOUS`](crate::features::Features).
    NativeLinked = 3,
    /// JSON objects whose ticks have `prev`.
    JsonLinked = 4,
    /// Socket.IO packets, whose events have JSON objects like those of [`Codec::JsonLinked`].
    SocketIo = 5,
    /// Messages of `tickcast.proto`.
    Protobuf = 6,
    /// Messages of `tickcast.proto`, whose ticks have `previous`.
    ProtobufLinked = 7,
}

/// Text or binary, for framings that distinguish them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageType {
    /// UTF-8.
    Text,
    /// Any bytes.
    Binary,
}

/// A complete message from a peer.
#[derive(Clone, Debug)]
pub enum Message<'a> {
    /// A native frame with a validated header.
    Frame(Frame<'a>),
    /// Text, validated as UTF-8.
    Text(Utf8Bytes),
    /// Binary data.
    Binary(Bytes),
}

/// A topic as encoders need it.
#[derive(Debug)]
pub struct TopicInfo {
    /// Id on the wire.
    pub id: TopicId,
    /// Epoch of its sequences.
    pub epoch: u64,
    /// Name.
    pub name: Box<str>,
    /// Whether its ticks may be compressed.
    pub compresses: bool,
    /// How each of its ticks begins in JSON.
    json_prefix: Box<[u8]>,
}

impl TopicInfo {
    /// Describes a topic, and encodes the part that all of its ticks share.
    pub fn new(id: TopicId, epoch: u64, name: &str) -> TopicInfo {
        let json_prefix = json::tick_prefix(name).into();
        TopicInfo { id, epoch, name: name.into(), compresses: false, json_prefix }
    }

    /// Appends its announcement as a complete message, or nothing if the codec has no announcements.
    pub fn encode(&self, format: WireFormat, out: &mut Vec<u8>) {
        let WireFormat { codec, framing } = format;
        framing.write_with(codec.message_type(), out, |body| codec.encode_topic(self, body));
    }
}

impl Codec {
    /// Number of codecs.
    pub const COUNT: usize = 8;

    /// The codec that encodes the same messages with these features.
    pub const fn with(self, features: Features) -> Codec {
        let has_previous = features.contains(Features::PREVIOUS);
        match self {
            Codec::Native | Codec::NativeLinked if has_previous => Codec::NativeLinked,
            Codec::Native | Codec::NativeLinked => Codec::Native,
            Codec::Raw => Codec::Raw,
            Codec::SocketIo => Codec::SocketIo,
            Codec::Json | Codec::JsonLinked if has_previous => Codec::JsonLinked,
            Codec::Json | Codec::JsonLinked => Codec::Json,
            Codec::Protobuf | Codec::ProtobufLinked if has_previous => Codec::ProtobufLinked,
            Codec::Protobuf | Codec::ProtobufLinked => Codec::Protobuf,
        }
    }

    /// The features that are part of the encoding.
    pub const fn features(self) -> Features {
        match self {
            // Events of Socket.IO have all features of the encoding: none is asked for.
            Codec::Native | Codec::Json | Codec::Raw | Codec::SocketIo | Codec::Protobuf => Features::NONE,
            Codec::NativeLinked | Codec::JsonLinked | Codec::ProtobufLinked => Features::PREVIOUS,
        }
    }

    const fn is_json(self) -> bool {
        matches!(self, Codec::Json | Codec::JsonLinked)
    }

    const fn is_protobuf(self) -> bool {
        matches!(self, Codec::Protobuf | Codec::ProtobufLinked)
    }

    /// Type of the messages that the server sends.
    pub fn message_type(self) -> MessageType {
        if self.is_json() || self == Codec::SocketIo { MessageType::Text } else { MessageType::Binary }
    }

    /// Whether the server answers requests. If not, a request that fails closes its session.
    pub fn has_replies(self) -> bool {
        self != Codec::Raw
    }

    /// Encodes a tick as a message body.
    ///
    /// Returns a slice of the tick's frame if that contains the body. Otherwise overwrites and returns `scratch`;
    /// allocates only to grow it.
    #[inline]
    pub fn encode_tick<'a>(self, tick: &Frame<'a>, topic: &TopicInfo, scratch: &'a mut Vec<u8>) -> &'a [u8] {
        match self {
            Codec::Native if tick.is_linked() => {
                scratch.clear();
                logged::encode_unlinked(scratch, tick);
                scratch
            }
            Codec::Native | Codec::NativeLinked => tick.bytes,
            Codec::Raw => tick.payload(),
            Codec::Json | Codec::JsonLinked => {
                scratch.clear();
                json::encode_frame(scratch, &topic.json_prefix, tick, self.features());
                scratch
            }
            Codec::SocketIo => {
                scratch.clear();
                socket_io::encode_frame(scratch, &topic.json_prefix, tick);
                scratch
            }
            Codec::Protobuf | Codec::ProtobufLinked => {
                scratch.clear();
                protobuf::encode_frame(scratch, &topic.name, tick, self.features());
                scratch
            }
        }
    }

    /// Appends a topic's announcement as a message body, or nothing if the codec has no announcements.
    pub fn encode_topic(self, topic: &TopicInfo, out: &mut Vec<u8>) {
        let TopicInfo { id, epoch, ref name, .. } = *topic;
        match self {
            Codec::Native | Codec::NativeLinked => crate::frame::encode_topic(out, id, epoch, name),
            Codec::Raw => {}
            Codec::SocketIo => socket_io::encode_event(out, |out| json::encode_topic(out, id, epoch, name)),
            Codec::Protobuf | Codec::ProtobufLinked => protobuf::encode_topic(out, id, epoch, name),
            _ => json::encode_topic(out, id, epoch, name),
        }
    }

    /// Appends a reply as a message body, or nothing if the codec has no replies.
    pub fn encode_reply(self, reply: &Reply<'_>, out: &mut Vec<u8>) {
        match self {
            Codec::Native | Codec::NativeLinked => native::encode_reply(reply, out),
            Codec::Raw => {}
            Codec::SocketIo => socket_io::encode_reply(reply, out),
            Codec::Protobuf | Codec::ProtobufLinked => protobuf::encode_reply(reply, out),
            _ => json::encode_reply(reply, out),
        }
    }

    /// Decodes a message into its requests, in order.
    ///
    /// # Errors
    /// [`DecodeError::WrongMessageType`] for a text message if the codec requires binary ones, or the reverse. Packets of
    /// [`Codec::SocketIo`] are decoded by [`socket_io`], because some are about the connection.
    #[inline]
    pub fn decode<'a>(
        self,
        message: &'a Message<'_>,
        frame_bytes_max: usize,
    ) -> Result<Requests<'a>, DecodeError> {
        let remaining = match (message, self) {
            (Message::Frame(frame), _) => Remaining::Frame(*frame),
            (Message::Text(_) | Message::Binary(_), Codec::SocketIo) => {
                return Err(DecodeError::SocketIo("its packets are decoded one by one"));
            }
            (Message::Text(text), codec) if codec.is_json() || codec == Codec::Raw => Remaining::Json(text),
            (Message::Text(_), codec) if codec.is_protobuf() => {
                return Err(DecodeError::WrongMessageType("tickcast.v1.protobuf requires binary messages"));
            }
            (Message::Text(_), _) => {
                return Err(DecodeError::WrongMessageType("tickcast.v1.rkyv requires binary messages"));
            }
            (Message::Binary(_), codec) if codec.is_json() => {
                return Err(DecodeError::WrongMessageType("tickcast.v1.json requires text messages"));
            }
            (Message::Binary(request), codec) if codec.is_protobuf() => Remaining::Protobuf(request),
            (Message::Binary(frames), _) => Remaining::Frames(frames),
        };
        Ok(Requests { remaining, frame_bytes_max })
    }
}

/// Iterator over the requests of one message, returned by [`Codec::decode`].
#[derive(Debug)]
pub struct Requests<'a> {
    remaining: Remaining<'a>,
    frame_bytes_max: usize,
}

/// The part of a message that is not decoded yet.
#[derive(Debug)]
enum Remaining<'a> {
    Nothing,
    Frame(Frame<'a>),
    /// Concatenated frames.
    Frames(&'a [u8]),
    /// One JSON object.
    Json(&'a str),
    /// One protobuf message.
    Protobuf(&'a [u8]),
}

/// Why a request cannot be decoded.
#[derive(Debug, PartialEq, Eq)]
pub enum RequestDecodeError {
    /// The session cannot continue.
    Fatal(DecodeError),
    /// Only the request fails.
    Invalid(json::InvalidRequest),
}

impl<'a> Requests<'a> {
    /// The frames not decoded yet, which form a binary message. A session that must wait can decode it later.
    pub fn remaining_frames(&self) -> &'a [u8] {
        match self.remaining {
            Remaining::Frames(frames) => frames,
            Remaining::Nothing | Remaining::Frame(_) | Remaining::Json(_) | Remaining::Protobuf(_) => &[],
        }
    }
}

impl<'a> Iterator for Requests<'a> {
    type Item = Result<Command<'a>, RequestDecodeError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match std::mem::replace(&mut self.remaining, Remaining::Nothing) {
            Remaining::Nothing | Remaining::Frames([]) => None,
            Remaining::Frame(frame) => Some(Command::from_frame(&frame).map_err(RequestDecodeError::Fatal)),
            Remaining::Frames(frames) => {
                let next = native::decode_next(frames, self.frame_bytes_max);
                Some(next.map_err(RequestDecodeError::Fatal).map(|(command, rest)| {
                    self.remaining = Remaining::Frames(rest);
                    command
                }))
            }
            Remaining::Json(text) => Some(json::decode(text).map_err(RequestDecodeError::Invalid)),
            Remaining::Protobuf(request) => {
                Some(protobuf::decode(request).map_err(RequestDecodeError::Invalid))
            }
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

    const ALL: [Codec; Codec::COUNT] = [
        Codec::Native,
        Codec::Json,
        Codec::Raw,
        Codec::NativeLinked,
        Codec::JsonLinked,
        Codec::SocketIo,
        Codec::Protobuf,
        Codec::ProtobufLinked,
    ];

    fn subscribes() -> Vec<u8> {
        let mut frames = Vec::new();
        ["a", "b"].iter().for_each(|pattern| encode_request(&mut frames, Kind::Subscribe, 1, pattern));
        frames
    }

    #[test]
    fn binary_message_holds_several_requests_and_the_remaining_ones_decode_later() {
        let message = Message::Binary(subscribes().into());
        for codec in [Codec::Native, Codec::Raw] {
            let mut requests = codec.decode(&message, 1 << 10).unwrap();
            assert!(matches!(requests.next(), Some(Ok(Command::Subscribe { .. }))));
            let rest = Message::Binary(requests.remaining_frames().to_vec().into());
            assert_eq!(codec.decode(&rest, 1 << 10).unwrap().count(), 1);
            assert_eq!(requests.count(), 1);
        }
    }

    #[test]
    fn binary_message_cut_within_a_frame_fails_at_that_frame() {
        let mut frames = subscribes();
        frames.truncate(frames.len() - 1);
        let message = Message::Binary(frames.into());
        let mut requests = Codec::Native.decode(&message, 1 << 10).unwrap();
        assert!(requests.next().unwrap().is_ok());
        let Some(Err(RequestDecodeError::Fatal(DecodeError::BadLength(_)))) = requests.next() else {
            panic!("not rejected")
        };
        assert!(requests.next().is_none());
    }

    #[test]
    fn message_of_the_wrong_type_is_rejected() {
        let (text, binary) = (Message::Text("{\"op\":\"ping\"}".into()), Message::Binary(Bytes::new()));
        let taken = |codec: Codec| [&text, &binary].map(|message| codec.decode(message, 1 << 10).is_ok());
        let (native, json, raw) = ([false, true], [true, false], [true, true]);
        let expected = [native, json, raw, native, json, [false; 2], native, native];
        assert_eq!(ALL.map(taken), expected);
    }

    #[test]
    fn a_codec_with_its_own_features_is_itself_and_without_them_the_plain_one() {
        for (at, codec) in ALL.into_iter().enumerate() {
            assert_eq!(codec as usize, at);
            assert_eq!(codec.with(codec.features()), codec);
            let plain = codec.with(Features::NONE);
            assert_eq!((plain.features(), plain.message_type()), (Features::NONE, codec.message_type()));
            assert_eq!(plain.with(codec.features()), codec);
        }
    }

    #[test]
    fn tick_is_copied_only_by_codecs_that_transform_it() {
        let topic = TopicInfo::new(TopicId(5), 1, "a.b");
        let mut frame = Vec::new();
        let tick = frame::TickParts { times: TickTimes::default(), payload: b"{}", ..Default::default() };
        frame::encode_tick(&mut frame, topic.id, crate::ids::Sequence(3), &tick);
        let Ok(crate::Step::Complete(_, tick)) = frame::decode(&frame, 1 << 10) else { panic!("not a tick") };
        let mut scratch = b"stale".to_vec();
        assert_eq!(Codec::Native.encode_tick(&tick, &topic, &mut scratch).as_ptr(), frame.as_ptr());
        assert_eq!(Codec::Raw.encode_tick(&tick, &topic, &mut scratch), b"{}");
        assert_eq!(scratch, b"stale");
        let json = br#"{"topic":"a.b","seq":3,"ts":0,"encoding":"base64","data":"e30="}"#;
        assert_eq!(Codec::Json.encode_tick(&tick, &topic, &mut scratch), json);
    }
}
