//! Where a reconnecting client connects to: in turn the address that the caller gave, and those that a server has named.

use crate::{Address, ConnectOptions, address::UNIX_PREFIX};
use tickcast_proto::limits::{NODE_BYTES_MAX, NODES_MAX};

/// Options of a connection to one of the addresses. If they name the caller's host to the server, they name the node's.
pub(super) fn options_for(address: &Address, first: &Address, options: &ConnectOptions) -> ConnectOptions {
    let mut options = options.clone();
    if options.host == first.host {
        options.host.clone_from(&address.host);
    }
    options
}

/// The address of a dial, which is the caller's or a node's.
pub(super) fn dialed(url: &str, first: &Address) -> Address {
    match Address::parse(url) {
        Ok(other) if other.host != first.host => Address { encoding: first.encoding, ..other },
        _ => first.clone(),
    }
}

/// The addresses, and whose turn it is.
#[derive(Debug)]
pub(super) struct Addresses {
    /// The caller's, then the others. Bound: [`NODES_MAX`] others.
    all: Vec<Address>,
    /// Index of the last one that was tried.
    at: usize,
}

impl Addresses {
    /// Only the caller's, which has just been tried.
    pub(super) fn new(first: Address) -> Addresses {
        Addresses { all: vec![first], at: 0 }
    }

    /// The caller's.
    pub(super) fn first(&self) -> &Address {
        &self.all[0]
    }

    /// The one to try next.
    pub(super) fn next(&mut self) -> &Address {
        self.at = (self.at + 1) % self.all.len();
        &self.all[self.at]
    }

    /// The one to try next; `None`: the caller's.
    pub(super) fn next_other(&mut self) -> Option<&Address> {
        self.next();
        self.all.get(self.at).filter(|_| self.at > 0)
    }

    /// Replaces the others by those of a server, separated by spaces. Ignores addresses of other transports than the caller's (all,
    /// if that is a Unix socket: what goes through it may not go over a network), those longer than [`NODE_BYTES_MAX`], and those
    /// beyond [`NODES_MAX`]. The path stays the caller's, because it may hold patterns and the client's identity.
    pub(super) fn set_others(&mut self, named: &str) {
        let current = self.all[self.at].host.clone();
        self.all.truncate(1);
        let Address { host, path, encoding, is_tls } = self.all[0].clone();
        if host.starts_with(UNIX_PREFIX) {
            self.at = 0;
            return;
        }
        let others = named.split(' ').take(NODES_MAX).filter(|text| text.len() <= NODE_BYTES_MAX);
        let others = others.filter_map(|text| Address::parse(text).ok());
        let others = others.filter(|other| {
            other.is_tls == is_tls
                && other.path.is_empty() == path.is_empty()
                && other.host != host
                && !other.host.starts_with(UNIX_PREFIX)
        });
        self.all.extend(others.map(|other| Address { path: path.clone(), encoding, ..other }));
        self.at = self.all.iter().position(|address| address.host == current).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(first: &str, named: &str) -> Addresses {
        let mut addresses = Addresses::new(Address::parse(first).unwrap());
        addresses.set_others(named);
        addresses
    }

    fn turns(mut addresses: Addresses, count: usize) -> Vec<String> {
        (0..count).map(|_| addresses.next().host.clone()).collect()
    }

    #[test]
    fn each_attempt_goes_to_the_next_node() {
        assert_eq!(turns(addresses("a:1", ""), 2), ["a:1", "a:1"]);
        assert_eq!(turns(addresses("a:1", "a:1 b:1 c:1"), 4), ["b:1", "c:1", "a:1", "b:1"]);
    }

    #[test]
    fn a_new_list_goes_on_after_the_node_that_sent_it() {
        let mut addresses = addresses("a:1", "b:1");
        assert_eq!(addresses.next().host, "b:1");
        addresses.set_others("b:1 c:1");
        assert_eq!(turns(addresses, 2), ["c:1", "a:1"]);
    }

    #[test]
    fn only_nodes_of_the_same_transport_are_tried() {
        let named = "b:1 tls://c:1 ws://d:1 wss://e:1/ws ws://f:1/other unix:/g :";
        assert_eq!(turns(addresses("a:1", named), 2), ["b:1", "a:1"]);
        assert_eq!(turns(addresses("tls://a:1", named), 2), ["c:1", "a:1"]);
        assert_eq!(turns(addresses("unix:/a", named), 2), ["unix:/a", "unix:/a"]);
        assert_eq!(turns(addresses("wss://a:1/ws", named), 2), ["e:1", "a:1"]);
        let mut sockets = addresses("ws://a:1/ws?client=me", named);
        let next = sockets.next();
        assert_eq!((&*next.host, &*next.path), ("d:1", "/ws?client=me"));
        assert_eq!(turns(sockets, 2), ["f:1", "a:1"]);
    }

    #[test]
    fn a_longer_list_than_the_bound_is_cut() {
        let named: Vec<String> = (0..10 * NODES_MAX).map(|n| format!("n{n}:1")).collect();
        assert_eq!(addresses("a:1", &named.join(" ")).all.len(), 1 + NODES_MAX);
    }
}
