//! A shard's exchange with the verifiers: credentials out, verdicts in.

use std::io;

use super::Driver;
use tickcast_core::{limits::TURN_VERDICTS, now::Now};

impl Driver {
    /// Takes verdicts, at most [`TURN_VERDICTS`]. Returns whether there was one.
    pub(super) fn take_verdicts(&mut self, now: Now) -> io::Result<bool> {
        for taken in 0..TURN_VERDICTS {
            let Some((session, verdict)) = self.verifiers.as_mut().and_then(|lane| lane.take()) else {
                return Ok(taken > 0);
            };
            self.shard.handle_verdict(session, verdict, now);
            self.actions()?;
        }
        Ok(true)
    }

    /// Passes the sessions' credentials to the verifiers. If the queue is full, refuses the rest at once, so that none stays
    /// behind. Call it after everything else that handles input.
    pub(super) fn hand_over_credentials(&mut self, now: Now) -> io::Result<bool> {
        let mut any = false;
        while let Some(lane) = &self.verifiers
            && let Some((session, credentials)) = self.shard.poll_credentials()
        {
            any = true;
            if let Err(refusal) = lane.submit(session, credentials) {
                self.shard.handle_verdict(session, Err(refusal), now);
                self.actions()?;
            }
        }
        Ok(any)
    }

    /// Whether a verdict is waiting.
    pub(super) fn has_verdicts(&self) -> bool {
        self.verifiers.as_ref().is_some_and(|lane| lane.has_verdicts())
    }
}
