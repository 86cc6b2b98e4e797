//! Publishes of lines that arrive without end: `?answer=summary`.

use serde_json::{Value, json};

use super::tests::{CLIENT, driver, get, parse};
use crate::{metrics::counters::Counter, testing::Driver};
use tickcast_proto::limits::HTTP_BODY_BYTES_MAX;

/// Sends a publish of lines in pieces, and returns its answer once there is one.
fn publish_lines(driver: &mut Driver, headers: &str, body: &[u8], piece: usize) -> (u16, Value) {
    let head = format!(
        "POST /v1/publish?answer=summary HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n{headers}\r\n"
    );
    let mut bytes = Vec::new();
    for piece in head.as_bytes().chunks(piece).chain(body.chunks(piece)) {
        driver.receive(CLIENT, piece);
        driver.turn();
        bytes.extend(driver.take_sent(CLIENT));
    }
    for _ in 0..200 {
        driver.turn();
        bytes.extend(driver.take_sent(CLIENT));
    }
    let (status, _, body) = parse(&bytes);
    (status, serde_json::from_str(&body).unwrap())
}

#[test]
fn lines_without_end_are_published_while_they_arrive_and_answered_with_a_summary() {
    let lines: Vec<String> = (1..=5_000).map(|n| format!("{{\"topic\":\"a.b\",\"data\":{n}}}\n")).collect();
    for count in [0, 1, 1_024, 2_048] {
        let text = lines[..count].concat();
        let answer = publish_lines(
            &mut driver(),
            &format!("Content-Length: {}\r\n", text.len()),
            text.as_bytes(),
            1 << 20,
        );
        assert_eq!(answer, (200, json!({"published":count,"failed":0,"failures":[]})));
    }
    let text = lines.concat();
    assert!(text.len() > 2 * HTTP_BODY_BYTES_MAX);
    for piece in [997, 1 << 20] {
        let mut driver = driver();
        let length = format!("Content-Length: {}\r\n", text.len());
        let answer = publish_lines(&mut driver, &length, text.as_bytes(), piece);
        assert_eq!(answer, (200, json!({"published":5_000,"failed":0,"failures":[]})));
        let mut chunked = Vec::new();
        for chunk in text.as_bytes().chunks(1_234) {
            chunked.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
            chunked.extend_from_slice(chunk);
            chunked.extend_from_slice(b"\r\n");
        }
        chunked.extend_from_slice(b"0\r\n\r\n");
        let answer = publish_lines(&mut driver, "Transfer-Encoding: chunked\r\n", &chunked, piece);
        assert_eq!(answer, (200, json!({"published":5_000,"failed":0,"failures":[]})));
        let (_, found) = get(&mut driver, "/v1/latest?topics=a.b");
        assert_eq!(
            (&found["topics"][0]["sequence"], &found["topics"][0]["ticks"][0]["data"]),
            (&json!(10_000), &json!(5_000))
        );
    }
}

#[test]
fn a_line_is_published_before_the_next_one_arrives() {
    let mut driver = driver();
    let head = "POST /v1/publish?answer=summary HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n\
                Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n";
    driver.receive(CLIENT, head.as_bytes());
    driver.turn();
    assert_eq!(driver.take_sent(CLIENT), b"HTTP/1.1 100 Continue\r\n\r\n");
    for n in 1..=3_u64 {
        let line = format!("{{\"topic\":\"a\",\"data\":{n}}}\n");
        driver.receive(CLIENT, format!("{:x}\r\n{line}\r\n", line.len()).as_bytes());
        // As long as a connection may be idle, and far longer than a request may take otherwise.
        driver.pass(30_000_000_000);
        assert_eq!(driver.shard.counters.value(Counter::TicksSequenced), n);
        assert_eq!(driver.take_sent(CLIENT), b"");
    }
    driver.receive(CLIENT, b"0\r\n\r\n");
    driver.turn();
    let (status, _, body) = parse(&driver.take_sent(CLIENT));
    assert_eq!((status, body.as_str()), (200, "{\"published\":3,\"failed\":0,\"failures\":[]}\n"));
}

#[test]
fn a_summary_names_what_failed_and_what_ended_the_request() {
    let lines = |bad: &str| {
        let good = "{\"topic\":\"a\",\"data\":1}\n";
        let body = [good.repeat(2), bad.to_owned() + "\n", good.to_owned()].concat();
        (format!("Content-Length: {}\r\n", body.len()), body)
    };
    let (length, body) = lines("{\"topic\":\"a..b\",\"data\":1}");
    let (status, answer) = publish_lines(&mut driver(), &length, body.as_bytes(), 10);
    assert_eq!((status, &answer["published"], &answer["failed"]), (200, &json!(3), &json!(1)));
    assert_eq!(
        (&answer["failures"][0]["tick"], &answer["failures"][0]["error"]["code"]),
        (&json!(3), &json!(101))
    );
    let (length, body) = lines("{\"topic\":7}");
    let (status, answer) = publish_lines(&mut driver(), &length, body.as_bytes(), 10);
    assert_eq!((status, &answer["published"]), (400, &json!(2)), "{answer}");
    assert!(answer["error"]["text"].as_str().unwrap().starts_with("tick 3: "), "{answer}");
    // None published.
    let body = "{\"topic\":\"a..b\",\"data\":1}";
    let (status, answer) =
        publish_lines(&mut driver(), &format!("Content-Length: {}\r\n", body.len()), body.as_bytes(), 10);
    assert_eq!((status, &answer["published"], &answer["error"]["code"]), (400, &json!(0), &json!(101)));
    // The client stops sending in the middle.
    let mut driver = driver();
    let head = "POST /v1/publish?answer=summary HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: 999\r\n\r\n";
    driver.receive(CLIENT, [head, "{\"topic\":\"a\",\"data\":1}\n"].concat().as_bytes());
    driver.pass(200_000_000_000);
    let (status, _, body) = parse(&driver.take_sent(CLIENT));
    assert_eq!(status, 504, "{body}");
    assert!(body.contains("\"published\":1,"), "{body}");
}
