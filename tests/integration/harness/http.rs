//! One HTTP request per connection, as curl does it.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use super::GUARD;

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Sends a request on a connection of its own.
pub fn request(address: SocketAddr, method: &str, path: &str) -> Answer {
    let mut stream = TcpStream::connect_timeout(&address, GUARD).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunked(body) } else { body.to_owned() };
    Answer { status, head: head.to_owned(), body }
}

fn unchunked(mut rest: &str) -> String {
    let mut whole = String::new();
    while let Some((len, after)) = rest.split_once("\r\n") {
        let len = usize::from_str_radix(len, 16).unwrap();
        whole.push_str(&after[..len]);
        rest = &after[(len + 2).min(after.len())..];
    }
    whole
}

/// [`get`], repeated until all shards have answered: on a busy machine one may be late.
pub fn get_of_all_shards(address: SocketAddr, path: &str) -> Answer {
    let mut answer = Answer { status: 0, head: String::new(), body: String::new() };
    super::eventually("all shards answer", || {
        answer = request(address, "GET", path);
        let is_missing = |line: &str| line.starts_with("tickcast_shard_answered{") && line.ends_with(" 0");
        let is_partial = match path.starts_with("/metrics") {
            true => answer.body.lines().any(is_missing),
            false => answer.body.contains("\"unanswered\":[") && !answer.body.contains("\"unanswered\":[]"),
        };
        !is_partial
    });
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer
}

/// Sends a GET, which must be answered with 200.
pub fn get(address: SocketAddr, path: &str) -> Answer {
    let answer = request(address, "GET", path);
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer
}
