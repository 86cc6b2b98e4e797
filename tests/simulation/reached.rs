//! The situations that a run of the simulation reaches.

/// How often a run reached each situation.
#[derive(Debug, Default)]
pub struct Reached {
    pub parked: u64,
    pub held: u64,
    pub slow_closed: u64,
    pub overload_closed: u64,
    pub overloads: u64,
    pub source_full: u64,
    pub delivered: u64,
    pub vanished: u64,
    pub paused: u64,
    pub half_frames: u64,
    pub pinged: u64,
    pub silent_closed: u64,
    pub handed_over: u64,
    pub conflated: u64,
    pub lost: u64,
    pub recovered: u64,
    pub not_recovered: u64,
    pub snapshots: u64,
    pub batches: u64,
    pub deflated: u64,
    pub reconnected: u64,
    pub lives: u64,
    pub acknowledged: u64,
    pub refused: u64,
    pub verified: u64,
    pub denied: u64,
    pub filtered: u64,
    pub limited: u64,
    pub throttled: u64,
    pub routed: u64,
    pub routed_refused: u64,
    pub routed_unconfirmed: u64,
    pub routed_late: u64,
    pub opened_in_pieces: u64,
}

impl Reached {
    pub fn add(&mut self, other: &Reached) {
        self.parked += other.parked;
        self.held += other.held;
        self.slow_closed += other.slow_closed;
        self.overload_closed += other.overload_closed;
        self.overloads += other.overloads;
        self.source_full += other.source_full;
        self.delivered += other.delivered;
        self.vanished += other.vanished;
        self.paused += other.paused;
        self.half_frames += other.half_frames;
        self.pinged += other.pinged;
        self.silent_closed += other.silent_closed;
        self.handed_over += other.handed_over;
        self.conflated += other.conflated;
        self.lost += other.lost;
        self.recovered += other.recovered;
        self.not_recovered += other.not_recovered;
        self.snapshots += other.snapshots;
        self.batches += other.batches;
        self.deflated += other.deflated;
        self.reconnected += other.reconnected;
        self.lives += other.lives;
        self.acknowledged += other.acknowledged;
        self.refused += other.refused;
        self.verified += other.verified;
        self.denied += other.denied;
        self.filtered += other.filtered;
        self.limited += other.limited;
        self.throttled += other.throttled;
        self.routed += other.routed;
        self.routed_refused += other.routed_refused;
        self.routed_unconfirmed += other.routed_unconfirmed;
        self.routed_late += other.routed_late;
        self.opened_in_pieces += other.opened_in_pieces;
    }

    pub fn is_complete(&self) -> bool {
        [
            self.parked,
            self.held,
            self.slow_closed,
            self.overload_closed,
            self.overloads,
            self.source_full,
            self.vanished,
            self.paused,
            self.half_frames,
            self.pinged,
            self.silent_closed,
            self.handed_over,
            self.conflated,
            self.lost,
            self.recovered,
            self.not_recovered,
            self.snapshots,
            self.batches,
            self.deflated,
            self.reconnected,
            self.lives,
            self.acknowledged,
            self.refused,
            self.verified,
            self.denied,
            self.filtered,
            self.limited,
            self.throttled,
            self.routed,
            self.routed_refused,
            self.routed_unconfirmed,
            self.routed_late,
            self.opened_in_pieces,
        ]
        .iter()
        .all(|&count| count > 10)
            && self.delivered > 10_000
    }
}
