//! Several servers that tell their clients of each other.

use std::time::Duration;

use crate::harness::{Server, beside_others, http::get};
use tickcast_client::{Event, ReconnectingClient, StreamEvent};

const LONG: Duration = Duration::from_secs(60);

/// Connects to a server, and returns the client with the name of the node that it has reached and the addresses it was told.
fn connect(address: &str) -> (ReconnectingClient, String, String) {
    let mut client = ReconnectingClient::connect(address).unwrap();
    let (node, addresses) = next_nodes(&mut client);
    (client, node, addresses)
}

fn next_nodes(client: &mut ReconnectingClient) -> (String, String) {
    loop {
        match client.next_event(Some(LONG)).unwrap() {
            Some(StreamEvent::Event(Event::Nodes { node, addresses })) => {
                return (node.to_owned(), addresses.to_owned());
            }
            Some(_) => {}
            None => panic!("no announcement of the nodes"),
        }
    }
}

#[test]
fn a_client_that_loses_its_node_goes_on_at_another_one() {
    let _machine = beside_others();
    let second = Server::start(&["--node", "second"]);
    for (scheme, port) in [("", second.tcp), ("ws://", second.http)] {
        let address = format!("{scheme}{port}");
        let options = ["--node", "first", "--node-address", &address, "--reconnect-spread", "0"];
        let first = Server::start(&options);
        let metrics = get(first.admin.unwrap(), "/metrics").body;
        assert!(metrics.contains("tickcast_node_info{node=\"first\"} 1"), "{metrics}");
        let own = format!("{scheme}{}", if scheme.is_empty() { first.tcp } else { first.http });
        let (mut client, node, addresses) = connect(&own);
        assert_eq!((&*node, &*addresses), ("first", &*address));
        first.stop();
        assert_eq!(next_nodes(&mut client).0, "second", "{scheme}");
    }
}

#[test]
fn a_server_on_its_own_speaks_of_no_nodes() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let mut client = ReconnectingClient::connect(&server.tcp.to_string()).unwrap();
    let request = client.subscribe("a").unwrap();
    loop {
        match client.next_event(Some(LONG)).unwrap() {
            Some(StreamEvent::Event(Event::Subscribed { request: answered, .. })) if answered == request => {
                break;
            }
            Some(StreamEvent::Event(Event::Nodes { .. })) => panic!("it has no other"),
            Some(_) => {}
            None => panic!("no answer to the subscription"),
        }
    }
    assert!(!get(server.admin.unwrap(), "/metrics").body.contains("tickcast_node_info"));
}
