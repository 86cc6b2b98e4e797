//! The pairs of codec and framing that clients can choose between.

use crate::{codec::Codec, framing::Framing};

/// How a session's messages look on the wire: what encodes them, and what delimits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WireFormat {
    /// What encodes them.
    pub codec: Codec,
    /// What delimits them.
    pub framing: Framing,
}

/// A supported pair.
struct Supported {
    format: WireFormat,
    /// The short name.
    name: &'static str,
    /// The WebSocket subprotocol that asks for it.
    subprotocol: Option<&'static str>,
}

/// One row for each pair in [`WireFormat::ALL`], in the same order.
const SUPPORTED: [Supported; WireFormat::ALL.len()] = [
    Supported { format: WireFormat::TCP_NATIVE, name: "native", subprotocol: None },
    Supported { format: WireFormat::WEBSOCKET_NATIVE, name: "rkyv", subprotocol: Some("tickcast.v1.rkyv") },
    Supported { format: WireFormat::WEBSOCKET_JSON, name: "json", subprotocol: Some("tickcast.v1.json") },
    Supported { format: WireFormat::WEBSOCKET_RAW, name: "raw", subprotocol: Some("tickcast.v1.raw") },
];

impl WireFormat {
    /// Native frames over TCP.
    pub const TCP_NATIVE: WireFormat = WireFormat { codec: Codec::Native, framing: Framing::Tcp };
    /// `tickcast.v1.rkyv`: native frames in binary WebSocket messages.
    pub const WEBSOCKET_NATIVE: WireFormat = WireFormat { codec: Codec::Native, framing: Framing::WebSocket };
    /// `tickcast.v1.json`: JSON objects in WebSocket text messages.
    pub const WEBSOCKET_JSON: WireFormat = WireFormat { codec: Codec::Json, framing: Framing::WebSocket };
    /// `tickcast.v1.raw`: a tick's payload alone in a binary WebSocket message.
    pub const WEBSOCKET_RAW: WireFormat = WireFormat { codec: Codec::Raw, framing: Framing::WebSocket };

    /// The supported pairs.
    pub const ALL: [WireFormat; 4] =
        [Self::TCP_NATIVE, Self::WEBSOCKET_NATIVE, Self::WEBSOCKET_JSON, Self::WEBSOCKET_RAW];

    /// Number of pairs there could be: the length of arrays indexed by [`WireFormat::index`].
    pub const PAIRS: usize = Codec::COUNT * Framing::COUNT;

    /// The pair's place among all there could be, below [`WireFormat::PAIRS`].
    #[inline]
    pub const fn index(self) -> usize {
        self.framing as usize * Codec::COUNT + self.codec as usize
    }

    /// The short name: `native`, `rkyv`, `json` or `raw`.
    pub fn name(self) -> &'static str {
        self.supported().map_or("unsupported", |supported| supported.name)
    }

    /// The name of the WebSocket subprotocol; `None` for a pair that is no WebSocket.
    pub fn subprotocol(self) -> Option<&'static str> {
        self.supported()?.subprotocol
    }

    /// The pair that a WebSocket subprotocol asks for.
    pub fn of_subprotocol(name: &str) -> Option<WireFormat> {
        let known = SUPPORTED.iter().find(|supported| supported.subprotocol == Some(name));
        known.map(|supported| supported.format)
    }

    /// The names of all WebSocket subprotocols.
    pub fn subprotocols() -> impl Iterator<Item = &'static str> {
        SUPPORTED.iter().filter_map(|supported| supported.subprotocol)
    }

    fn supported(self) -> Option<&'static Supported> {
        SUPPORTED.iter().find(|supported| supported.format == self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_supported_pair_has_a_row_an_index_and_names_of_its_own() {
        for (at, format) in WireFormat::ALL.into_iter().enumerate() {
            assert_eq!(SUPPORTED[at].format, format);
            assert!(format.index() < WireFormat::PAIRS);
            assert_eq!(format.subprotocol().is_some(), format.framing != Framing::Tcp);
            assert!(format.subprotocol().is_none_or(|name| WireFormat::of_subprotocol(name) == Some(format)));
            for other in &WireFormat::ALL[..at] {
                assert!(other.index() != format.index() && other.name() != format.name());
            }
        }
        assert_eq!(WireFormat::of_subprotocol("tickcast.v1.none"), None);
    }
}
