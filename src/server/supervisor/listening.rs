//! Opens the configured listeners and formats their addresses.

use crate::{
    config::listener::{Address, Kind, Listener, open_to_all},
    error::StartupError,
    limits::LISTENERS_MAX,
    process::activation::Passed,
    transport::listener::{self, Listening, SocketFile},
};

/// The open listeners.
pub(super) struct Opened {
    /// The admin listener.
    pub(super) admin: Option<Listening>,
    /// The listeners for clients, in the order of the configuration.
    pub(super) clients: Vec<Listening>,
    /// The files of Unix sockets, which are removed when this is dropped.
    pub(super) files: Vec<SocketFile>,
    /// The addresses in use, in the order of the configuration.
    pub(super) addresses: Vec<(Kind, Address)>,
}

/// The listeners of the configuration, then one with the options of the first of its kind for each further passed socket.
///
/// # Errors
/// [`StartupError::Passed`] if there are too many.
pub(super) fn with_passed(configured: &[Listener], passed: &Passed) -> Result<Vec<Listener>, StartupError> {
    let mut listeners = configured.to_vec();
    for kind in passed.further() {
        let Some(first) = configured.iter().find(|listener| listener.kind == kind) else { continue };
        let named =
            format!("{}, further passed socket {}", first.named, listeners.len() - configured.len() + 1);
        listeners.push(Listener { named, ..first.clone() });
    }
    match listeners.len() {
        ..=LISTENERS_MAX => Ok(listeners),
        all => Err(StartupError::Passed(format!(
            "with them, there are {all} listeners, the limit is {LISTENERS_MAX}"
        ))),
    }
}

/// Opens every listener; the last `further` are for passed sockets only. Otherwise a passed socket takes the place of the first
/// listener of its kind.
///
/// # Errors
/// [`StartupError::Listen`]; [`StartupError::Passed`] for a passed socket that cannot be used, that no listener takes, or that
/// other machines can reach although the configuration does not define who may use it.
pub(super) fn open(
    listeners: &[Listener],
    further: usize,
    shards: u16,
    mut passed: Passed,
) -> Result<Opened, StartupError> {
    let mut opened = Opened { admin: None, clients: Vec::new(), files: Vec::new(), addresses: Vec::new() };
    for (at, wanted) in listeners.iter().enumerate() {
        let shards = if wanted.kind == Kind::Admin { 1 } else { shards };
        let is_first = listeners[..at].iter().all(|before| before.kind != wanted.kind);
        let takes = is_first || at >= listeners.len() - further;
        let socket = if takes { passed.take_for(wanted.kind) } else { None };
        let mut listening = listener::open(wanted, socket, shards)?;
        // The addresses in the configuration have been checked, but a passed socket may have another.
        if !(wanted.is_guarded || listening.address.is_local()) {
            return Err(StartupError::Passed(open_to_all(wanted.kind, &listening.address)));
        }
        opened.files.extend(listening.take_file());
        opened.addresses.push((listening.kind, listening.address.clone()));
        match listening.kind {
            Kind::Admin => opened.admin = Some(listening),
            Kind::Native | Kind::Http => opened.clients.push(listening),
        }
    }
    match passed.first_left() {
        Some(unclaimed) => Err(StartupError::Passed(unclaimed_socket(unclaimed))),
        None => Ok(opened),
    }
}

/// The addresses in use as words that scripts read: `tcp=`, `http=`, `admin=` of the first listeners, the number of shards,
/// then every other listener by its kind, such as `native=unix:/run/tickcast.sock`.
pub fn words(addresses: &[(Kind, Address)], shards: u16) -> String {
    let is_first_tcp = |at: usize| {
        let (kind, address) = &addresses[at];
        let is_tcp = |(has, address): &(Kind, Address)| has == kind && address.tcp().is_some();
        *kind == Kind::Admin || address.tcp().is_some() && !addresses[..at].iter().any(is_tcp)
    };
    let (first, others): (Vec<usize>, Vec<usize>) = (0..addresses.len()).partition(|at| is_first_tcp(*at));
    let of_kind = |kind: Kind| first.iter().find(|at| addresses[**at].0 == kind);
    let mut words: Vec<String> = Kind::ALL
        .into_iter()
        .filter_map(|kind| of_kind(kind).map(|at| format!("{}={}", kind.option(), addresses[*at].1)))
        .collect();
    words.push(format!("shards={shards}"));
    words.extend(others.into_iter().map(|at| format!("{}={}", addresses[at].0.name(), addresses[at].1)));
    words.join(" ")
}

/// Describes a passed socket that no listener takes. Nothing would accept its connections, and its clients would wait forever.
fn unclaimed_socket(kind: Kind) -> String {
    let name = kind.option();
    let remedy = match kind {
        Kind::Admin => "leave out --no-admin, or add [[listener]] kind = \"admin\" to the file",
        Kind::Native => "add [[listener]] kind = \"native\" to the file",
        Kind::Http => "add [[listener]] kind = \"http\" to the file",
    };
    format!("{name:?}: there is no {} listener; {remedy}, or disable its socket unit", kind.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_tcp_address_of_each_kind_keeps_its_word_and_the_others_follow() {
        let of = |kind: Kind, address: &str| (kind, address.parse::<Address>().unwrap());
        let usual =
            [of(Kind::Native, "127.0.0.1:1"), of(Kind::Http, "127.0.0.1:2"), of(Kind::Admin, "127.0.0.1:3")];
        assert_eq!(words(&usual, 4), "tcp=127.0.0.1:1 http=127.0.0.1:2 admin=127.0.0.1:3 shards=4");
        assert_eq!(words(&usual[..2], 4), "tcp=127.0.0.1:1 http=127.0.0.1:2 shards=4");
        let many = [
            of(Kind::Admin, "unix:/a"),
            of(Kind::Native, "unix:/n"),
            of(Kind::Native, "[::1]:1"),
            of(Kind::Native, "[::1]:2"),
            of(Kind::Http, "unix:/h"),
        ];
        assert_eq!(
            words(&many, 1),
            "tcp=[::1]:1 admin=unix:/a shards=1 native=unix:/n native=[::1]:2 http=unix:/h"
        );
    }
}
