//! Requests to each server, and parsing of its answers.

use clap::Parser;

use super::*;
use crate::options::Options;

fn publisher(protocol: &str) -> Publisher {
    let line = format!("feed --server 127.0.0.1:9 --protocol {protocol}");
    let plan = Plan::new(Options::try_parse_from(line.split_whitespace()).unwrap()).unwrap();
    let mut publisher = Publisher::open(&plan);
    let opening = publisher.output().len();
    publisher.output_written(opening);
    publisher
}

fn request(protocol: &str) -> String {
    let mut publisher = publisher(protocol);
    publisher.publish("sim.7", 5, b"{}").unwrap();
    String::from_utf8(publisher.output().to_vec()).unwrap()
}

/// Whether all ticks were answered, and how many failed, for `answers` split at every byte; without repeats.
fn answered(protocol: &str, published: usize, answers: &[u8]) -> Vec<(bool, u64)> {
    let mut outcomes: Vec<_> = (0..=answers.len())
        .map(|split| {
            let mut publisher = publisher(protocol);
            (0..published).for_each(|_| publisher.publish("sim.7", 5, b"{}").unwrap());
            publisher.finish().unwrap();
            publisher.handle_bytes(&answers[..split]).unwrap();
            publisher.handle_bytes(&answers[split..]).unwrap();
            assert!(publisher.input.is_empty(), "{split}");
            (publisher.is_answered(), publisher.failed)
        })
        .collect();
    outcomes.dedup();
    outcomes
}

fn refused(protocol: &str, answer: &[u8]) -> String {
    publisher(protocol).handle_bytes(answer).unwrap_err()
}

#[test]
fn each_server_gets_its_own_request() {
    assert_eq!(request("nats"), "PUB sim.7 2\r\n{}\r\n");
    assert_eq!(request("redis"), "*3\r\n$7\r\nPUBLISH\r\n$5\r\nsim.7\r\n$2\r\n{}\r\n");
    assert_eq!(
        request("nchan"),
        "POST /pub?id=sim.7 HTTP/1.1\r\nHost: 127.0.0.1:9\r\nContent-Length: 2\r\n\r\n{}"
    );
}

#[test]
fn answers_are_counted_at_every_split() {
    assert_eq!(answered("redis", 3, b":0\r\n:12\r\n:1\r\n"), [(true, 0)]);
    assert_eq!(answered("redis", 3, b":0\r\n-ERR no\r\n"), [(false, 1)]);
    assert_eq!(answered("nats", 1, b"INFO {}\r\nPING\r\nPONG\r\n"), [(true, 0)]);
    assert_eq!(answered("nats", 1, b"-ERR 'Maximum Payload'\r\n"), [(false, 1)]);
    let created = "HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\nhello";
    let accepted = "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n";
    let forbidden = "HTTP/1.1 403 Forbidden\r\n\r\n";
    assert_eq!(answered("nchan", 2, [created, accepted].concat().as_bytes()), [(true, 0)]);
    assert_eq!(answered("nchan", 3, [created, forbidden].concat().as_bytes()), [(false, 1)]);
}

#[test]
fn invalid_answers_are_errors() {
    for (protocol, answer) in [
        ("redis", &b"INFO {}\r\n"[..]),
        ("redis", b"HTTP/1.1 400 Bad Request\r\n"),
        ("nats", b":1\r\n"),
        ("nchan", b":1\r\n"),
        ("nchan", b"HTTP/1.1 201 Created\r\nContent-Length: x\r\n\r\n"),
        ("nchan", b"HTTP/1.1 201 Created\r\nContent-Length: 99999\r\n\r\n"),
        ("nchan", b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("tickcast", &[0xff; 64]),
    ] {
        assert!(!refused(protocol, answer).is_empty(), "{protocol} {}", String::from_utf8_lossy(answer));
    }
    assert_eq!(refused("nats", &[b'I'; LINE_BYTES_MAX + 1]), "the server sent an endless line");
    let endless = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'a'; HTTP_HEAD_BYTES_MAX_DEFAULT]].concat();
    assert_eq!(refused("nchan", &endless), "the server sent an endless HTTP head");
}

#[test]
fn ticks_are_refused_while_too_much_is_unwritten_or_unanswered() {
    let payload = [b'x'; 10_000];
    for protocol in ["tickcast", "nats", "redis", "nchan"] {
        let mut publisher = publisher(protocol);
        let mut published = 0;
        while !publisher.is_full() {
            publisher.publish("sim.7", 5, &payload).unwrap();
            published += 1;
        }
        assert_eq!(published, UNWRITTEN_BYTES_MAX.div_ceil(10_000), "{protocol}");
    }
    let mut publisher = publisher("nchan");
    for _ in 0..UNANSWERED_MAX {
        assert!(!publisher.is_full());
        publisher.publish("sim.7", 5, b"{}").unwrap();
        let waiting = publisher.output().len();
        publisher.output_written(waiting);
    }
    assert!(publisher.is_full(), "too many are unanswered");
    publisher.handle_bytes(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").unwrap();
    assert!(!publisher.is_full());
}
