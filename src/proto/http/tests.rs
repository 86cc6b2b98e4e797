//! Requests as clients and intermediaries send them, by the right answers.

mod access_tests;

use super::*;
use crate::subscription::Policy;

const CONFIG: HttpConfig<'_> =
    HttpConfig { head_bytes_max: 1024, realtime_ns: 784_111_777_999_999_999, ..HttpConfig::WEBSOCKET };

fn step(bytes: &[u8], config: HttpConfig<'_>) -> Step<Answer> {
    Connection::default().step(bytes, &config)
}
/// The example in RFC 6455, section 1.3, with the path of the stream.
const REQUEST: &str = "GET /ws?topics=a.b,c.%3E HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: \
                       keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: \
                       dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn status(request: &str) -> u16 {
    match step(request.as_bytes(), CONFIG) {
        Step::Complete(_, Answer::Respond { status, .. }) => status,
        Step::Complete(_, Answer::Upgrade { .. }) => 101,
        Step::Complete(..) | Step::Partial => 0,
    }
}

#[test]
fn upgrade_request_selects_format_and_topics() {
    let request = format!("{REQUEST}Sec-WebSocket-Protocol: other, tickcast.v1.raw\r\n\r\nrest");
    let Step::Complete(used, Answer::Upgrade { response, target, .. }) = step(request.as_bytes(), CONFIG)
    else {
        panic!("not an upgrade")
    };
    assert_eq!(used, request.len() - 4);
    let response = String::from_utf8(response).unwrap().to_lowercase();
    assert!(response.starts_with("http/1.1 101 switching protocols\r\n"));
    assert!(response.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"));
    assert!(response.contains("sec-websocket-protocol: tickcast.v1.raw\r\n"));
    assert_eq!(
        target,
        Target::Stream {
            format: WireFormat::WEBSOCKET_RAW,
            inflates: false,
            patterns: vec!["a.b".into(), "c.>".into()],
            delivery: TickDelivery::default(),
            from: StartPosition::Live,
            resumed: Resumed::Nothing,
            client: String::new(),
            token: None,
        }
    );
}

#[test]
fn pattern_in_the_query_needs_no_escapes() {
    let request = format!("{}\r\n", REQUEST.replace("c.%3E", "c.>,*.d"));
    let Step::Complete(_, Answer::Upgrade { target, .. }) = step(request.as_bytes(), CONFIG) else {
        panic!("not an upgrade")
    };
    let patterns = vec!["a.b".into(), "c.>".into(), "*.d".into()];
    let client = String::new();
    let (format, delivery, from) = (WireFormat::WEBSOCKET_JSON, TickDelivery::default(), StartPosition::Live);
    assert_eq!(
        target,
        Target::Stream {
            format,
            inflates: false,
            patterns,
            client,
            delivery,
            from,
            resumed: Resumed::Nothing,
            token: None
        }
    );
}

#[test]
fn query_parameters_select_start_policy_and_rate() {
    let request = format!("{}\r\n", REQUEST.replace("c.%3E", "c&from=latest&policy=conflate&max_rate=5"));
    let Step::Complete(_, Answer::Upgrade { target, .. }) = step(request.as_bytes(), CONFIG) else {
        panic!("not an upgrade")
    };
    let client = String::new();
    let delivery = TickDelivery { policy: Some(Policy::Conflate), interval_us: 200_000 };
    let (format, patterns) = (WireFormat::WEBSOCKET_JSON, vec!["a.b".into(), "c".into()]);
    assert_eq!(
        target,
        Target::Stream {
            format,
            inflates: false,
            patterns,
            client,
            delivery,
            from: StartPosition::Latest,
            resumed: Resumed::Nothing,
            token: None
        }
    );
    for bad in ["from=1", "policy=x", "max_rate=0", "max_rate=NaN", "max_rate=x"] {
        let request = format!("{}\r\n", REQUEST.replace("topics=a.b,c.%3E", bad));
        assert_eq!(status(&request), 400, "{bad}");
    }
}

#[test]
fn identity_in_the_query_is_decoded_and_validated() {
    let answer = |query: &str| {
        let request = format!("{}\r\n", REQUEST.replace("topics=a.b,c.%3E", query));
        match step(request.as_bytes(), CONFIG) {
            Step::Complete(_, Answer::Upgrade { target: Target::Stream { client, .. }, .. }) => Ok(client),
            Step::Complete(_, Answer::Respond { response, status: 400, .. }) => {
                Err(String::from_utf8(response).unwrap())
            }
            _ => panic!("{query}"),
        }
    };
    assert_eq!(answer("client=a%20%26+%C3%A4&topics=b").unwrap(), "a &+ä");
    assert_eq!(answer("topics=b").unwrap(), "");
    for bad in ["client=", "client", "client=%FF", "client=%0A", "client=a&client=a"] {
        assert!(answer(bad).unwrap_err().contains("client"), "{bad}");
    }
    assert!(answer(&format!("client={}", "x".repeat(256))).unwrap_err().contains("256 bytes"));
}

#[test]
fn every_truncation_of_a_head_is_partial() {
    let request = format!("{REQUEST}\r\n");
    for len in 0..request.len() {
        assert_eq!(status(&request[..len]), 0, "{len}");
    }
    assert_eq!(status(&request), 101);
}

#[test]
fn list_headers_are_merged_over_lines_and_trimmed() {
    let connection =
        |lines: &str| status(&format!("{}\r\n", REQUEST.replace("Connection: keep-alive, Upgrade", lines)));
    for lines in [
        "Connection: Upgrade",
        "Connection: keep-alive,\tUpgrade",
        "Connection: Upgrade\r\nConnection: keep-alive",
        "Connection: keep-alive\r\nConnection:\t upgrade ,, x",
        "Connection:\r\nConnection: UPGRADE",
        "Connection: x\u{e9}, Upgrade",
        "Connection: Upgrade\r\nUpgrade: h2c",
    ] {
        assert_eq!(connection(lines), 101, "{lines:?}");
    }
    for lines in ["Connection: keep-alive", "Connection: keep-alive Upgrade", "Connection: Upgraded", "X: y"]
    {
        assert_eq!(connection(lines), 400, "{lines:?}");
    }
    let upgrade = |lines: &str| status(&format!("{}\r\n", REQUEST.replace("Upgrade: websocket", lines)));
    assert_eq!(upgrade("Upgrade: h2c,\tWebSocket"), 101);
    assert_eq!(upgrade("Upgrade: h2c\r\nUpgrade: websocket"), 101);
    assert_eq!(upgrade("Upgrade: h2c"), 426);
}

#[test]
fn empty_subprotocol_asks_for_json() {
    let chosen = |lines: &str| match step(format!("{REQUEST}{lines}\r\n").as_bytes(), CONFIG) {
        Step::Complete(_, Answer::Upgrade { response, target: Target::Stream { format, .. }, .. }) => {
            let response = String::from_utf8(response).unwrap();
            Some((format, response.contains("Sec-WebSocket-Protocol")))
        }
        _ => None,
    };
    let name = "Sec-WebSocket-Protocol:";
    for lines in
        ["".to_owned(), format!("{name}\r\n"), format!("{name} \t\r\n"), format!("{name} ,\r\n{name}\r\n")]
    {
        assert_eq!(chosen(&lines), Some((WireFormat::WEBSOCKET_JSON, false)), "{lines:?}");
    }
    let named = chosen(&format!("{name}\r\n{name} , x,\ttickcast.v1.raw,\r\n"));
    assert_eq!(named, Some((WireFormat::WEBSOCKET_RAW, true)));
    assert_eq!(chosen(&format!("{name} null\r\n")), None);
}

#[test]
fn key_is_any_base64_of_16_bytes() {
    let with = |key: &str| status(&format!("{}\r\n", REQUEST.replace("dGhlIHNhbXBsZSBub25jZQ==", key)));
    // The last character before the padding has four unused bits.
    for key in ["AAAAAAAAAAAAAAAAAAAAAA==", "dGhlIHNhbXBsZSBub25jZf==", "//////////////////////=="] {
        assert_eq!(with(key), 101, "{key}");
    }
    for key in [
        "",
        "dGhlIHNhbXBsZSBub25jZQ",
        "dGhlIHNhbXBsZSBub25jZSE=",
        "dGhlIHNhbXBsZSBub25j",
        "!GhlIHNhbXBsZSBub25jZQ==",
    ] {
        assert_eq!(with(key), 400, "{key}");
    }
}

#[test]
fn invalid_requests_are_answered_with_their_status() {
    let with = |from: &str, to: &str| status(&format!("{}\r\n", REQUEST.replace(from, to)));
    assert_eq!(with("/ws", "/nope"), 404);
    assert_eq!(with("/ws", "/echo"), 404);
    assert_eq!(with("GET", "POST"), 405);
    assert_eq!(with("GET", "HEAD"), 426);
    assert_eq!(with("HTTP/1.1", "HTTP/1.0"), 426);
    assert_eq!(with("Upgrade: websocket\r\n", ""), 426);
    assert_eq!(with("Version: 13", "Version: 8"), 426);
    assert_eq!(with("dGhlIHNhbXBsZSBub25jZQ==", "short"), 400);
    assert_eq!(with("Host: x\r\n", ""), 400);
    assert_eq!(with("Host: x\r\n", "Host: x\r\nHost: y\r\n"), 400);
    assert_eq!(with("Host: x\r\n", "Host: x\r\n folded\r\n"), 400);
    assert_eq!(with("Host: x\r\n", "Host: x\r\nContent-Length: 5\r\n"), 400);
    assert_eq!(with("/ws?", "/ws?#"), 400);
    assert_eq!(with("/ws", "/w#s"), 400);
    assert_eq!(with("topics=", "topic="), 400);
    assert_eq!(with("%3E", "%FF"), 400);
    assert_eq!(with("Host: x\r\n", "Host: x\r\nSec-WebSocket-Protocol: soap\r\n"), 400);
    assert_eq!(status("\x16\x03\x01\x02\x00\x01\x00"), 400);
    assert_eq!(status("SSH-2.0-OpenSSH\r\n\r\n"), 400);
    assert_eq!(status(&"a: b\r\n".repeat(1000)), 400);
    assert_eq!(status(&format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(300))), 431);
    assert_eq!(status(&format!("GET /{}", "a".repeat(2000))), 431);
    assert_eq!(status("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), 404);
}

/// What a connection answers to bytes that arrive in pieces of any size: statuses and the bodies' lengths.
fn answers(bytes: &[u8], piece: usize) -> Vec<(u16, bool)> {
    let (mut connection, mut input, mut got) = (Connection::default(), Vec::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        input.extend_from_slice(piece);
        while !input.is_empty() {
            match connection.step(&input, &CONFIG) {
                Step::Partial => break,
                Step::Complete(used, answer) => {
                    input.drain(..used);
                    match answer {
                        Answer::Interim(b"") => {}
                        Answer::Interim(bytes) => {
                            assert_eq!(bytes, CONTINUE);
                            got.push((100, false));
                        }
                        Answer::Respond { status, closes, .. } => got.push((status, closes)),
                        Answer::Upgrade { .. } => got.push((101, false)),
                        Answer::Call { exchange, .. } | Answer::Poll { exchange, .. } => {
                            got.push((200, exchange.closes));
                        }
                    }
                }
            }
            if got.last().is_some_and(|last| last.1) {
                return got;
            }
        }
    }
    assert!(input.is_empty(), "{}", String::from_utf8_lossy(&input));
    got
}

#[test]
fn pipelined_requests_are_answered_in_order_whatever_the_pieces() {
    let get = "GET /nothing HTTP/1.1\r\nHost: x\r\n";
    let stream = format!(
        "{get}\r\n{get}Content-Length: 5\r\n\r\nGET /\r\nPOST /ws HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n\
         3;x=\"y\"\r\nabc\r\n0b\r\n0123456789\n\r\n0\r\nTrailer: y\r\n\r\n{get}Connection: x, Close\r\n\r\n{get}\r\n"
    );
    let expected = [(404, false), (404, false), (405, false), (404, true)];
    assert_eq!(answers(stream.as_bytes(), usize::MAX), expected);
    // In pieces a request that fails is answered before its body is there, and ends the connection.
    for piece in 1..stream.len() {
        let got = answers(stream.as_bytes(), piece);
        let early = got.iter().position(|answer| answer.1).unwrap();
        assert!(got[..early] == expected[..early] && got[early].0 == expected[early].0, "{piece}: {got:?}");
    }
}

#[test]
fn a_request_is_read_to_the_end_of_its_body_whatever_the_pieces() {
    let get = "GET /healthz HTTP/1.1\r\nHost: x\r\n";
    let stream = format!(
        "{get}Content-Length: 5\r\n\r\nGET /{get}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: y\r\n\r\n{get}Content-Length: \
         0\r\n\r\n"
    );
    for piece in 1..stream.len() {
        let (mut connection, mut input, mut got) = (Connection::default(), Vec::new(), 0);
        for piece in stream.as_bytes().chunks(piece) {
            input.extend_from_slice(piece);
            while let Step::Complete(used, answer) =
                connection.step(&input, &HttpConfig { health: true, ..CONFIG })
            {
                let Answer::Respond { status: 200, closes: false, .. } = answer else { panic!("{answer:?}") };
                input.drain(..used);
                got += 1;
            }
        }
        assert_eq!((got, input.len()), (3, 0), "{piece}");
    }
}

#[test]
fn a_client_that_waits_with_its_body_is_asked_for_it_once() {
    let health = HttpConfig { health: true, ..CONFIG };
    let head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-Continue\r\n\r\n";
    let mut connection = Connection::default();
    assert_eq!(connection.step(head, &health), Step::Complete(0, Answer::Interim(CONTINUE)));
    assert_eq!(connection.step(head, &health), Step::Partial);
    let whole = [&head[..], b"ab"].concat();
    let Step::Complete(used, Answer::Respond { status: 200, closes: false, .. }) =
        connection.step(&whole, &health)
    else {
        panic!()
    };
    assert_eq!(used, whole.len());
    // What is refused anyway is not asked for.
    let post = head.to_vec();
    let post = [b"POST", &post[3..]].concat();
    let Step::Complete(_, Answer::Respond { status: 405, closes: true, .. }) =
        Connection::default().step(&post, &health)
    else {
        panic!()
    };
    let expects = |what: &str| status(&format!("GET / HTTP/1.1\r\nHost: x\r\nExpect: {what}\r\n\r\n"));
    assert_eq!((expects("100-continue"), expects("200-ok")), (404, 417));
}

#[test]
fn bodies_whose_end_is_in_doubt_end_the_connection() {
    let with = |fields: &str| {
        let request = format!("GET /nothing HTTP/1.1\r\nHost: x\r\n{fields}");
        let got = answers(request.as_bytes(), usize::MAX);
        assert_eq!(got.len(), 1, "{fields}");
        got[0]
    };
    let chunked = "Transfer-Encoding: chunked\r\n";
    for (fields, status) in [
        (format!("{chunked}Content-Length: 0\r\n\r\n"), 400),
        ("Content-Length: 1\r\nContent-Length: 1\r\n\r\nx".into(), 400),
        ("Content-Length: 1, 1\r\n\r\nx".into(), 400),
        ("Content-Length: +1\r\n\r\nx".into(), 400),
        ("Content-Length: 0x1\r\n\r\nx".into(), 400),
        ("Content-Length:\r\n\r\nx".into(), 400),
        ("Content-Length: 65537\r\n\r\n".into(), 413),
        (format!("Content-Length: {}\r\n\r\n", "9".repeat(40)), 413),
        ("Transfer-Encoding: gzip, chunked\r\n\r\n".into(), 501),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n".into(), 501),
        ("Transfer-Encoding: \r\n\r\n".into(), 501),
        (format!("{chunked}\r\nx\r\n"), 400),
        (format!("{chunked}\r\n-1\r\n"), 400),
        (format!("{chunked}\r\n\r\n"), 400),
        (format!("{chunked}\r\n1\r\nxy\r\n0\r\n\r\n"), 400),
        (format!("{chunked}\r\n10001\r\n"), 413),
        (format!("{chunked}\r\nffffffffffffffff\r\n"), 413),
        (format!("{chunked}\r\n{}", "1;".repeat(600)), 400),
        (format!("{chunked}\r\n0\r\n{}", "x".repeat(1100)), 400),
        (format!("{chunked}\r\n{}", "1\r\nx\r\n".repeat(20_000)), 413),
        (format!("{chunked}\r\n0\r\n{}", "T: y\r\n".repeat(20_000)), 413),
    ] {
        assert_eq!(with(&fields), (status, true), "{}", &fields[..fields.len().min(80)]);
    }
    let old = "GET /nothing HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(answers(old.as_bytes(), usize::MAX), [(400, true)]);
}

#[test]
fn a_connection_stays_open_as_its_version_and_options_say() {
    let closes = |line: &str| answers(format!("GET /nothing {line}\r\n\r\n").as_bytes(), usize::MAX)[0].1;
    for (line, expected) in [
        ("HTTP/1.1\r\nHost: x", false),
        ("HTTP/1.1\r\nHost: x\r\nConnection: CLOSE", true),
        ("HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\nConnection:\tclose", true),
        ("HTTP/1.1\r\nHost: x\r\nConnection: closed", false),
        ("HTTP/1.0", true),
        ("HTTP/1.0\r\nConnection: Keep-Alive", false),
    ] {
        assert_eq!(closes(line), expected, "{line}");
    }
    let once = HttpConfig { keeps_alive: false, ..CONFIG };
    let Step::Complete(_, Answer::Respond { response, closes: true, .. }) =
        step(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", once)
    else {
        panic!()
    };
    assert!(String::from_utf8(response).unwrap().contains("\r\nConnection: close\r\n"));
}

#[test]
fn each_response_has_its_date_and_connection_options() {
    let text = |request: &str| match step(request.as_bytes(), CONFIG) {
        Step::Complete(_, Answer::Respond { response, .. }) => String::from_utf8(response).unwrap(),
        _ => panic!("{request}"),
    };
    let response = text("GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(response.contains("\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"), "{response}");
    assert!(!response.contains("Connection:"), "{response}");
    let response = text("GET /ws HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(response.contains("\r\nConnection: upgrade\r\n"), "{response}");
    assert!(response.contains("\r\nUpgrade: websocket\r\n"), "{response}");
    let response = text("GET /ws HTTP/1.0\r\n\r\n");
    assert!(response.contains("\r\nConnection: upgrade, close\r\n"), "{response}");
    let response = text("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert!(response.contains("\r\nConnection: keep-alive\r\n"), "{response}");
    for request in ["HEAD /nothing HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD /ws HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let (head, get) = (text(request), text(&request.replace("HEAD", "GET")));
        assert!(head.ends_with("\r\n\r\n"), "{head}");
        if request.contains("nothing") {
            assert!(get.starts_with(&head), "{head}");
        }
    }
}

#[test]
fn head_is_answered_wherever_get_is_with_the_headers_alone() {
    let answer = |line: &str| match step(format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes(), CONFIG) {
        Step::Complete(_, Answer::Upgrade { response, is_head, .. }) => {
            (200, is_head, String::from_utf8(response).unwrap())
        }
        Step::Complete(_, Answer::Respond { status, response, .. }) => {
            (status, true, String::from_utf8(response).unwrap())
        }
        other => panic!("{line}: {other:?}"),
    };
    let (status, is_head, get) = answer("GET /sse?topics=a");
    assert!(status == 200 && !is_head);
    let (status, is_head, head) = answer("HEAD /sse?topics=a");
    assert!(status == 200 && is_head && head.ends_with("\r\n\r\n") && get.starts_with(&head), "{head}");
    let polling = "/socket.io/?EIO=4&transport=polling";
    let (status, _, head) = answer(&format!("HEAD {polling}"));
    assert!(status == 200 && head.ends_with("\r\n\r\n") && !head.contains("Content-Length"), "{head}");
    assert!(head.contains("Content-Type: text/plain"), "{head}");
    for (target, status) in [
        ("/sse", 400),
        ("/sse?topics=a..b", 400),
        ("/socket.io/?EIO=3", 400),
        ("/socket.io/?EIO=4&transport=polling&sid=x", 400),
        ("/socket.io/?EIO=4&transport=websocket", 426),
    ] {
        let (found, _, head) = answer(&format!("HEAD {target}"));
        assert!(found == status && head.ends_with("\r\n\r\n"), "{target}: {head}");
        assert_eq!(answer(&format!("GET {target}")).0, status, "{target}");
    }
    for (target, allowed) in [("/sse?topics=a", "GET, HEAD"), (polling, "GET, HEAD, POST")] {
        let (status, _, response) = answer(&format!("DELETE {target}"));
        assert!(status == 405 && response.contains(&format!("\r\nAllow: {allowed}\r\n")), "{response}");
    }
}

#[test]
fn every_time_of_the_clock_has_a_date() {
    for (realtime_ns, expected) in [
        (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (951_782_400_000_000_000, "Tue, 29 Feb 2000 00:00:00 GMT"),
        (951_868_799_999_999_999, "Tue, 29 Feb 2000 23:59:59 GMT"),
        (4_107_542_400_000_000_000, "Mon, 01 Mar 2100 00:00:00 GMT"),
        (u64::MAX, "Sun, 21 Jul 2554 23:34:33 GMT"),
    ] {
        assert_eq!(response::date(realtime_ns), expected);
    }
}

#[test]
fn a_target_in_absolute_form_is_for_the_host_of_the_header() {
    let of = |target: &str, host: &str| status(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    assert_eq!((of("http://x/nothing", "x"), of("http://x:80/", "x"), of("http://y/", "x")), (404, 404, 400));
    for host in ["", "x y", "x@y", "[x]", "x:y", "x, y", "x/"] {
        assert_eq!(of("/", host), 400, "{host}");
    }
}

#[test]
fn only_addresses_and_localhost_are_never_foreign() {
    for own in ["127.0.0.1", "[::1]", "192.0.2.1", "localhost", "LocalHost", "a.localhost"] {
        assert!(host::is_address_or_localhost(own), "{own}");
    }
    for foreign in ["", "evil.example", "127.0.0.1.evil.example", "[evil]", "localhost.evil", "evillocalhost"]
    {
        assert!(!host::is_address_or_localhost(foreign), "{foreign}");
    }
}

#[test]
fn forwarded_addresses_are_read_from_the_last_proxy_backwards() {
    let of = |lines: &str| match step(format!("{REQUEST}{lines}\r\n").as_bytes(), CONFIG) {
        Step::Complete(_, Answer::Upgrade { forwarded_for, .. }) => {
            forwarded_for.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        }
        _ => panic!("{lines}"),
    };
    assert_eq!(of(""), "");
    assert_eq!(of("X-Forwarded-For: 192.0.2.1\r\n"), "192.0.2.1");
    let lines = "X-Forwarded-For: x, 192.0.2.1,\t[2001:db8::1]:80\r\nX-Forwarded-For: 2001:db8::2, [::3]\r\n\
                 X-Forwarded-For: 192.0.2.4:5\r\n";
    assert_eq!(of(lines), "192.0.2.4 ::3 2001:db8::2 2001:db8::1 192.0.2.1");
    assert_eq!(of("X-Forwarded-For: 192.0.2.1, unknown\r\n"), "");
}
