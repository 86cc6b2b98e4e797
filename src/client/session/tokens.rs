//! The client's token: asking the application for one, and replacing it before it expires.

use super::{
    actions::{Action, Outbox, TokenPurpose},
    jitter::{Jitter, Random},
    timers::{Timer, Timers},
};
use crate::ClientToken;

/// Time from asking the application for a token to its answer.
const ANSWER_TIMEOUT_NS: u64 = 30_000_000_000;

/// The token, when to replace it, and whether the application has been asked.
///
/// Invariant: the application is asked for at most one token at a time, and there is a timer until it answers.
#[derive(Debug)]
pub(super) struct Tokens {
    token: Option<ClientToken>,
    /// Whether the application gives tokens when asked.
    is_asked: bool,
    jitter: Jitter,
    is_asking: bool,
    /// When to replace the token; `None`: never, or unknown.
    due_ns: Option<u64>,
    /// The token that was used last.
    used: Option<ClientToken>,
    /// Whether the server has closed the connection because this token expired.
    is_rejected: bool,
}

impl Tokens {
    pub(super) fn new(token: Option<ClientToken>, is_asked: bool) -> Tokens {
        let (jitter, is_asking, due_ns, used, is_rejected) = (Jitter::default(), false, None, None, false);
        Tokens { token, is_asked, jitter, is_asking, due_ns, used, is_rejected }
    }

    /// Whether the application gives tokens.
    pub(super) fn can_ask(&self) -> bool {
        self.is_asked
    }

    /// Whether the application has been asked and has not answered.
    pub(super) fn is_asking(&self) -> bool {
        self.is_asking
    }

    /// Whether there is a token for a new connection, or none is needed. If not, asks for one.
    pub(super) fn is_ready(&mut self, now_ns: u64, timers: &mut Timers, outbox: &mut Outbox) -> bool {
        let is_due = self.due_ns.is_some_and(|due_ns| now_ns >= due_ns);
        if !self.is_asked || (self.token.is_some() && !is_due && !self.is_rejected) {
            return true;
        }
        self.ask(TokenPurpose::Connect, now_ns, timers, outbox);
        false
    }

    fn ask(&mut self, purpose: TokenPurpose, now_ns: u64, timers: &mut Timers, outbox: &mut Outbox) {
        timers.cancel(&Timer::Token);
        if !self.is_asking {
            self.is_asking = true;
            timers.set(Timer::TokenAnswer, now_ns + ANSWER_TIMEOUT_NS);
            outbox.act(Action::AskToken(purpose));
        }
    }

    /// Asks for a new token on an open connection, if the application gives tokens.
    pub(super) fn refresh(&mut self, now_ns: u64, timers: &mut Timers, outbox: &mut Outbox) {
        if self.is_asked {
            self.ask(TokenPurpose::Refresh, now_ns, timers, outbox);
        }
    }

    fn set_answered(&mut self, timers: &mut Timers) {
        self.is_asking = false;
        timers.cancel(&Timer::TokenAnswer);
    }

    /// Takes a token for which the application was not asked. An answer or a delay under way goes on.
    pub(super) fn replace(&mut self, token: ClientToken) {
        self.token = Some(token);
        self.due_ns = None;
        self.is_rejected = false;
    }

    /// Takes the token for which the application was asked.
    pub(super) fn handle_token(&mut self, token: ClientToken, timers: &mut Timers) {
        self.replace(token);
        self.jitter.reset();
        self.set_answered(timers);
        timers.cancel(&Timer::Token);
    }

    /// The application has none, or the server could not take it; returns the delay before asking again, in milliseconds.
    pub(super) fn handle_failed(&mut self, now_ns: u64, timers: &mut Timers, random: &mut Random) -> u64 {
        self.set_answered(timers);
        let delay_ms = self.jitter.next_ms(random);
        timers.set(Timer::Token, now_ns + delay_ms * 1_000_000);
        delay_ms
    }

    /// The token, which goes into a hello or a refresh now.
    pub(super) fn take_for_use(&mut self) -> Option<ClientToken> {
        self.used = self.token.clone();
        self.token.clone()
    }

    /// Whether the token has replaced the one that was used last.
    pub(super) fn is_unused(&self) -> bool {
        self.token.is_some() && self.token != self.used
    }

    /// The server does not take the token any more that was used last; returns whether there is, or can be, another one.
    pub(super) fn reject(&mut self) -> bool {
        self.is_rejected = !self.is_unused();
        self.is_asked || !self.is_rejected
    }

    /// The server has said when the token expires: it is in force. It is replaced after 3/4 of that time.
    pub(super) fn handle_expires(&mut self, expires_in_s: u32, now_ns: u64, timers: &mut Timers) {
        self.due_ns = None;
        timers.cancel(&Timer::Token);
        if expires_in_s != 0 && self.is_asked {
            let due_ns = now_ns + u64::from(expires_in_s) * 750_000_000;
            self.due_ns = Some(due_ns);
            timers.set(Timer::Token, due_ns);
        }
    }

    /// The application has answered, but the client does not connect any more.
    pub(super) fn handle_unwanted(&mut self, timers: &mut Timers) {
        self.set_answered(timers);
    }
}
