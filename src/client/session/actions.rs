//! What a session asks of its driver.

use std::{collections::VecDeque, fmt, sync::Arc};

use bytes::Bytes;

use super::event::{Change, ClientEvent, SubscriptionEvent, SubscriptionState};
use crate::Positions;

/// A message of the server, or to it. Over native TCP, one or more whole frames.
#[derive(Clone, PartialEq, Eq)]
pub enum Message {
    /// JSON. From the server, it need not be valid UTF-8.
    Text(Bytes),
    /// Native frames.
    Binary(Bytes),
}

/// Without the bytes, which may hold a token.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Message::Text(_) => "Text",
            Message::Binary(_) => "Binary",
        };
        write!(f, "{kind}({} bytes)", self.len())
    }
}

impl Message {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Message::Text(bytes) | Message::Binary(bytes) => bytes.len(),
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What the driver of a session must do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Opens a connection; the answer is `handle_open` or `handle_closed`.
    Dial {
        /// Where to.
        url: Arc<str>,
        /// The WebSocket subprotocol to offer; `None` over native TCP.
        protocol: Option<&'static str>,
    },
    /// Sends one message.
    Send {
        /// The message.
        message: Message,
        /// Whether to leave it out while more than [`crate::OUTPUT_BYTES_MAX`] wait for the socket: the answer to a ping.
        is_optional: bool,
    },
    /// Closes the connection, or abandons the attempt to open it, and forgets it: no `handle_closed` follows.
    HangUp {
        /// Close code of the WebSocket.
        code: u16,
    },
    /// Asks the application for a token; the answer is `handle_token` or `handle_token_failed`.
    AskToken(TokenPurpose),
    /// Saves the positions, in place of those saved before.
    Save(Positions),
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenPurpose {
    /// A new connection.
    Connect,
    /// The open connection, whose token is about to expire.
    Refresh,
}

/// Actions and events that wait for the driver, each in order. Bound: what one input causes; the driver takes all after each.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub(super) actions: VecDeque<Action>,
    pub(super) events: VecDeque<ClientEvent>,
}

impl Outbox {
    pub(super) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    pub(super) fn send(&mut self, message: Message) {
        self.act(Action::Send { message, is_optional: false });
    }

    pub(super) fn emit(&mut self, event: ClientEvent) {
        self.events.push_back(event);
    }

    pub(super) fn emit_on(&mut self, on: &Arc<str>, event: SubscriptionEvent) {
        self.emit(ClientEvent::Subscription { on: on.clone(), event });
    }

    pub(super) fn emit_subscription(
        &mut self,
        on: &Arc<str>,
        state: SubscriptionState,
        code: u16,
        reason: &Arc<str>,
        retry_in_ms: Option<u64>,
    ) {
        let change = Change { state, code, reason: reason.clone(), retry_in_ms };
        self.emit_on(on, SubscriptionEvent::State(change));
    }
}
