//! Accounts: token buckets of owners that come and go, in bounded memory.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

use crate::{
    limits::{ACCOUNT_LOOKS, TURN_ACCOUNTS_DROPPED},
    token_bucket::{Bucket, Pace},
};
use rustc_hash::FxBuildHasher;

/// What a request may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Expense {
    /// Ticks published.
    Ticks,
    /// Bytes published.
    TickBytes,
    /// Patterns subscribed to, or changed.
    Subscriptions,
    /// Patterns subscribed to from a position.
    History,
    /// Patterns subscribed to from the last values.
    LastValues,
    /// Requests refused because one of the others is used up.
    Refusals,
}

const EXPENSES: usize = 6;

/// So much of an expense.
pub type Cost = (Expense, u64);

/// How fast an owner's buckets fill, by expense; `None`: no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Paces([Option<Pace>; EXPENSES]);

impl Paces {
    /// The paces that `pace` returns.
    pub fn new(pace: impl Fn(Expense) -> Option<Pace>) -> Paces {
        use Expense::*;
        Paces([Ticks, TickBytes, Subscriptions, History, LastValues, Refusals].map(pace))
    }

    fn of(&self, (expense, tokens): Cost) -> Option<Pace> {
        self.0[expense as usize].filter(|_| tokens > 0)
    }

    /// Whether any of the costs has a limit.
    fn limit(&self, costs: &[Cost]) -> bool {
        costs.iter().any(|cost| self.of(*cost).is_some())
    }
}

/// The accounts of one kind of owner: sessions, sources, or others.
///
/// An owner without an account has full buckets. So an account whose buckets are full again can be dropped unnoticed, and each new
/// account looks for such ones among [`ACCOUNT_LOOKS`]. If the table is full of others, the account that would be full soonest of
/// those is dropped: to get rid of a debt this way takes owners with larger debts in the rest of the table, and each of those could
/// have spent as much itself.
///
/// Invariant: each account is in the queue once; the queue may also hold owners that have been forgotten.
#[derive(Debug)]
pub struct Accounts<Owner> {
    paces: Paces,
    accounts_max: usize,
    accounts: HashMap<Owner, Account, FxBuildHasher>,
    /// Owners in the order in which new accounts look at them.
    queue: VecDeque<Owner>,
}

/// One owner's buckets. 48 bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Account([Bucket; EXPENSES]);

impl Account {
    /// When all buckets will be full again.
    fn full_again_ns(&self) -> u64 {
        self.0.iter().map(Bucket::full_again_ns).max().unwrap_or(0)
    }
}

impl<Owner: Copy + Eq + Hash> Accounts<Owner> {
    /// No accounts and no limits. At most `accounts_max` owners have one at a time, at least one.
    pub fn new(accounts_max: usize) -> Accounts<Owner> {
        Accounts {
            paces: Paces::default(),
            accounts_max: accounts_max.max(1),
            accounts: HashMap::default(),
            queue: VecDeque::new(),
        }
    }

    /// Changes how fast buckets fill. What has been spent stays spent.
    pub fn set_paces(&mut self, paces: Paces) {
        self.paces = paces;
    }

    /// Checks whether an owner's account has what a request costs, without taking it. A lookup, if any of the costs has a limit.
    ///
    /// # Errors
    /// The first expense for which it has not.
    pub fn admits(&self, owner: Owner, costs: &[Cost], now_ns: u64) -> Result<(), Expense> {
        if !self.paces.limit(costs) {
            return Ok(());
        }
        let Some(Account(buckets)) = self.accounts.get(&owner) else { return Ok(()) };
        let lacks = |cost: &&Cost| {
            let has = |pace| buckets[cost.0 as usize].has_tokens(pace, cost.1, now_ns);
            !self.paces.of(**cost).is_none_or(has)
        };
        costs.iter().find(lacks).map_or(Ok(()), |(expense, _)| Err(*expense))
    }

    /// Takes what a request costs from an owner's account. A lookup, if any of the costs has a limit.
    pub fn spend(&mut self, owner: Owner, costs: &[Cost], now_ns: u64) {
        if !self.paces.limit(costs) {
            return;
        }
        if !self.accounts.contains_key(&owner) {
            self.make_room(now_ns);
            self.queue.push_back(owner);
        }
        let Account(buckets) = self.accounts.entry(owner).or_default();
        for cost in costs {
            if let Some(pace) = self.paces.of(*cost) {
                buckets[cost.0 as usize].spend_tokens(pace, cost.1, now_ns);
            }
        }
    }

    /// Drops accounts whose buckets are full again, in the order of the queue and up to the first that is not: at most
    /// [`TURN_ACCOUNTS_DROPPED`]. Call it once a turn, so that owners that ask for nothing cost nothing. One lookup if none is full.
    pub fn drop_full(&mut self, now_ns: u64) {
        for _ in 0..TURN_ACCOUNTS_DROPPED {
            let Some(owner) = self.queue.pop_front() else { break };
            let is_full = |account: &Account| account.full_again_ns() <= now_ns;
            match self.accounts.get(&owner).is_none_or(is_full) {
                true => drop(self.accounts.remove(&owner)),
                false => {
                    self.queue.push_back(owner);
                    break;
                }
            }
        }
        let len = self.accounts.len().max(ACCOUNT_LOOKS);
        if self.accounts.capacity() > 4 * len {
            self.accounts.shrink_to(2 * len);
            self.queue.shrink_to(2 * len);
        }
    }

    /// Drops the account of an owner that will not come back.
    pub fn forget(&mut self, owner: Owner) {
        self.accounts.remove(&owner);
    }

    /// How many owners have an account.
    pub fn len(&self) -> usize {
        self.accounts.len()
    }

    /// Whether no owner has an account.
    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// Bytes allocated for accounts.
    pub fn memory_bytes(&self) -> usize {
        self.accounts.capacity() * size_of::<(Owner, Account)>() + self.queue.capacity() * size_of::<Owner>()
    }

    /// Drops accounts whose buckets are full again among the next few, and one that is not if there are too many.
    fn make_room(&mut self, now_ns: u64) {
        // The one of them that is full soonest. It is not in the queue meanwhile.
        let mut soonest: Option<(u64, Owner)> = None;
        for _ in 0..ACCOUNT_LOOKS.min(self.queue.len()) {
            let Some(owner) = self.queue.pop_front() else { break };
            let Some(full_again_ns) = self.accounts.get(&owner).map(Account::full_again_ns) else { continue };
            if full_again_ns <= now_ns {
                self.accounts.remove(&owner);
                continue;
            }
            let later = match soonest {
                Some((before_ns, _)) if before_ns <= full_again_ns => Some(owner),
                _ => soonest.replace((full_again_ns, owner)).map(|(_, before)| before),
            };
            self.queue.extend(later);
        }
        let Some((_, owner)) = soonest else { return };
        if self.accounts.len() < self.accounts_max {
            self.queue.push_back(owner);
        } else {
            self.accounts.remove(&owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const ONE: [Cost; 1] = [(Expense::Ticks, 1)];

    /// Accounts of which each owner may spend ten ticks at once, then ten a second, and any number of bytes.
    fn accounts(accounts_max: usize) -> Accounts<u32> {
        let mut accounts = Accounts::new(accounts_max);
        accounts.set_paces(Paces::new(|expense| match expense {
            Expense::Ticks => Pace::new(10, 1),
            Expense::History => Pace::new(1, 1),
            _ => None,
        }));
        accounts
    }

    /// Spends until nothing is left. Returns how much there was.
    fn spend_all(accounts: &mut Accounts<u32>, owner: u32, now_ns: u64) -> usize {
        let mut spent = 0;
        while accounts.admits(owner, &ONE, now_ns).is_ok() {
            accounts.spend(owner, &ONE, now_ns);
            spent += 1;
        }
        spent
    }

    #[test]
    fn each_owner_has_its_own_account_and_only_limited_expenses_make_one() {
        let mut accounts = accounts(100);
        accounts.spend(1, &[(Expense::TickBytes, 1 << 40), (Expense::Ticks, 0)], SECOND);
        assert!(accounts.is_empty());
        assert_eq!(spend_all(&mut accounts, 1, SECOND), 10);
        assert_eq!(spend_all(&mut accounts, 2, SECOND), 10);
        assert_eq!(accounts.len(), 2);
        let both = [(Expense::History, 1), (Expense::Ticks, 1)];
        assert_eq!(accounts.admits(1, &both, SECOND), Err(Expense::Ticks));
        assert_eq!(accounts.admits(3, &both, SECOND), Ok(()));
        accounts.forget(1);
        assert_eq!((accounts.len(), spend_all(&mut accounts, 1, SECOND)), (1, 10));
    }

    #[test]
    fn accounts_that_are_full_again_are_dropped_as_new_ones_come() {
        let mut accounts = accounts(1 << 20);
        for n in 0..100_000 {
            // Each spends one tick, which is back after 100 ms: a hundred owners later.
            accounts.spend(n, &ONE, u64::from(n) * SECOND / 1_000);
            assert!(accounts.len() <= 120 && accounts.queue.len() <= 120, "{}", accounts.len());
        }
    }

    #[test]
    fn owners_that_ask_for_nothing_cost_nothing_once_their_buckets_are_full() {
        let mut accounts = accounts(1 << 20);
        for n in 0..100_000 {
            accounts.spend(n, &ONE, SECOND);
        }
        assert_eq!(spend_all(&mut accounts, 7, SECOND), 9, "it has spent one");
        accounts.drop_full(SECOND);
        assert_eq!(accounts.len(), 100_000, "none is full yet");
        (0..200).for_each(|_| accounts.drop_full(SECOND + SECOND / 2));
        assert_eq!((accounts.len(), accounts.queue.len()), (1, 1), "the one with a debt stays");
        assert!(accounts.memory_bytes() < 8 << 10, "{}", accounts.memory_bytes());
        assert_eq!(spend_all(&mut accounts, 7, SECOND + SECOND / 2), 5);
    }

    #[test]
    fn a_full_table_drops_the_smallest_debt_and_keeps_the_largest() {
        let mut accounts = accounts(64);
        assert_eq!(spend_all(&mut accounts, 0, SECOND), 10);
        // Ten thousand other owners, of which each spends one tick.
        for n in 1..10_000 {
            accounts.spend(n, &ONE, SECOND);
            assert!(accounts.len() <= 64 && accounts.queue.len() <= 64);
        }
        assert_eq!(spend_all(&mut accounts, 0, SECOND), 0, "its debt has not been forgotten");
        assert_eq!(spend_all(&mut accounts, 0, SECOND + SECOND / 2), 5);
    }

    #[test]
    fn an_account_is_in_the_queue_once_however_often_it_is_dropped() {
        let mut accounts = accounts(4);
        for n in 0..10_000 {
            accounts.spend(n % 7, &ONE, SECOND);
            assert!(accounts.queue.len() == accounts.len() && accounts.len() <= 4);
        }
    }
}
