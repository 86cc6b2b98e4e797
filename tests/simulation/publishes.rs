//! What a client publishes on its own topic, and the check of the answers.

use std::collections::HashMap;

use tickcast_proto::ErrorCode;

/// The publishes of one client on its own topic, which nobody else publishes to.
#[derive(Debug, Default)]
pub struct Publishes {
    /// Numbers of the last ticks published without an answer yet, by request: see [`Published`](crate::client::Published). 0: the
    /// request is not valid.
    unanswered: HashMap<u32, u64>,
    last_request: u32,
    /// The topic's home refuses it: it has no room, and forgets no topic.
    pub is_refused: bool,
    /// The last tick was refused because a budget was used up: its number is free again.
    is_taken_back: bool,
    pub acknowledged: u64,
    pub refused: u64,
    /// Of these, refused because a budget was used up.
    pub limited: u64,
}

impl Publishes {
    /// The id of a new request for the tick with this number; 0: for a request that is not valid.
    pub fn begin(&mut self, number: u64) -> u32 {
        self.last_request += 1;
        self.unanswered.insert(self.last_request, number);
        self.last_request
    }

    /// Checks a PUBLISHED: it answers a request that had no answer, and its sequence is the tick's.
    pub fn handle_published(&mut self, request: u32, number: u64) {
        let sent = self.unanswered.remove(&request);
        assert_eq!(
            sent,
            Some(number),
            "request {request}: one answer, with the sequence that subscribers see"
        );
        assert!(!self.is_refused, "a home that is full stays full");
        self.acknowledged += 1;
    }

    /// Checks an ERROR: it answers a request that had no answer, or has no id.
    pub fn handle_error(&mut self, request: u32, code: u64, is_limited: bool) {
        let refused = self.unanswered.remove(&request);
        match (refused, request) {
            (Some(number), _) if code == ErrorCode::RateLimited as u64 => {
                assert!(is_limited, "no budget is set");
                self.is_taken_back |= number > 0;
                self.limited += 1;
            }
            // A client that renews its token too often is refused the token, not a publish.
            (None, 0) if code == ErrorCode::RateLimited as u64 => return,
            (Some(0), _) => assert_eq!(code, ErrorCode::BadTopic as u64),
            (Some(_), _) | (None, 0) => {
                assert_eq!(code, ErrorCode::TooManyTopics as u64);
                assert_eq!(self.acknowledged, 0, "a topic that exists stays");
                self.is_refused = true;
            }
            (None, _) => panic!("request {request} is answered twice: {code}"),
        }
        self.refused += 1;
    }

    /// Whether every request has been answered.
    pub fn are_answered(&self) -> bool {
        self.unanswered.is_empty()
    }

    /// Takes note that the last tick has been refused: the next one has its number.
    pub fn take_back(&mut self) -> bool {
        std::mem::take(&mut self.is_taken_back)
    }

    /// Asserts that every request has been answered.
    pub fn check_answered(&self) {
        assert!(self.unanswered.is_empty(), "without an answer: {:?}", self.unanswered);
    }
}
