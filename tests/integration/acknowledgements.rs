//! Every acknowledgement is true: PUBLISHED, `subscribed`, and the exit status of `tickcast pub`.

use std::{collections::HashMap, process::Stdio};

use crate::harness::{
    GUARD, Server, beside_others,
    collector::{Collector, address},
    external::{External, Library},
    raw::Peer,
    tickcast,
};
use tickcast_client::{Client, ClientError, ConnectOptions, Event, PublishRequest};
use tickcast_proto::{ErrorCode, WireFormat, subscription::Position};

const ENCODINGS: [WireFormat; 3] =
    [WireFormat::TCP_NATIVE, WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON];

/// A client whose publishes are acknowledged.
fn publisher(server: &Server, encoding: WireFormat) -> Client {
    let address = address(server, encoding);
    let options = ConnectOptions { acknowledgements: true, ..address.connect_options() };
    Client::connect_with(&address, &options).unwrap()
}

fn publish(client: &mut Client, topic: &str, payload: &[u8]) -> Result<Position, ClientError> {
    let publish = PublishRequest { topic, payload, ..PublishRequest::default() };
    Ok(client.publish_acknowledged(publish, GUARD, |_| {})?.expect("the server acknowledges"))
}

#[test]
fn ticks_acknowledged_after_subscribed_arrive_with_the_acknowledged_sequence() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "4"]);
    // Shards choose among connections, so several publishers come from several shards.
    let mut publishers: Vec<Client> =
        ENCODINGS.into_iter().cycle().take(6).map(|encoding| publisher(&server, encoding)).collect();
    for round in 0..100 {
        // Topics that do not exist yet, of every home.
        let topics: Vec<String> = (0..4).map(|n| format!("r{round}.t{n}")).collect();
        let exact: Vec<&str> = topics.iter().map(String::as_str).collect();
        let wildcard = format!("r{round}.*");
        let patterns = if round % 2 == 0 { exact } else { vec![&*wildcard] };
        let collector = Collector::start(&server, ENCODINGS[round % 3], &patterns);
        let mut expected = HashMap::<&str, Vec<(u64, Vec<u8>)>>::new();
        for (n, publisher) in publishers.iter_mut().enumerate() {
            for topic in &topics {
                let payload = format!("{n}").into_bytes();
                let Position { sequence, .. } = publish(publisher, topic, &payload).unwrap();
                expected.entry(topic).or_default().push((sequence, payload));
            }
        }
        collector.wait_for(topics.len() * publishers.len());
        let got = collector.finish();
        for topic in &topics {
            assert_eq!(got.ticks[topic], expected[&**topic], "round {round}: {topic}");
            assert_eq!(got.ticks[topic][0].0, 1, "the first tick of the topic has arrived");
        }
    }
    drop(publishers);
    server.stop_cleanly();
}

#[test]
fn each_publish_of_a_pipeline_is_answered_once_accepted_or_refused() {
    const PUBLISHES: usize = 3_000;
    let _machine = beside_others();
    let server = Server::start(&["--shards", "4", "--topics-max", "40"]);
    for encoding in ENCODINGS {
        let mut client = publisher(&server, encoding);
        let (mut sent, mut answers) = (HashMap::new(), HashMap::new());
        let mut take = |event: Event<'_>, sent: &HashMap<u32, String>| match event {
            Event::Published { request, topic, sequence, .. } => {
                assert_eq!(topic, sent[&request]);
                assert_eq!(answers.insert(request, Some(sequence)), None, "one answer");
            }
            Event::Error { request, code, .. } => {
                assert_eq!(code, ErrorCode::TooManyTopics as u16);
                assert_eq!(answers.insert(request, None), None, "one answer");
            }
            _ => {}
        };
        for n in 0..PUBLISHES {
            let topic = format!("{}.{}", encoding.name(), n % 200);
            while client.connection().unacknowledged() == tickcast_client::PUBLISHES_UNACKNOWLEDGED_MAX {
                take(client.next_event(Some(GUARD)).unwrap().expect("an answer"), &sent);
            }
            let publish = PublishRequest { topic: &topic, payload: b"1", ..PublishRequest::default() };
            sent.insert(client.publish_buffered(publish).unwrap(), topic);
        }
        client.barrier(GUARD, |event| take(event, &sent)).unwrap();
        assert_eq!(answers.len(), PUBLISHES);
        let refused = answers.values().filter(|answer| answer.is_none()).count();
        assert!(refused > PUBLISHES / 2, "{refused} refused");
        client.close().unwrap();
    }
    server.stop_cleanly();
}

#[test]
fn every_pub_that_is_refused_exits_with_1_and_the_reason() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "4", "--topics-max", "4"]);
    let mut filler = publisher(&server, WireFormat::TCP_NATIVE);
    let accepted = (0..50).filter(|n| publish(&mut filler, &format!("j.{n}"), b"1").is_ok()).count();
    assert_eq!(accepted, 4, "one topic for each home");
    let tcp = server.tcp.to_string();
    let children: Vec<_> = (0..40)
        .map(|n| {
            let mut command = tickcast();
            command.args(["pub", &format!("odds.{n}"), "1", "--server", &tcp]);
            command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains("limit of topics") && errors.contains("code 104"), "{errors}");
    }
    drop(filler);
    server.stop_cleanly();
}

#[test]
fn a_half_closed_publisher_gets_the_answer_of_another_shard() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "4"]);
    for n in 0..20 {
        let mut peer = Peer::websocket(server.http, "/ws", "");
        peer.send_text(r#"{"op":"hello","features":["published"]}"#);
        assert!(peer.text().ends_with(r#","features":["published"]}"#));
        peer.send_text(&format!(r#"{{"op":"publish","id":7,"topic":"half.{n}","data":1}}"#));
        peer.shut_write();
        let answer = peer.text();
        assert!(
            answer.starts_with(&format!(r#"{{"op":"published","id":7,"topic":"half.{n}","epoch":"#))
                && answer.ends_with(r#","sequence":1}"#),
            "{answer}"
        );
    }
    server.stop_cleanly();
}

/// The output of `tests/clients/resume.mjs`: both topics go on after the position that `JSON.parse` has kept.
const RESUMED: &str = "d.x recovered true: 4 5\nd.y recovered true: 3\nend\n";

#[test]
fn a_node_client_resumes_after_a_cut_from_what_json_parse_gave_it() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "4"]);
    let node = External::run(Library::Ws, "resume", &[&server.http.to_string()]);
    assert_eq!(node.finish(), RESUMED);
    server.stop_cleanly();
}

#[test]
fn a_browser_resumes_after_a_cut_from_what_json_parse_gave_it() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "4"]);
    let browser = External::run(Library::Ws, "resume", &[&server.http.to_string(), &crate::page::browser()]);
    assert_eq!(browser.finish(), RESUMED);
    server.stop_cleanly();
}
