//! Socket.IO 5 in Engine.IO 4 over a WebSocket: tickcast's, or any server that answers the event `subscribe` and emits `tick`.
//!
//! ```text
//!  in:   0{..}    2    40{..}    43ID[ANSWER]    42["tick",{..,"data":PAYLOAD}]    42["tick",PAYLOAD]    44{..}    41
//!  out:  40    3    42ID["subscribe",PATTERN]
//! ```
//! tickcast's event has the payload as `data`; that of a peer is the payload itself.

use tickcast_proto::Step;
use tungstenite::Message;

use super::{
    FeedError,
    lines::find,
    peer::{Item, Protocol},
    websocket::WebSocket,
};

/// The event of a tick, up to its argument.
const TICK: &[u8] = b"42[\"tick\",";
/// How the payloads of `tickcast-feed` and the simulator begin.
const PAYLOAD: &[u8] = b"{\"at\":";
/// Precedes the payload in tickcast's event, which ends with it.
const DATA: &[u8] = b",\"data\":";
/// In the answer to a request that failed.
const ERROR: &[u8] = b"\"op\":\"error\"";

/// One connection.
#[derive(Debug)]
pub struct SocketIo {
    websocket: WebSocket,
    /// To subscribe to once connected; none afterwards.
    patterns: Box<[String]>,
}

impl SocketIo {
    /// Appends the upgrade request.
    pub fn open(host: &str, path: &str, patterns: &[String], output: &mut Vec<u8>) -> SocketIo {
        SocketIo { websocket: WebSocket::open(host, path, None, output), patterns: patterns.into() }
    }

    /// Reads a packet, which begins at `start` of the input.
    #[inline]
    fn packet(&mut self, packet: &[u8], start: usize, output: &mut Vec<u8>) -> Result<Item, FeedError> {
        if packet.starts_with(TICK) {
            let argument = &packet[TICK.len()..];
            let from = match argument.starts_with(PAYLOAD) {
                true => Some(TICK.len()),
                false => find(argument, DATA).map(|at| TICK.len() + at + DATA.len()),
            };
            let end = if argument.starts_with(PAYLOAD) { b"]".len() } else { b"}]".len() };
            return match from {
                Some(from) if from + end <= packet.len() => {
                    Ok(Item::Payload(start + from..start + packet.len() - end))
                }
                _ => Err(FeedError::Protocol("a tick without data")),
            };
        }
        let refused = |text: &[u8]| Err(FeedError::Refused(String::from_utf8_lossy(text).into_owned()));
        match packet {
            [b'2'] => self.send("3".into(), output),
            [b'0', ..] => self.send("40".into(), output),
            [b'4', b'0', ..] => {
                for (id, pattern) in std::mem::take(&mut self.patterns).iter().enumerate() {
                    let pattern = serde_json::Value::from(pattern.as_str());
                    self.send(format!("42{id}[\"subscribe\",{pattern}]"), output);
                }
            }
            [b'4', b'3', answer @ ..] if find(answer, ERROR).is_some() => return refused(answer),
            [b'4', b'3', ..] => return Ok(Item::Acknowledged),
            [b'4', b'4', why @ ..] => return refused(why),
            [b'1'] | [b'4', b'1', ..] => return refused(b"it disconnected"),
            _ if packet.starts_with(b"42[\"closing\",") => return refused(packet),
            [b'4' | b'6', ..] => {}
            _ => return Err(FeedError::Protocol("a packet that is not Engine.IO")),
        }
        Ok(Item::Nothing)
    }

    fn send(&mut self, text: String, output: &mut Vec<u8>) {
        self.websocket.send(Message::text(text), output);
    }
}

impl Protocol for SocketIo {
    #[inline]
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<Step<Item>, FeedError> {
        Ok(match self.websocket.step(input, output)? {
            Step::Complete(used, Item::Payload(range)) => {
                Step::Complete(used, self.packet(&input[range.clone()], range.start, output)?)
            }
            // Subscriptions are acknowledged by answers, not by the pong.
            Step::Complete(used, _) => Step::Complete(used, Item::Nothing),
            Step::Partial => Step::Partial,
        })
    }
}
