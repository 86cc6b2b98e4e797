//! Tests of the JSON codec.

use super::*;
use crate::subscription::Policy;

#[test]
fn json_payload_is_preserved_verbatim() {
    let text = r#"{"op":"publish","topic":"t","data":{"a": 1.10, "b":[ 1e400 ]},"ts":5}"#;
    let Ok(Command::Publish(publish)) = decode(text) else { panic!("publish") };
    assert_eq!(publish.payload.as_ref(), br#"{"a": 1.10, "b":[ 1e400 ]}"#);
    let mut out = Vec::new();
    let times = TickTimes { producer_time_ns: publish.producer_time_ns, ingest_time_ns: 0 };
    let parts =
        TickParts { flags: FLAG_PAYLOAD_JSON, times, payload: &publish.payload, ..Default::default() };
    encode_tick(&mut out, &tick_prefix("t\"x"), 7, &parts);
    assert_eq!(out, br#"{"topic":"t\"x","seq":7,"ts":5,"data":{"a": 1.10, "b":[ 1e400 ]}}"#);
}

#[test]
fn only_payloads_that_can_be_inlined_are_json() {
    for inline in [&b"1"[..], b"null", b"{\"a\": [ 1 ]}", b"\" \"", b" 1", b"1\n", b"\t{}\r\n"] {
        assert!(is_json(inline));
    }
    for other in [&b""[..], b" ", b"1 2", b"{", b"\xff", b"\"\xff\"", b"1\x0c", b"\xef\xbb\xbf1"] {
        assert!(!is_json(other));
    }
}

#[test]
fn a_key_is_a_whole_number_or_a_string_of_its_digits_wherever_it_comes_from() {
    for (text, expected) in [
        ("0", Some(0)),
        ("18446744073709551615", Some(u64::MAX)),
        (r#""18446744073709551615""#, Some(u64::MAX)),
        (r#""\u0037""#, Some(7)),
        ("18446744073709551616", None),
        ("-1", None),
        ("1.0", None),
        ("null", None),
        (r#""""#, None),
        (r#""+7""#, None),
        (r#"" 7""#, None),
    ] {
        assert_eq!(whole_number(text), expected, "{text}");
        let request = format!(r#"{{"op":"publish","topic":"t","data":1,"key":{text}}}"#);
        let key = decode(&request).ok().map(|command| match command {
            Command::Publish(publish) => publish.key,
            other => panic!("{other:?}"),
        });
        assert_eq!(key, expected, "{text}");
    }
}

#[test]
fn invalid_subscribe_options_are_rejected_by_name() {
    let with = |options: &str| {
        decode(&format!(r#"{{"op":"subscribe","id":3,"topics":["a"]{options}}}"#)).map(
            |command| match command {
                Command::Subscribe { delivery, from, .. } => (delivery, from),
                other => panic!("{other:?}"),
            },
        )
    };
    assert_eq!(with("").unwrap(), (Delivery::default(), StartPosition::Live));
    assert_eq!(
        with(r#","policy":"drop","max_rate":4,"from":"latest""#).unwrap(),
        (Delivery { policy: Some(Policy::Drop), interval_us: 250_000 }, StartPosition::Latest)
    );
    let position = Position { epoch: 5, sequence: 6 };
    assert_eq!(with(r#","from":{"epoch":5,"sequence":6}"#).unwrap().1, StartPosition::After(position));
    let positions =
        StartPosition::AfterEach(HashMap::from([("a".into(), Position { epoch: 5, sequence: 7 })]));
    assert_eq!(with(r#","from":{"epoch":5,"sequences":{"a":7}}"#).unwrap().1, positions);
    assert_eq!(with(r#","from":{"positions":{"a":{"epoch":5,"sequence":7}}}"#).unwrap().1, positions);
    for (options, field) in [
        (r#","policy":"fast""#, "policy"),
        (r#","max_rate":0"#, "max_rate"),
        (r#","max_rate":1e99"#, "max_rate"),
        (r#","from":"yesterday""#, "from"),
        (r#","from":{"epoch":5}"#, "from"),
        (r#","from":{"epoch":5,"sequence":1,"sequences":{}}"#, "from"),
        (r#","policy":5"#, "policy"),
        (r#","max_rate":"5""#, "max_rate"),
        (r#","max_rate":1e999"#, "max_rate"),
        (r#","from":[]"#, "from"),
        (r#","from":{"epoch":-1,"sequence":1}"#, "from"),
        (r#","from":{"epoch":1,"sequences":{"a":"1"}}"#, "from"),
        (r#","from":{"epoch":1,"sequence":1,"more":1}"#, "from"),
    ] {
        let error = with(options).unwrap_err();
        assert!(error.text.contains(field) && error.request == 3, "{options}: {error:?}");
    }
    let none = with(r#","max_rate":null,"policy":null,"from":null"#).unwrap();
    assert_eq!(none, (Delivery::default(), StartPosition::Live));
    // NaN is not JSON.
    assert!(with(r#","max_rate":NaN"#).is_err());
}

#[test]
fn null_is_a_valid_payload() {
    let Ok(Command::Publish(publish)) = decode(r#"{"op":"publish","topic":"t","data":null}"#) else {
        panic!("publish")
    };
    assert_eq!((publish.payload.as_ref(), publish.payload_is_json), (&b"null"[..], true));
}

#[test]
fn binary_payload_is_base64_in_both_directions() {
    let text = r#"{"op":"publish","topic":"t","encoding":"base64","data":"AP8="}"#;
    let Ok(Command::Publish(publish)) = decode(text) else { panic!("publish") };
    assert_eq!((publish.payload.as_ref(), publish.payload_is_json), (&[0u8, 255][..], false));
    let mut out = Vec::new();
    let times = TickTimes { producer_time_ns: 2, ingest_time_ns: 0 };
    let parts = TickParts { times, payload: &publish.payload, ..Default::default() };
    encode_tick(&mut out, &tick_prefix("t"), 1, &parts);
    assert_eq!(out, br#"{"topic":"t","seq":1,"ts":2,"encoding":"base64","data":"AP8="}"#);
}

#[test]
fn binary_tick_does_not_allocate_once_the_buffer_has_grown() {
    let payload: Vec<u8> = (0..=255).collect();
    for len in [0, 1, 2, 3, 100, 256] {
        let parts = TickParts { payload: &payload[..len], ..Default::default() };
        let mut out = Vec::new();
        encode_tick(&mut out, b"{", 1, &parts);
        let (again, capacity) = (out.clone(), out.capacity());
        out.clear();
        encode_tick(&mut out, b"{", 1, &parts);
        assert_eq!((&out, out.capacity()), (&again, capacity), "{len} bytes");
        let text = &out[out.iter().rposition(|&byte| byte == b':').unwrap() + 2..out.len() - 2];
        assert_eq!(BASE64.decode(text).unwrap(), payload[..len]);
    }
}

#[test]
fn invalid_requests_are_rejected_with_their_id() {
    for text in [
        r#"{"op":"publish","id":7,"topic":"t","data":1,"ts":"x"}"#,
        r#"{"op":"publish","id":7,"topic":"t","data":1,"key":-1}"#,
        r#"{"op":"publish","id":7,"topic":"t","data":1,"extra":1}"#,
        r#"{"op":"publish","id":7,"topic":7,"data":1}"#,
        r#"{"op":"publish","id":7,"topic":"t","data":1,"encoding":"hex"}"#,
        r#"{"op":"subscribe","id":7,"topics":"t"}"#,
        r#"{"topics":[1],"op":"unsubscribe","id":7}"#,
        r#"{"op":"ping","id":7,"token":"x"}"#,
        r#"{"op":7,"id":7}"#,
        r#"{"op":"fly","id":7}"#,
        r#"{"id":7}"#,
    ] {
        assert_eq!(decode(text).unwrap_err().request, 7, "{text}");
    }
}

#[test]
fn invalid_requests_are_rejected_with_the_field_in_error() {
    for (text, part) in [
        ("{", "not a request"),
        ("[]", "not a request"),
        (r#"{"op":"subscribe","topcs":["a"]}"#, "topcs"),
        (r#"{"op":"subscribe"}"#, "topics"),
        (r#"{"op":"publish","topic":"a"}"#, "data"),
        (r#"{"op":"publish","data":1}"#, "topic"),
        (r#"{"op":"publish","topic":"a","data":1,"encoding":"hex"}"#, "hex"),
        (r#"{"op":"fly"}"#, "fly"),
    ] {
        let error = decode(text).unwrap_err();
        assert!(error.text.contains(part), "{text}: {}", error.text);
    }
}
