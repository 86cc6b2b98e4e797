//! Tests of the JSON codec.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use super::*;
use crate::{
    frame::{FLAG_PAYLOAD_JSON, TickParts},
    records::TickTimes,
    subscription::Policy,
};

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

/// Every error that JSON can cause, by its exact words.
#[test]
fn invalid_requests_are_rejected_with_words_to_act_on() {
    let operations = "hello, refresh, subscribe, update, unsubscribe, publish or ping";
    let number32 = "a whole number from 0 to 4294967295";
    let number64 = "a whole number from 0 to 18446744073709551615";
    let fields = "op, id, name, features, topics, topic, from, policy, max_rate, data, encoding, ts, schema, key, token, message_id";
    let starts = "is not a start position; use live, latest, positions, or epoch with sequence or sequences";
    let rates = "is not a rate from 0.001 to 1000 ticks per second";
    let long = "x".repeat(100);
    let cut = "x".repeat(32);
    for (text, expected) in [
        // The message.
        ("", "the message is empty; a request is one JSON object".into()),
        (" \n", "the message is empty; a request is one JSON object".into()),
        ("hello", "a request is one JSON object, not hello".into()),
        ("[]", "a request is one JSON object, not []".into()),
        (r#"["ping",7]"#, r#"a request is one JSON object, not ["ping",7]"#.into()),
        ("{", "the message is not JSON: it ends too early".into()),
        (r#"{"op":"ping"#, "the message is not JSON: it ends too early".into()),
        (r#"{"op":"ping","id":7"#, "the message is not JSON: it ends too early".into()),
        (
            r#"{"op":"publish","id":7,"topic":"t","data":NaN}"#,
            r#"the message is not JSON: see line 1, column 43, at "NaN}""#.into(),
        ),
        ("{\n'op':1}", r#"the message is not JSON: see line 2, column 1, at "'op':1}""#.into()),
        (r#"{"op":"ping",}"#, r#"the message is not JSON: see line 1, column 14, at "}""#.into()),
        (
            r#"{"op":"ping" "id":7}"#,
            r#"the message is not JSON: see line 1, column 14, at "\"id\":7}""#.into(),
        ),
        (r#"{"op":"ping","id":07}"#, r#"the message is not JSON: see line 1, column 20, at "7}""#.into()),
        (r#"{"op":"ping"} {"op":"ping"}"#, "a message is one JSON object, and something follows it".into()),
        // Its fields.
        (r#"{"id":7}"#, format!("\"op\" is missing; use {operations}")),
        (r#"{"op":"ping","id":7,"id":7}"#, "\"id\" is given twice".into()),
        (r#"{"op":"subscribe","topcs":["a"]}"#, format!("unknown field \"topcs\"; the fields are {fields}")),
        (
            &format!(r#"{{"op":"ping","{long}":1}}"#),
            format!("unknown field \"{cut}\"; the fields are {fields}"),
        ),
        (r#"{"op":7}"#, "\"op\" must be a string, not 7".into()),
        (r#"{"op":null}"#, "\"op\" must be a string, not null".into()),
        (r#"{"op":"ping","id":"7"}"#, format!("\"id\" must be {number32}, not \"7\"")),
        (r#"{"op":"ping","id":null}"#, format!("\"id\" must be {number32}, not null")),
        (r#"{"op":"ping","id":4294967296}"#, format!("\"id\" must be {number32}, not 4294967296")),
        (r#"{"op":"ping","id":1.5}"#, format!("\"id\" must be {number32}, not 1.5")),
        (r#"{"op":"hello","name":{"a":1}}"#, "\"name\" must be a string, not {\"a\":1}".into()),
        (
            r#"{"op":"hello","features":"counts"}"#,
            "\"features\" must be an array of strings, not \"counts\"".into(),
        ),
        (r#"{"op":"hello","features":[1]}"#, "\"features\" must be an array of strings, not [1]".into()),
        (r#"{"op":"subscribe","topics":"t"}"#, "\"topics\" must be an array of strings, not \"t\"".into()),
        (r#"{"op":"subscribe","topics":[1]}"#, "\"topics\" must be an array of strings, not [1]".into()),
        (r#"{"op":"publish","topic":7,"data":1}"#, "\"topic\" must be a string, not 7".into()),
        (r#"{"op":"publish","encoding":7}"#, "\"encoding\" must be a string, not 7".into()),
        (r#"{"op":"publish","ts":"x"}"#, format!("\"ts\" must be {number64}, not \"x\"")),
        (r#"{"op":"publish","ts":1.7e18}"#, format!("\"ts\" must be {number64}, not 1.7e18")),
        (r#"{"op":"publish","ts":-1}"#, format!("\"ts\" must be {number64}, not -1")),
        (r#"{"op":"publish","schema":5000000000}"#, format!("\"schema\" must be {number32}, not 5000000000")),
        (
            r#"{"op":"publish","key":-1}"#,
            format!("\"key\" must be {number64}, or a string of its digits, not -1"),
        ),
        (
            r#"{"op":"publish","key":"bid"}"#,
            format!("\"key\" must be {number64}, or a string of its digits, not \"bid\""),
        ),
        (
            r#"{"op":"publish","key":18446744073709551616}"#,
            format!("\"key\" must be {number64}, or a string of its digits, not 18446744073709551616"),
        ),
        (r#"{"op":"ping","token":"secret"}"#, format!("ping: \"token\" must be {number64}")),
        (r#"{"op":"ping","token":-1}"#, format!("\"token\" must be a string, or for ping {number64}")),
        (
            r#"{"op":"hello","token":["secret"]}"#,
            format!("\"token\" must be a string, or for ping {number64}"),
        ),
        (r#"{"op":"hello","token":7}"#, "hello: \"token\" must be a string".into()),
        (r#"{"op":"refresh","id":7}"#, "refresh: \"token\" must be a string".into()),
        // What an operation needs.
        (r#"{"op":"fly"}"#, format!("unknown op \"fly\"; use {operations}")),
        (&format!(r#"{{"op":"{long}"}}"#), format!("unknown op \"{cut}\"; use {operations}")),
        (r#"{"op":"subscribe"}"#, "subscribe: \"topics\" is missing or empty".into()),
        (r#"{"op":"update","topics":[]}"#, "update: \"topics\" is missing or empty".into()),
        (r#"{"op":"unsubscribe","topics":null}"#, "unsubscribe: \"topics\" is missing or empty".into()),
        (
            r#"{"op":"update","topics":["a"],"from":"latest"}"#,
            "update: \"from\" is only for subscribe".into(),
        ),
        (
            r#"{"op":"subscribe","topics":["a"],"policy":"fast"}"#,
            "subscribe: policy: unknown value \"fast\"; use conflate, drop, keep or disconnect".into(),
        ),
        (
            r#"{"op":"update","topics":["a"],"policy":5}"#,
            "update: policy: unknown value \"5\"; use conflate, drop, keep or disconnect".into(),
        ),
        (r#"{"op":"subscribe","topics":["a"],"max_rate":0}"#, format!("subscribe: max_rate: 0 {rates}")),
        (
            r#"{"op":"subscribe","topics":["a"],"max_rate":"5"}"#,
            format!("subscribe: max_rate: \"5\" {rates}"),
        ),
        (r#"{"op":"subscribe","topics":["a"],"from":"then"}"#, format!("subscribe: from: \"then\" {starts}")),
        (r#"{"op":"subscribe","topics":["a"],"from":7}"#, format!("subscribe: from: 7 {starts}")),
        (
            r#"{"op":"subscribe","topics":["a"],"from":{"epoch":-1,"sequence":1}}"#,
            format!("subscribe: from: {{\"epoch\":-1,\"sequence\":1}} {starts}"),
        ),
        (r#"{"op":"publish","topic":"a"}"#, "publish: \"data\" is missing".into()),
        (r#"{"op":"publish","data":1}"#, "publish: \"topic\" is missing".into()),
        (
            r#"{"op":"publish","topic":"a","data":1,"encoding":"hex"}"#,
            "publish: unknown \"encoding\" \"hex\"; use json or base64".into(),
        ),
        (
            r#"{"op":"publish","topic":"a","data":1,"encoding":"base64"}"#,
            "publish: base64 \"data\" must be a string".into(),
        ),
        (
            r#"{"op":"publish","topic":"a","data":"A!==","encoding":"base64"}"#,
            "publish: \"data\" is not base64: '!' at 1".into(),
        ),
        (
            r#"{"op":"publish","topic":"a","data":"AP8","encoding":"base64"}"#,
            "publish: \"data\" is not base64: its length, including padding (=), must be a multiple of 4"
                .into(),
        ),
        (
            r#"{"op":"publish","topic":"a","data":"AP9=","encoding":"base64"}"#,
            "publish: \"data\" is not base64: the character at 2 has bits beyond the last whole byte".into(),
        ),
    ] {
        let expected: String = expected;
        assert_eq!(decode(text).map_err(|error| error.text), Err(expected), "{text}");
    }
}

/// Values of all types for every field of every operation: the error repeats the id, wherever it stands, and does not use serde's
/// words.
#[test]
fn every_field_of_the_wrong_type_is_rejected_with_the_id() {
    let requests: [&[(&str, &str)]; 7] = [
        &[("op", "\"hello\""), ("name", "\"n\""), ("features", "[]")],
        &[("op", "\"refresh\""), ("token", "\"t\"")],
        &[("op", "\"subscribe\""), ("topics", "[\"a\"]"), ("from", "\"live\""), ("max_rate", "1")],
        &[("op", "\"update\""), ("topic", "\"a\""), ("policy", "\"drop\"")],
        &[("op", "\"unsubscribe\""), ("topics", "[\"a\"]")],
        &[
            ("op", "\"publish\""),
            ("topic", "\"a\""),
            ("data", "1"),
            ("ts", "1"),
            ("schema", "1"),
            ("key", "1"),
        ],
        &[("op", "\"ping\""), ("token", "1")],
    ];
    let fields = "op name features topics topic from policy max_rate encoding ts schema key token";
    let values = ["-1", "1.5", "\"x\"", "[1]", "{\"a\":1}", "true", "1e99", "99999999999999999999999"];
    let mut rejected = 0;
    let all =
        |request| fields.split(' ').flat_map(move |field| values.map(move |value| (request, field, value)));
    for (request, field, value) in requests.into_iter().flat_map(all) {
        let others = request.iter().filter(|(name, _)| *name != field);
        let mut members: Vec<String> = others.map(|(name, value)| format!("\"{name}\":{value}")).collect();
        members.push(format!("\"{field}\":{value}"));
        for at in 0..=members.len() {
            let mut members = members.clone();
            members.insert(at, "\"id\":7".into());
            let text = format!("{{{}}}", members.join(","));
            let Err(error) = decode(&text) else { continue };
            rejected += 1;
            assert_eq!(error.request, 7, "{text}: {}", error.text);
            let serde = ["invalid", "expected", "u32", "u64", "i64", "struct", "column", "variant"];
            assert!(!serde.iter().any(|word| error.text.contains(word)), "{text}: {}", error.text);
        }
    }
    assert!(rejected > 2_000, "most values are of the wrong type: {rejected}");
}
