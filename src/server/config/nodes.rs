//! This server among several that serve the same topics.

use super::Checks;
use crate::limits::{NODE_BYTES_MAX, NODES_MAX};
use tickcast_core::config::Nodes;

impl Checks<'_> {
    /// What NODES tells clients.
    pub(super) fn nodes(&mut self) -> Nodes {
        let server = &self.settings.tables.server;
        let (id, addresses) = (server.node.clone().unwrap_or_default(), server.node_address.clone());
        if !id.is_empty() && !is_name(&id) {
            let text =
                format!("must be 1 to {NODE_BYTES_MAX} characters of A-Z, a-z, 0-9, \".\", \"-\" and \"_\"");
            self.refuse("server.node", text);
        }
        if addresses.len() > NODES_MAX {
            self.refuse("server.node_address", format!("{}: at most {NODES_MAX}", addresses.len()));
        }
        for address in &addresses {
            let is_reachable = !address.starts_with("unix:") && address.len() <= NODE_BYTES_MAX;
            if !is_reachable || tickcast_client::Address::parse(address).is_err() {
                let text = format!(
                    "{address}: must be HOST:PORT, tls://HOST:PORT, ws://HOST:PORT/ws or wss://HOST:PORT/ws"
                );
                self.refuse("server.node_address", text);
            }
        }
        Nodes { id: id.into(), addresses: addresses.into_iter().map(String::into).collect() }
    }
}

fn is_name(text: &str) -> bool {
    (1..=NODE_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
}
