//! The subscriptions of one session, by pattern.

use std::ops::Deref;

use crate::fanout::Subscription;

/// A session's subscriptions, sorted by entry: most sessions have one, which needs no allocation. 48 bytes.
#[derive(Debug)]
pub struct Subscriptions(Inner);

#[derive(Debug)]
enum Inner {
    One(Subscription),
    Many(Vec<Subscription>),
}

const _: () = assert!(size_of::<Subscriptions>() == 48, "the docs of Subscriptions say how large it is");

impl Default for Subscriptions {
    fn default() -> Self {
        Subscriptions(Inner::Many(Vec::new()))
    }
}

impl Deref for Subscriptions {
    type Target = [Subscription];

    fn deref(&self) -> &[Subscription] {
        match &self.0 {
            Inner::One(one) => std::slice::from_ref(one),
            Inner::Many(many) => many,
        }
    }
}

impl Subscriptions {
    /// The subscription to an entry's pattern. O(log subscriptions).
    pub fn to(&self, entry: u32) -> Option<&Subscription> {
        let at = self.at(entry).ok()?;
        self.get(at)
    }

    /// The mutable subscription to an entry's pattern. O(log subscriptions).
    pub fn to_mut(&mut self, entry: u32) -> Option<&mut Subscription> {
        let at = self.at(entry).ok()?;
        match &mut self.0 {
            Inner::One(one) => Some(one),
            Inner::Many(many) => many.get_mut(at),
        }
    }

    /// Adds a subscription to a pattern that the session is not subscribed to.
    pub fn add(&mut self, subscription: Subscription) {
        let at = self.at(subscription.entry);
        debug_assert!(at.is_err(), "a session holds a pattern once");
        let (Ok(at) | Err(at)) = at;
        match &mut self.0 {
            Inner::Many(many) if many.is_empty() => self.0 = Inner::One(subscription),
            Inner::Many(many) => many.insert(at, subscription),
            Inner::One(one) => {
                let mut many = vec![*one];
                many.insert(at, subscription);
                self.0 = Inner::Many(many);
            }
        }
    }

    /// Removes the subscription to an entry's pattern.
    pub fn take(&mut self, entry: u32) -> Option<Subscription> {
        let at = self.at(entry).ok()?;
        match &mut self.0 {
            Inner::One(_) => self.pop(),
            Inner::Many(many) => Some(many.remove(at)),
        }
    }

    /// Removes the last subscription.
    pub fn pop(&mut self) -> Option<Subscription> {
        match &mut self.0 {
            Inner::Many(many) => many.pop(),
            Inner::One(one) => {
                let one = *one;
                self.0 = Inner::Many(Vec::new());
                Some(one)
            }
        }
    }

    /// Bytes of heap memory.
    pub fn heap_bytes(&self) -> usize {
        match &self.0 {
            Inner::One(_) => 0,
            Inner::Many(many) => many.capacity() * size_of::<Subscription>(),
        }
    }

    /// Index of the subscription to an entry's pattern, or where to insert it.
    fn at(&self, entry: u32) -> Result<usize, usize> {
        self.binary_search_by_key(&entry, |held| held.entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fanout::StartFrom;
    use tickcast_proto::subscription::Delivery;

    #[test]
    fn subscriptions_stay_sorted_whether_one_or_many() {
        let mut subscriptions = Subscriptions::default();
        let add = |subscriptions: &mut Subscriptions, entry| {
            subscriptions.add(Subscription::new(entry, Delivery::default(), StartFrom::Live));
        };
        let entries = |subscriptions: &Subscriptions| -> Vec<u32> {
            subscriptions.iter().map(|held| held.entry).collect()
        };
        add(&mut subscriptions, 7);
        assert_eq!((entries(&subscriptions), subscriptions.heap_bytes()), (vec![7], 0));
        assert!(subscriptions.take(6).is_none() && subscriptions.to(6).is_none());
        assert_eq!(subscriptions.take(7).map(|held| held.entry), Some(7));
        assert_eq!((subscriptions.len(), subscriptions.heap_bytes()), (0, 0));
        for entry in [7, 3, 9, 5] {
            add(&mut subscriptions, entry);
        }
        assert_eq!(entries(&subscriptions), [3, 5, 7, 9]);
        subscriptions.to_mut(5).unwrap().position = Some(1);
        assert_eq!(subscriptions.to(5).unwrap().position, Some(1));
        assert_eq!(subscriptions.take(7).map(|held| held.entry), Some(7));
        assert_eq!(subscriptions.pop().map(|held| held.entry), Some(9));
        assert_eq!(entries(&subscriptions), [3, 5]);
    }
}
