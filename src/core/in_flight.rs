//! Ticks that await an engine's answer, ordered by deadline.

use crate::ids::SessionId;

/// No entry.
const NONE: u32 = u32::MAX;

/// A publish that awaits its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The session that receives the answer.
    pub session: SessionId,
    /// When it is answered regardless of the engine, CLOCK_MONOTONIC nanoseconds.
    pub deadline_ns: u64,
    /// Request id of the PUBLISH; 0: none.
    pub request: u32,
    /// Length of the topic's key, bytes.
    pub key_len: u16,
    /// Whether a success is also answered.
    pub is_answered: bool,
}

/// Identifies a publish in a table. A slot's tickets repeat only after 2^32 publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

#[derive(Clone, Copy, Debug)]
struct Slot {
    waiting: Option<Waiting>,
    generation: u32,
    /// Neighbours in the list of waiting publishes. In a free slot, `next` is the next free slot.
    previous: u32,
    next: u32,
}

/// A table of publishes. All operations are O(1). Memory grows to the maximum ever waiting at once.
///
/// Invariant: the list from `first` to `last` contains exactly the slots with a publish, by ascending deadline.
#[derive(Debug)]
pub struct InFlight {
    slots: Vec<Slot>,
    free: u32,
    first: u32,
    last: u32,
    len: usize,
}

impl Default for InFlight {
    fn default() -> InFlight {
        InFlight { slots: Vec::new(), free: NONE, first: NONE, last: NONE, len: 0 }
    }
}

impl InFlight {
    /// Number of waiting publishes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no publish is waiting.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a publish. Its deadline must not be earlier than those of publishes added before.
    pub fn insert(&mut self, waiting: Waiting) -> Ticket {
        let index = match self.free {
            NONE => {
                self.slots.push(Slot { waiting: None, generation: 0, previous: NONE, next: NONE });
                self.slots.len() as u32 - 1
            }
            free => {
                self.free = self.slots[free as usize].next;
                free
            }
        };
        let last = std::mem::replace(&mut self.last, index);
        match self.slots.get_mut(last as usize) {
            Some(before) => {
                debug_assert!(
                    before.waiting.is_some_and(|before| before.deadline_ns <= waiting.deadline_ns),
                    "time does not go back, and a sink has one timeout"
                );
                before.next = index;
            }
            None => self.first = index,
        }
        let slot = &mut self.slots[index as usize];
        (slot.waiting, slot.previous, slot.next) = (Some(waiting), last, NONE);
        self.len += 1;
        let ticket = Ticket(u64::from(slot.generation) << 32 | u64::from(index));
        self.invariants();
        ticket
    }

    /// Removes a publish; `None` if it has already been removed.
    pub fn remove(&mut self, Ticket(ticket): Ticket) -> Option<Waiting> {
        let (index, generation) = (ticket as u32, (ticket >> 32) as u32);
        let slot = self.slots.get_mut(index as usize).filter(|slot| slot.generation == generation)?;
        let waiting = slot.waiting.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        let (previous, next) = (slot.previous, std::mem::replace(&mut slot.next, self.free));
        self.free = index;
        match self.slots.get_mut(previous as usize) {
            Some(before) => before.next = next,
            None => self.first = next,
        }
        match self.slots.get_mut(next as usize) {
            Some(after) => after.previous = previous,
            None => self.last = previous,
        }
        self.len -= 1;
        self.invariants();
        Some(waiting)
    }

    /// The earliest deadline.
    pub fn first_deadline_ns(&self) -> Option<u64> {
        self.slots.get(self.first as usize)?.waiting.map(|waiting| waiting.deadline_ns)
    }

    /// Removes the publish with the earliest deadline, if that is at or before `now_ns`.
    pub fn pop_due(&mut self, now_ns: u64) -> Option<Waiting> {
        let slot = self.slots.get(self.first as usize)?;
        slot.waiting.filter(|waiting| waiting.deadline_ns <= now_ns)?;
        self.remove(Ticket(u64::from(slot.generation) << 32 | u64::from(self.first)))
    }

    /// Bytes of the table.
    pub fn heap_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
    }

    /// Checks the cheap parts of the invariant after each change, in debug builds.
    fn invariants(&self) {
        debug_assert_eq!(self.first == NONE, self.len == 0, "the list begins with a publish that waits");
        debug_assert_eq!(self.last == NONE, self.len == 0, "the list ends with a publish that waits");
        debug_assert!(self.len <= self.slots.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(deadline_ns: u64) -> Waiting {
        Waiting {
            session: SessionId(7),
            deadline_ns,
            request: deadline_ns as u32,
            key_len: 3,
            is_answered: true,
        }
    }

    #[test]
    fn publishes_are_taken_out_once_and_in_any_order() {
        let mut in_flight = InFlight::default();
        let tickets: Vec<Ticket> = (0..5).map(|at| in_flight.insert(waiting(at))).collect();
        for at in [2, 0, 4] {
            assert_eq!(in_flight.remove(tickets[at]), Some(waiting(at as u64)));
            assert_eq!(in_flight.remove(tickets[at]), None, "once");
        }
        assert_eq!((in_flight.len(), in_flight.first_deadline_ns()), (2, Some(1)));
        // Slots are reused with other tickets.
        let again = in_flight.insert(waiting(9));
        assert!(!tickets.contains(&again));
        assert_eq!(in_flight.pop_due(8), Some(waiting(1)));
        assert_eq!(in_flight.pop_due(8), Some(waiting(3)));
        assert_eq!((in_flight.pop_due(8), in_flight.len()), (None, 1));
        assert_eq!(in_flight.pop_due(9), Some(waiting(9)));
        assert!(in_flight.is_empty() && in_flight.first_deadline_ns().is_none());
        assert_eq!(in_flight.slots.len(), 5, "no place is wasted");
    }

    #[test]
    fn deadlines_come_in_order_whatever_was_taken_out_before() {
        let (mut rng, mut in_flight) = (fastrand::Rng::with_seed(5), InFlight::default());
        let mut model: Vec<(Ticket, u64)> = Vec::new();
        for now in 0..5_000_u64 {
            match rng.u8(..3) {
                0 | 1 => model.push((in_flight.insert(waiting(now + 100)), now + 100)),
                _ if !model.is_empty() => {
                    let (ticket, deadline_ns) = model.remove(rng.usize(..model.len()));
                    assert_eq!(in_flight.remove(ticket), Some(waiting(deadline_ns)));
                }
                _ => {}
            }
            while let Some(due) = in_flight.pop_due(now) {
                assert_eq!(due.deadline_ns, model.remove(0).1);
            }
            assert!(model.iter().all(|(_, deadline_ns)| *deadline_ns > now));
            assert_eq!(in_flight.len(), model.len());
        }
    }
}
