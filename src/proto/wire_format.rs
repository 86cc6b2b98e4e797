//! The supported pairs of codec and framing.

use crate::{codec::Codec, features::Features, framing::Framing};

/// Wire format of a session: a codec and a framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WireFormat {
    /// Encodes the messages.
    pub codec: Codec,
    /// Delimits the messages.
    pub framing: Framing,
}

/// A supported pair and its names.
struct Supported {
    format: WireFormat,
    /// Short name, for options and metrics.
    name: &'static str,
    /// WebSocket subprotocol that selects it.
    subprotocol: Option<&'static str>,
}

/// One row per pair in [`WireFormat::ALL`], in the same order, then one per pair in [`WireFormat::ONE_WAY`], then
/// [`WireFormat::SOCKET_IO`].
const SUPPORTED: [Supported; WireFormat::ALL.len() + WireFormat::ONE_WAY.len() + 1] = [
    Supported { format: WireFormat::TCP_NATIVE, name: "native", subprotocol: None },
    Supported { format: WireFormat::WEBSOCKET_NATIVE, name: "rkyv", subprotocol: Some("tickcast.v1.rkyv") },
    Supported { format: WireFormat::WEBSOCKET_JSON, name: "json", subprotocol: Some("tickcast.v1.json") },
    Supported { format: WireFormat::WEBSOCKET_RAW, name: "raw", subprotocol: Some("tickcast.v1.raw") },
    Supported {
        format: WireFormat::WEBSOCKET_PROTOBUF,
        name: "protobuf",
        subprotocol: Some("tickcast.v1.protobuf"),
    },
    Supported { format: WireFormat::EVENTS_JSON, name: "sse", subprotocol: None },
    Supported { format: WireFormat::LINES_JSON, name: "ndjson", subprotocol: None },
    Supported { format: WireFormat::SOCKET_IO, name: "socketio", subprotocol: None },
];

impl WireFormat {
    /// Native frames over TCP.
    pub const TCP_NATIVE: WireFormat = WireFormat { codec: Codec::Native, framing: Framing::Tcp };
    /// `tickcast.v1.rkyv`: native frames in binary WebSocket messages.
    pub const WEBSOCKET_NATIVE: WireFormat = WireFormat { codec: Codec::Native, framing: Framing::WebSocket };
    /// `tickcast.v1.json`: JSON objects in WebSocket text messages.
    pub const WEBSOCKET_JSON: WireFormat = WireFormat { codec: Codec::Json, framing: Framing::WebSocket };
    /// `tickcast.v1.raw`: tick payloads in binary WebSocket messages.
    pub const WEBSOCKET_RAW: WireFormat = WireFormat { codec: Codec::Raw, framing: Framing::WebSocket };
    /// `tickcast.v1.protobuf`: messages of `tickcast.proto` in binary WebSocket messages.
    pub const WEBSOCKET_PROTOBUF: WireFormat =
        WireFormat { codec: Codec::Protobuf, framing: Framing::WebSocket };

    /// JSON objects as Server-Sent Events.
    pub const EVENTS_JSON: WireFormat = WireFormat { codec: Codec::Json, framing: Framing::EventStream };
    /// JSON objects as lines.
    pub const LINES_JSON: WireFormat = WireFormat { codec: Codec::Json, framing: Framing::Lines };

    /// Socket.IO packets in Engine.IO packets, of `/socket.io/`.
    pub const SOCKET_IO: WireFormat = WireFormat { codec: Codec::SocketIo, framing: Framing::EngineIo };

    /// All supported pairs that a client selects by port or subprotocol.
    pub const ALL: [WireFormat; 5] = [
        Self::TCP_NATIVE,
        Self::WEBSOCKET_NATIVE,
        Self::WEBSOCKET_JSON,
        Self::WEBSOCKET_RAW,
        Self::WEBSOCKET_PROTOBUF,
    ];

    /// The supported pairs of `/sse`, which clients only read.
    pub const ONE_WAY: [WireFormat; 2] = [Self::EVENTS_JSON, Self::LINES_JSON];

    /// Number of possible pairs: the length of arrays indexed by [`WireFormat::index`].
    pub const PAIRS: usize = Codec::COUNT * Framing::COUNT;

    /// Index among all possible pairs, below [`WireFormat::PAIRS`].
    #[inline]
    pub const fn index(self) -> usize {
        self.framing as usize * Codec::COUNT + self.codec as usize
    }

    /// Short name: `native`, `rkyv`, `json`, `raw`, `protobuf`, `sse`, `ndjson` or `socketio`.
    pub fn name(self) -> &'static str {
        self.supported().map_or("unsupported", |supported| supported.name)
    }

    /// Name of the WebSocket subprotocol; `None` for pairs that are not selected by one.
    pub fn subprotocol(self) -> Option<&'static str> {
        self.supported()?.subprotocol
    }

    /// The pair that a WebSocket subprotocol selects.
    pub fn from_subprotocol(name: &str) -> Option<WireFormat> {
        let known = SUPPORTED.iter().find(|supported| supported.subprotocol == Some(name));
        known.map(|supported| supported.format)
    }

    /// Names of all WebSocket subprotocols.
    pub fn subprotocols() -> impl Iterator<Item = &'static str> {
        SUPPORTED.iter().filter_map(|supported| supported.subprotocol)
    }

    /// The pair of a client that selected this one and was granted these features in its hello.
    pub const fn with(self, features: Features) -> WireFormat {
        let framing = match self.codec {
            // Nothing separates the payloads of one message.
            Codec::Raw => self.framing,
            _ => self.framing.with(features),
        };
        WireFormat { codec: self.codec.with(features), framing }
    }

    /// The pair of the same messages, which may be compressed.
    pub const fn deflated(self) -> WireFormat {
        WireFormat { codec: self.codec, framing: self.framing.deflated() }
    }

    /// The features that are part of the pair.
    pub fn features(self) -> Features {
        match self.framing {
            Framing::WebSocketBatch | Framing::WebSocketBatchDeflate => {
                self.codec.features().union(Features::BATCHES)
            }
            _ => self.codec.features(),
        }
    }

    fn supported(self) -> Option<&'static Supported> {
        let plain = WireFormat { codec: self.codec, framing: self.framing.plain() };
        let selected = plain.with(Features::NONE);
        SUPPORTED.iter().find(|supported| supported.format == selected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_supported_pair_has_a_row_and_unique_index_and_names() {
        let all = [&WireFormat::ALL[..], &WireFormat::ONE_WAY, &[WireFormat::SOCKET_IO]].concat();
        for (at, &format) in all.iter().enumerate() {
            assert_eq!(SUPPORTED[at].format, format);
            assert!(format.index() < WireFormat::PAIRS);
            assert_eq!(format.subprotocol().is_some(), format.framing == Framing::WebSocket);
            assert!(
                format.subprotocol().is_none_or(|name| WireFormat::from_subprotocol(name) == Some(format))
            );
            for other in &all[..at] {
                assert!(other.index() != format.index() && other.name() != format.name());
            }
        }
        assert_eq!(WireFormat::from_subprotocol("tickcast.v1.none"), None);
    }

    #[test]
    fn only_websockets_with_delimited_messages_have_batches_and_all_keep_their_names() {
        for format in [&WireFormat::ALL[..], &WireFormat::ONE_WAY].concat() {
            let batched = format.with(Features::BATCHES);
            let has_batches =
                [WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON, WireFormat::WEBSOCKET_PROTOBUF]
                    .contains(&format);
            assert_eq!(batched.features(), if has_batches { Features::BATCHES } else { Features::NONE });
            assert_eq!((batched.name(), batched.subprotocol()), (format.name(), format.subprotocol()));
            assert_eq!(batched.with(Features::NONE), format);
            let deflated = format.deflated();
            assert_eq!((deflated.name(), deflated.subprotocol()), (format.name(), format.subprotocol()));
            assert_eq!(deflated.with(Features::BATCHES), batched.deflated());
        }
    }
}
