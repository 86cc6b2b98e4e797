//! Fair turns for sessions that share a work budget.

use std::collections::VecDeque;

use crate::ids::SlotId;

/// A queue of sessions that take turns by deficit round robin (Shreedhar and Varghese, "Efficient Fair Queueing Using
/// Deficit Round-Robin", 1995), new sessions first (RFC 8290, section 4.2, new flows).
/// In its turn, a session may use one quantum of work. Work beyond that is debt, and the session waits one more round per quantum
/// of debt. So a session that occasionally needs less than a quantum goes ahead of any number of sessions that always have work.
/// Those share the rest equally, whatever their pieces of work cost. A session that runs out of work stays for one more round,
/// and counts as new only after that.
///
/// Invariant: a session is in at most one of the two queues, and at most once. 8 bytes per slot, and 4 per queued session.
#[derive(Debug)]
pub struct FairQueue {
    quantum: i32,
    flows: Vec<Flow>,
    new: VecDeque<SlotId>,
    old: VecDeque<SlotId>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    /// Work left in the session's turn; negative: debt.
    credit: i32,
    state: FlowState,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum FlowState {
    #[default]
    Absent,
    New,
    Old,
    /// The session's turn has begun.
    Serving,
}

impl FairQueue {
    /// Creates an empty queue whose turns have `quantum` units of work each.
    pub fn new(quantum: u32) -> FairQueue {
        let quantum = i32::try_from(quantum).unwrap_or(i32::MAX).max(1);
        FairQueue { quantum, flows: Vec::new(), new: VecDeque::new(), old: VecDeque::new() }
    }

    /// Queues a session that has work, unless it is queued already.
    pub fn push(&mut self, slot: SlotId) {
        let quantum = self.quantum;
        let flow = self.flow_mut(slot);
        if flow.state != FlowState::Absent {
            return;
        }
        // A session in debt does not become new by pausing.
        if flow.credit < 0 {
            flow.state = FlowState::Old;
            self.old.push_back(slot);
        } else {
            (flow.credit, flow.state) = (quantum, FlowState::New);
            self.new.push_back(slot);
        }
    }

    /// Begins the next session's turn; end it with [`FairQueue::end_turn`]. Returns the session and the units it may use.
    pub fn begin_turn(&mut self) -> Option<(SlotId, usize)> {
        loop {
            let slot = self.new.pop_front().or_else(|| self.old.pop_front())?;
            let quantum = self.quantum;
            let flow = self.flow_mut(slot);
            if flow.credit <= 0 {
                // At most one round per quantum of debt. The cost of one piece of work bounds the debt.
                flow.credit += quantum;
                if flow.credit <= 0 {
                    flow.state = FlowState::Old;
                    self.old.push_back(slot);
                    continue;
                }
            }
            flow.state = FlowState::Serving;
            return Some((slot, flow.credit as usize));
        }
    }

    /// Ends a turn in which the session used `units`; 0 if it had no work. `has_more`: whether it has work left.
    pub fn end_turn(&mut self, slot: SlotId, units: usize, has_more: bool) {
        let flow = self.flow_mut(slot);
        debug_assert!(flow.state == FlowState::Serving, "a turn ends after it has begun");
        flow.credit = flow.credit.saturating_sub(i32::try_from(units).unwrap_or(i32::MAX));
        if !has_more {
            flow.credit = flow.credit.min(0);
        }
        flow.state = if has_more || units > 0 { FlowState::Old } else { FlowState::Absent };
        if flow.state == FlowState::Old {
            self.old.push_back(slot);
        }
    }

    /// Forgets the debt of an ended session, so that the next one in its slot starts without debt.
    pub fn forget(&mut self, slot: SlotId) {
        if let Some(flow) = self.flows.get_mut(slot.index()) {
            flow.credit = flow.credit.max(0);
        }
    }

    /// Returns whether no session is queued.
    pub fn is_empty(&self) -> bool {
        self.new.is_empty() && self.old.is_empty()
    }

    /// Returns whether a session is queued. O(1).
    pub fn contains(&self, slot: SlotId) -> bool {
        self.flows.get(slot.index()).is_some_and(|flow| matches!(flow.state, FlowState::New | FlowState::Old))
    }

    /// Heap memory in bytes.
    pub fn heap_bytes(&self) -> usize {
        self.flows.capacity() * size_of::<Flow>() + (self.new.capacity() + self.old.capacity()) * 4
    }

    fn flow_mut(&mut self, slot: SlotId) -> &mut Flow {
        if self.flows.len() <= slot.index() {
            self.flows.resize(slot.index() + 1, Flow::default());
        }
        &mut self.flows[slot.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves turns until `units` are used. Each session's work comes in pieces of `piece(slot)`.
    fn serve(queue: &mut FairQueue, units: usize, piece: impl Fn(u32) -> usize) -> Vec<(u32, usize)> {
        let (mut served, mut left) = (Vec::new(), units);
        while left > 0
            && let Some((slot, credit)) = queue.begin_turn()
        {
            let mut used = 0;
            while used < credit {
                used += piece(slot.0);
            }
            queue.end_turn(slot, used, true);
            served.push((slot.0, used));
            left = left.saturating_sub(used);
        }
        served
    }

    #[test]
    fn sessions_share_equally_whatever_a_piece_of_their_work_costs() {
        let mut queue = FairQueue::new(100);
        (0..4).for_each(|slot| queue.push(SlotId(slot)));
        let mut shares = [0; 4];
        for (slot, used) in serve(&mut queue, 400_000, |slot| [1, 7, 90, 1_000][slot as usize]) {
            shares[slot as usize] += used;
        }
        assert!(shares.iter().all(|share| (98_000..=102_000).contains(share)), "{shares:?}");
    }

    #[test]
    fn a_session_with_little_work_goes_ahead_of_those_that_always_have_some() {
        let mut queue = FairQueue::new(100);
        (0..50).for_each(|slot| queue.push(SlotId(slot)));
        serve(&mut queue, 20_000, |_| 10);
        queue.push(SlotId(60));
        assert_eq!(queue.begin_turn(), Some((SlotId(60), 100)));
        queue.end_turn(SlotId(60), 1, false);
        assert_ne!(queue.begin_turn().unwrap().0, SlotId(60));
    }

    #[test]
    fn a_session_cannot_shed_its_debt_by_running_out_of_work() {
        let mut queue = FairQueue::new(100);
        queue.push(SlotId(0));
        queue.begin_turn().unwrap();
        queue.end_turn(SlotId(0), 1_000, false);
        queue.push(SlotId(0));
        queue.push(SlotId(1));
        let mut before = 0;
        while let Some((SlotId(1), credit)) = queue.begin_turn() {
            queue.end_turn(SlotId(1), credit, true);
            before += credit;
        }
        assert!(before >= 800, "the other session is served first, for as much work: {before}");
    }

    #[test]
    fn a_session_that_always_has_a_little_work_is_new_once_a_round() {
        let mut queue = FairQueue::new(100);
        (0..2).for_each(|slot| queue.push(SlotId(slot)));
        let mut turns = [0; 2];
        for _ in 0..100 {
            let (slot, _) = queue.begin_turn().unwrap();
            turns[slot.index()] += 1;
            queue.end_turn(slot, 90, slot == SlotId(1));
            queue.push(slot);
        }
        assert_eq!(turns, [50, 50]);
    }

    #[test]
    fn a_session_is_queued_at_most_once() {
        let mut queue = FairQueue::new(10);
        (0..3).for_each(|_| queue.push(SlotId(4)));
        queue.begin_turn().unwrap();
        assert_eq!(queue.begin_turn(), None);
        queue.push(SlotId(4));
        assert!(queue.is_empty(), "its own turn is not over");
        queue.end_turn(SlotId(4), 1, false);
        queue.push(SlotId(4));
        queue.begin_turn().unwrap();
        assert_eq!(queue.begin_turn(), None);
        queue.end_turn(SlotId(4), 0, false);
        assert!(queue.is_empty());
    }
}
