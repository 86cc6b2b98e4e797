//! Injects faults for tests, in debug builds only: `TICKCAST_FAULT=PLACE NUMBER ACTION`, such as `control 1 panic`. Release
//! builds have none of them, and no client can trigger one.
//!
//! | place | number | when |
//! |---|---|---|
//! | `start` | shard | the shard's thread starts |
//! | `control` | shard | the shard handles a control request, which only the admin listener and signals send |
//! | `stop` | shard | the shard notices that the server stops |
//! | `admin` | 0 | the admin thread has accepted a connection |
//! | `signals` | 0 | a signal arrives |
//! | `source` | 0 | a source's thread starts |
//! | `verifier` | 0 | a verifier has taken a client's credentials |
//!
//! Actions: `panic`; `hang`, for as long as the process lives; `slow`, for 150 ms.

use crate::clock;

/// Where a fault may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A shard's thread, before it has reported anything.
    Start(u16),
    /// A shard's control request.
    Control(u16),
    /// A shard that has been asked to stop.
    Stop(u16),
    /// The admin thread's listener.
    Admin,
    /// The thread that receives the signals.
    Signals,
    /// A source's thread.
    Source,
    /// The verification of a client's credentials.
    Verifier,
}

/// Longer than a slow turn.
const SLOW_NS: u64 = 150_000_000;
const HANG_STEP_NS: u64 = 1_000_000_000;

/// Injects the fault that TICKCAST_FAULT requests for this place; does nothing in a release build.
///
/// # Panics
/// If it requests a panic.
pub fn at(place: Place) {
    if !cfg!(debug_assertions) {
        return;
    }
    let Ok(asked) = std::env::var("TICKCAST_FAULT") else { return };
    match action(&asked, place) {
        Some("panic") => panic!("injected fault"),
        Some("slow") => clock::sleep_ns(SLOW_NS),
        Some("hang") => loop {
            clock::sleep_ns(HANG_STEP_NS);
        },
        _ => {}
    }
}

/// The action that `asked` requests for a place.
fn action(asked: &str, place: Place) -> Option<&str> {
    let named = match place {
        Place::Start(shard) => ("start", shard),
        Place::Control(shard) => ("control", shard),
        Place::Stop(shard) => ("stop", shard),
        Place::Admin => ("admin", 0),
        Place::Signals => ("signals", 0),
        Place::Source => ("source", 0),
        Place::Verifier => ("verifier", 0),
    };
    let mut words = asked.split(' ');
    let is_here = words.next() == Some(named.0) && words.next()?.parse() == Ok(named.1);
    words.next().filter(|_| is_here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_happens_at_the_place_that_is_asked_for() {
        assert_eq!(action("control 1 panic", Place::Control(1)), Some("panic"));
        assert_eq!(action("admin 0 panic", Place::Admin), Some("panic"));
        for other in [Place::Control(0), Place::Start(1), Place::Admin, Place::Signals] {
            assert_eq!(action("control 1 panic", other), None);
        }
        assert_eq!(action("", Place::Admin), None);
        assert_eq!(action("control one panic", Place::Control(1)), None);
    }
}
