//! Socket.IO sessions: packets about the connection, and events, which are requests like those of other sessions.
//!
//! ```text
//!  101, 0{"sid":...}                        the session begins
//!  40{"token":...}   -> 40{"sid":...}       after the verdict on the token: the client may subscribe and publish
//!  420["subscribe","a"] -> 430[{...}]
//!  2                 <- 3                   the server pings at the interval that it promised, however active the client is
//!  42["closing",{...}], 41, close frame     the end; without 41 the client reconnects by itself
//! ```

use super::{Shard, timers::TimerKind};
use crate::{
    ids::SlotId,
    now::Now,
    principal::AuthRefusal,
    session::{
        CloseReason, Protocol,
        socket_io::{Carried, SocketIo, heartbeat_ms},
    },
};
use tickcast_proto::{
    DecodeError, ErrorCode,
    codec::{Message, MessageType, socket_io},
    command::Command,
    features::Features,
    framing::{
        Decoder, Framing,
        engine_io::{self, Open, Sid},
        websocket,
    },
    limits::{HTTP_BODY_BYTES_MAX, SOCKET_IO_BINARY_EVENT_BYTES_MAX},
};

/// Features of all sessions, whose clients cannot ask for any: everything that version 0.1 lacked.
const FEATURES: Features = Features::COUNTS
    .union(Features::REASONS)
    .union(Features::PUBLISHED)
    .union(Features::TOKENS)
    .union(Features::POSITIONS);

impl Shard {
    /// Begins a session after the response that opened its WebSocket.
    pub(super) fn begin_socket_io(&mut self, slot: SlotId, now: Now) {
        let decoder = Decoder::new(Framing::EngineIo);
        if let Some(packet) = self.begin_engine_io(slot, decoder, None, now) {
            let mut bytes = Vec::new();
            websocket::encode(&mut bytes, MessageType::Text, packet.as_bytes());
            self.push_bytes(slot, &bytes);
        }
    }

    /// Begins a session, and returns its first packet.
    pub(super) fn begin_engine_io(
        &mut self,
        slot: SlotId,
        decoder: Decoder,
        carried: Option<Box<Carried>>,
        now: Now,
    ) -> Option<String> {
        let (interval_ns, timeout_ns) = (self.limits.ping_interval_ns, self.limits.ping_timeout_ns);
        let message_bytes_max = self.limits.message_bytes_max();
        let session = self.sessions.open_mut(slot)?;
        let id = session.id;
        session.features = FEATURES;
        let mut state = SocketIo::new(decoder, interval_ns, now.low_ms());
        state.carried = carried;
        let is_polling = state.carried.is_some();
        let open = Open {
            sid: &Sid { shard: self.id.0, key: self.kept_places.kept_as(self.id, id).key }.to_string(),
            upgrades: if is_polling { &["websocket"] } else { &[] },
            ping_interval: state.ping_interval_ms,
            // The server notices a client that is gone earlier than the client a server that is late.
            ping_timeout: heartbeat_ms(timeout_ns.saturating_mul(2)),
            max_payload: if is_polling { HTTP_BODY_BYTES_MAX } else { message_bytes_max },
        };
        let packet = engine_io::open_packet(&open);
        session.protocol = Protocol::SocketIo(Box::new(state));
        // It must enter the namespace within the same deadline as any other handshake.
        let deadline_ns = now.monotonic_ns.saturating_add(self.limits.handshake_deadline_ns);
        self.set_timer(deadline_ns, TimerKind::Credentials, id);
        Some(packet)
    }

    /// Handles a message of a session.
    pub(super) fn socket_io(
        &mut self,
        slot: SlotId,
        message: &Message<'_>,
        now: Now,
    ) -> Result<(), DecodeError> {
        let Some(state) = self.socket_io_mut(slot) else { return Ok(()) };
        let (incomplete, is_connected) = (state.incomplete.take(), state.is_connected);
        let packet = match (message, incomplete) {
            (Message::Text(text), None) => engine_io::decode(text)?,
            (Message::Text(text), Some(event)) => match engine_io::decode(text)? {
                engine_io::Packet::Message(_) => {
                    return Err(DecodeError::SocketIo("an event came in place of an attachment"));
                }
                other => {
                    state.incomplete = Some(event);
                    other
                }
            },
            (Message::Binary(bytes), Some(text)) => {
                return match socket_io::decode(&text)? {
                    socket_io::Packet::Event(event) => self.socket_io_event(slot, &event, Some(bytes), now),
                    _ => Ok(()),
                };
            }
            (Message::Binary(_) | Message::Frame(_), _) => {
                return Err(DecodeError::SocketIo("an attachment of no event"));
            }
        };
        let text = match packet {
            engine_io::Packet::Message(text) => text,
            engine_io::Packet::Pong | engine_io::Packet::Noop => return Ok(()),
            engine_io::Packet::Close => {
                self.leave_socket_io(slot, now);
                return Ok(());
            }
            engine_io::Packet::Ping(_) => return Err(DecodeError::SocketIo("only the server pings")),
            engine_io::Packet::Upgrade => {
                return Err(DecodeError::SocketIo("there is no other transport to upgrade from"));
            }
        };
        match socket_io::decode(text)? {
            socket_io::Packet::Connect { namespace, auth } => {
                self.connect_socket_io(slot, namespace, auth, is_connected, now)
            }
            _ if !is_connected => Err(DecodeError::SocketIo("the client is not connected to a namespace")),
            socket_io::Packet::Disconnect => {
                self.leave_socket_io(slot, now);
                Ok(())
            }
            socket_io::Packet::Event(event) if event.has_attachment => {
                if text.len() > SOCKET_IO_BINARY_EVENT_BYTES_MAX {
                    let (bytes, bytes_max) = (text.len() as u64, SOCKET_IO_BINARY_EVENT_BYTES_MAX);
                    return Err(DecodeError::TooLarge { bytes, bytes_max });
                }
                if let Some(state) = self.socket_io_mut(slot) {
                    state.incomplete = Some(text.into());
                }
                Ok(())
            }
            socket_io::Packet::Event(event) => self.socket_io_event(slot, &event, None, now),
        }
    }

    fn socket_io_mut(&mut self, slot: SlotId) -> Option<&mut SocketIo> {
        match &mut self.sessions.open_mut(slot)?.protocol {
            Protocol::SocketIo(state) => Some(state),
            _ => None,
        }
    }

    /// Lets a client into the namespace, once its credentials have been verified.
    fn connect_socket_io(
        &mut self,
        slot: SlotId,
        namespace: &str,
        auth: &str,
        is_connected: bool,
        now: Now,
    ) -> Result<(), DecodeError> {
        if !socket_io::is_main(namespace) {
            self.push_packet(slot, |out| {
                socket_io::encode_refused(out, namespace, "Invalid namespace", None);
            });
            return Ok(());
        }
        if is_connected {
            return Err(DecodeError::SocketIo("the client is connected already"));
        }
        let token = match socket_io::decode_auth(auth) {
            Ok(token) => token,
            Err(error) => {
                self.end(slot, CloseReason::BadRequest(error.to_owned()), now);
                return Ok(());
            }
        };
        let name = std::borrow::Cow::Borrowed("");
        let hello = Command::Hello { request: 0, client: name.clone(), name, features: None, token };
        self.execute(slot, hello, now)
    }

    /// Answers a client that may enter the namespace. Returns whether the session is one of Socket.IO.
    pub(super) fn welcome_socket_io(&mut self, slot: SlotId) -> bool {
        let shard = self.id.0;
        let Some(session) = self.sessions.open_mut(slot) else { return false };
        let id = session.id;
        let Protocol::SocketIo(state) = &mut session.protocol else { return false };
        state.is_connected = true;
        // Applications show this id to others, so it is not the one that names the session.
        self.push_packet(slot, |out| socket_io::encode_connected(out, &format!("{shard:x}-{id:x}")));
        true
    }

    fn socket_io_event(
        &mut self,
        slot: SlotId,
        event: &socket_io::Event<'_>,
        attachment: Option<&[u8]>,
        now: Now,
    ) -> Result<(), DecodeError> {
        let json = socket_io::request_json(event);
        let command = json
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|json| socket_io::decode_request(json, event.request, attachment));
        match command {
            Ok(command) => self.execute(slot, command, now),
            Err(error) => {
                self.fail(slot, error.request, ErrorCode::BadRequest, &error.text, now);
                Ok(())
            }
        }
    }

    /// Ends the session of a client that leaves.
    fn leave_socket_io(&mut self, slot: SlotId, now: Now) {
        let mut bytes = Vec::new();
        Framing::EngineIo.write_close(1000, "", &mut bytes);
        self.push_bytes(slot, &bytes);
        self.end(slot, CloseReason::Peer, now);
    }

    fn push_packet(&mut self, slot: SlotId, write: impl FnOnce(&mut Vec<u8>)) {
        let (mut packet, mut bytes) = (Vec::new(), Vec::new());
        write(&mut packet);
        engine_io::encode_message(&mut bytes, &packet);
        self.push_bytes(slot, &bytes);
    }
}

/// Appends the packet that ends a session whose client shall not come back by itself: a client that has not been let in is
/// refused. Without it, clients reconnect once the connection is closed.
pub(super) fn encode_end(state: &SocketIo, reason: &CloseReason, out: &mut Vec<u8>) {
    let mut packet = Vec::new();
    // The same credentials would be refused again.
    let is_expired =
        matches!(reason, CloseReason::Unauthorized(AuthRefusal::Expired | AuthRefusal::CertificateExpired));
    match state.is_connected {
        false if reason.is_final() || is_expired => {
            socket_io::encode_refused(&mut packet, "/", &reason.to_string(), Some(reason.code()));
        }
        true if reason.is_final() => socket_io::encode_disconnect(&mut packet),
        _ => return,
    }
    engine_io::encode_message(out, &packet);
}

#[cfg(test)]
mod tests;
