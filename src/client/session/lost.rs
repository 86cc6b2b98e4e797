//! Making and losing connections.

use std::sync::Arc;

use super::{
    ASLEEP_NS, Action, ClientEvent, ClientState, PING_INTERVAL_NS, SAVE_DELAY_NS, Session, SubscriptionState,
    Timer, WELCOME_TIMEOUT_NS, close_code, exchange::Exchange,
};
use crate::{
    Address, RECONNECT_AFTER_MS_MAX, RECONNECT_STABLE_MS, addresses::Addresses, backoff::delay_ms_min,
    is_retryable_close,
};
use tickcast_proto::features::Features;

const MS_NS: u64 = 1_000_000;

impl Session {
    pub(super) fn dial(&mut self, now_ns: u64) {
        self.is_waiting_for_token = !self.tokens.is_ready(now_ns, &mut self.timers, &mut self.outbox);
        if self.is_waiting_for_token {
            return;
        }
        self.tokens.take_for_use();
        self.exchange = Some(Exchange::new(self.options.codec()));
        self.timers.set(Timer::Welcome, now_ns + WELCOME_TIMEOUT_NS);
        let (url, protocol) = (self.next_url(), self.options.encoding.subprotocol());
        self.outbox.act(Action::Dial { url, protocol });
    }

    /// The address whose turn it is.
    fn next_url(&mut self) -> Arc<str> {
        let url = self.options.url.clone();
        match &mut self.addresses {
            None => {
                self.addresses = Address::parse(&url).ok().map(Addresses::new);
                url
            }
            Some(addresses) => addresses.next_other().map_or(url, |other| other.to_string().into()),
        }
    }

    /// A server has named its nodes.
    pub(super) fn handle_nodes(&mut self, addresses: &str) {
        let is_granted = self.exchange.as_ref().is_some_and(|exchange| exchange.grants(Features::NODES));
        if let Some(known) = self.addresses.as_mut().filter(|_| is_granted) {
            known.set_others(addresses);
        }
    }

    pub(super) fn ping(&mut self, now_ns: u64) {
        if let Some(exchange) = &mut self.exchange {
            exchange.ping(now_ns, &mut self.outbox);
            self.timers.set(Timer::Ping, now_ns + PING_INTERVAL_NS);
        }
    }

    pub(super) fn handle_ping_due(&mut self, at_ns: u64, now_ns: u64) {
        let was_asleep = now_ns - at_ns > ASLEEP_NS;
        if self.exchange.as_ref().is_some_and(|exchange| exchange.is_silent) && !was_asleep {
            let reason = "nothing has arrived since the last ping";
            self.hang_up(close_code::SILENT, close_code::CUT, reason, now_ns);
        } else {
            self.ping(now_ns);
        }
    }

    pub(super) fn handle_token_due(&mut self, now_ns: u64) {
        if self.state == ClientState::Connected {
            self.tokens.refresh(now_ns, &mut self.timers, &mut self.outbox);
        } else if self.is_waiting_for_token {
            self.dial(now_ns);
        }
    }

    /// Reports that there is no token, and asks again later.
    pub(super) fn handle_no_token(&mut self, reason: &str, code: u16, now_ns: u64) {
        let reason = Arc::<str>::from(reason);
        self.outbox.emit(ClientEvent::Error { code, reason: reason.clone() });
        if !self.tokens.can_ask() {
            return;
        }
        let retry_in_ms = self.tokens.handle_failed(now_ns, &mut self.timers, &mut self.random);
        if self.is_waiting_for_token {
            self.set_state(ClientState::Connecting, code, &reason, Some(retry_in_ms));
        }
    }

    pub(super) fn handle_malformed(&mut self, reason: &str, now_ns: u64) {
        self.hang_up(close_code::MALFORMED, close_code::PROTOCOL, reason, now_ns);
    }

    /// Closes the connection for a reason of this client: `hang_up_code` for the server, `code` for the application.
    pub(super) fn hang_up(&mut self, hang_up_code: u16, code: u16, reason: &str, now_ns: u64) {
        self.outbox.act(Action::HangUp { code: hang_up_code });
        if let Some(exchange) = &mut self.exchange {
            exchange.closing = None;
        }
        self.handle_lost(code, reason, false, now_ns);
    }

    /// The connection is lost, or an attempt has failed, or the application ends both.
    pub(super) fn handle_lost(&mut self, code: u16, reason: &str, is_final: bool, now_ns: u64) {
        let exchange = self.exchange.take();
        self.is_waiting_for_token = false;
        let (mut code, mut reason, mut after_ms) = (code, Arc::<str>::from(reason), 0);
        let mut lasted_ns = 0;
        if let Some(exchange) = exchange {
            lasted_ns = exchange.welcomed_ns.map_or(0, |welcomed_ns| now_ns.saturating_sub(welcomed_ns));
            if let Some(closing) = exchange.closing.filter(|_| !is_final) {
                (code, reason, after_ms) = (closing.code, closing.reason.into(), closing.reconnect_after_ms);
            }
        }
        for timer in [Timer::Welcome, Timer::Ping, Timer::Retry, Timer::Token] {
            self.timers.cancel(&timer);
        }
        self.subscriptions.handle_lost();
        if lasted_ns >= RECONNECT_STABLE_MS * MS_NS {
            self.jitter.reset();
        }
        let mut retries = !is_final && is_retryable_close(code);
        if code == close_code::TOKEN_EXPIRED && retries {
            retries = self.tokens.reject();
        }
        let retry_in_ms = retries.then(|| {
            // The first attempt with another token needs no delay: nothing is wrong with the server.
            if code == close_code::TOKEN_EXPIRED && self.jitter.attempts == 0 {
                self.jitter.attempts = 1;
                return 0;
            }
            let asked_ms = u64::from(delay_ms_min(code, after_ms)).min(RECONNECT_AFTER_MS_MAX);
            asked_ms + self.jitter.next_ms(&mut self.random)
        });
        let state = if retries { ClientState::Connecting } else { ClientState::Disconnected };
        self.set_state(state, code, &reason, retry_in_ms);
        let ids: Vec<_> =
            self.subscriptions.iter().map(|record| (record.id, record.pattern.clone())).collect();
        for (id, pattern) in ids {
            self.timers.cancel(&Timer::Subscribe(pattern));
            self.set_subscription(id, SubscriptionState::Subscribing, code, &reason, None);
        }
        self.publishes.handle_lost(code, &reason, !retries, &mut self.timers, &mut self.outbox);
        self.save();
        if let Some(retry_in_ms) = retry_in_ms {
            self.timers.set(Timer::Retry, now_ns + retry_in_ms * MS_NS);
        }
    }

    /// Sets the timer that saves positions, if one has moved.
    pub(super) fn save_later(&mut self, now_ns: u64) {
        let has_moved = std::mem::take(&mut self.has_moved);
        if has_moved && self.options.saves_positions && !self.is_unsaved {
            self.is_unsaved = true;
            self.timers.set(Timer::Save, now_ns + SAVE_DELAY_NS);
        }
    }

    pub(super) fn save(&mut self) {
        self.timers.cancel(&Timer::Save);
        if std::mem::take(&mut self.is_unsaved) {
            self.outbox.act(Action::Save(self.positions.clone()));
        }
    }
}
