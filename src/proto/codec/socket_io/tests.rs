use super::*;
use crate::{
    ErrorCode,
    subscription::{Delivery, Policy, StartPosition},
};

fn event(text: &str) -> Event<'_> {
    match decode(text) {
        Ok(Packet::Event(event)) => event,
        other => panic!("{text}: {other:?}"),
    }
}

fn failed(text: &str) -> InvalidRequest {
    let event = event(text);
    match request_json(&event) {
        Err(error) => error,
        Ok(json) => {
            decode_request(&json, event.request, event.has_attachment.then_some(&b"x"[..])).unwrap_err()
        }
    }
}

#[test]
fn packets_decode_into_their_parts() {
    assert_eq!(decode("0"), Ok(Packet::Connect { namespace: "/", auth: "" }));
    assert_eq!(
        decode("0{\"token\":\"t\"}"),
        Ok(Packet::Connect { namespace: "/", auth: "{\"token\":\"t\"}" })
    );
    assert_eq!(decode("0/,{}"), Ok(Packet::Connect { namespace: "/", auth: "{}" }));
    assert_eq!(decode("0/chat"), Ok(Packet::Connect { namespace: "/chat", auth: "" }));
    assert_eq!(decode("0/chat,{}"), Ok(Packet::Connect { namespace: "/chat", auth: "{}" }));
    assert_eq!(decode("1"), Ok(Packet::Disconnect));
    let plain = Event { request: 0, arguments: "[\"a\"]", has_attachment: false };
    assert_eq!(event("2[\"a\"]"), plain);
    assert_eq!(event("20[\"a\"]"), Event { request: 1, ..plain }, "the first id of an acknowledgement is 0");
    assert_eq!(event("24294967294[\"a\"]"), Event { request: u32::MAX, ..plain });
    assert_eq!(event("51-[\"a\"]"), Event { has_attachment: true, ..plain });
    assert_eq!(event("51-/,7[\"a\"]"), Event { has_attachment: true, request: 8, ..plain });
    assert_eq!(event("50-[\"a\"]"), plain);
}

#[test]
fn what_no_client_may_send_is_refused() {
    for (text, what) in [
        ("", "empty"),
        ("7", "type"),
        ("x", "type"),
        ("\u{20ac}", "type"),
        ("30[]", "acknowledgement"),
        ("61-0[]", "acknowledgement"),
        ("4{}", "only the server"),
        ("5[\"a\"]", "number"),
        ("5", "number"),
        ("5-[]", "number"),
        ("51[\"a-b\"]", "number"),
        ("52-[\"a\"]", "at most one"),
        ("599999999999999999999-[\"a\"]", "at most one"),
        ("24294967295[\"a\"]", "above"),
        ("299999999999999999999[\"a\"]", "above"),
        ("2/chat,[\"a\"]", "not connected"),
        ("1/chat,", "not connected"),
        (&format!("0/{},", "n".repeat(SOCKET_IO_NAMESPACE_BYTES_MAX)), "too long"),
    ] {
        match decode(text) {
            Err(DecodeError::SocketIo(error)) => assert!(error.contains(what), "{text:?}: {error}"),
            other => panic!("{text:?}: {other:?}"),
        }
    }
}

#[test]
fn any_text_decodes_or_is_refused() {
    let mut random = fastrand::Rng::with_seed(16);
    let parts = [
        "2",
        "5",
        "1-",
        "0",
        "/",
        ",",
        "[",
        "]",
        "\"",
        "subscribe",
        "{",
        "}",
        ":",
        "a",
        "\u{1e}",
        "9",
        "\u{20ac}",
    ];
    for _ in 0..50_000 {
        let text: String = (0..random.usize(..12)).filter_map(|_| random.choice(parts)).collect();
        if let Ok(Packet::Event(event)) = decode(&text)
            && let Ok(json) = request_json(&event)
        {
            let _ = decode_request(&json, event.request, Some(b"x"));
        }
        let _ = decode_auth(&text);
    }
}

#[test]
fn events_are_requests() {
    let json = request_json(&event(
        "27[\"subscribe\",\"a.>\",{\"from\":\"latest\",\"policy\":\"conflate\",\"max_rate\":5}]",
    ));
    let command = decode_request(json.as_ref().unwrap(), 8, None).unwrap();
    let delivery = Delivery { policy: Some(Policy::Conflate), interval_us: 200_000 };
    let patterns = vec![Cow::Borrowed("a.>")];
    assert_eq!(command, Command::Subscribe { request: 8, patterns, delivery, from: StartPosition::Latest });

    for text in [
        "2[\"unsubscribe\",\"a\"]",
        "2[\"unsubscribe\",{\"topic\":\"a\"}]",
        "2[\"unsubscribe\",\"a\",null]",
        "2[\"unsubscribe\",\"a\", { } ]",
        "2[\"unsubscribe\",{\"topics\":[\"a\"]}]",
    ] {
        let json = request_json(&event(text)).unwrap();
        let patterns = vec![Cow::Borrowed("a")];
        assert_eq!(
            decode_request(&json, 0, None),
            Ok(Command::Unsubscribe { request: 0, patterns }),
            "{text}"
        );
    }
    let json = request_json(&event("20[\"refresh\",\"secret\"]")).unwrap();
    let token = Token(Cow::Borrowed(b"secret"));
    assert_eq!(decode_request(&json, 1, None), Ok(Command::Refresh { request: 1, token }));
}

#[test]
fn the_payload_of_a_publish_is_its_json_or_its_attachment_byte_for_byte() {
    let publish = |text: &str, attachment: Option<&[u8]>| {
        let event = event(text);
        let json = request_json(&event).unwrap();
        match decode_request(&json, event.request, attachment).unwrap() {
            Command::Publish(publish) => {
                let PublishCommand { request, topic, payload, payload_is_json, key, .. } = publish;
                (request, topic.into_owned(), payload.into_owned(), payload_is_json, key)
            }
            other => panic!("{other:?}"),
        }
    };
    let (topic, bytes) = (b"a.b".to_vec(), b"\x00\x1e\xff".to_vec());
    let json = |payload: &str, key| (3, topic.clone(), payload.as_bytes().to_vec(), true, key);
    assert_eq!(publish("22[\"publish\",\"a.b\",{\"p\":1.10}]", None), json("{\"p\":1.10}", 0));
    assert_eq!(publish("22[\"publish\",\"a.b\",1.10,{\"key\":7}]", None), json("1.10", 7));
    assert_eq!(publish("22[\"publish\",{\"topic\":\"a.b\",\"data\":[1]}]", None), json("[1]", 0));
    let binary = |key| (3, topic.clone(), bytes.clone(), false, key);
    let placeholder = "{\"_placeholder\":true,\"num\":0}";
    let text = format!("51-2[\"publish\",\"a.b\",{placeholder},{{\"key\":7}}]");
    assert_eq!(publish(&text, Some(&bytes)), binary(7));
    let text = format!("51-2[\"publish\",{{\"topic\":\"a.b\",\"data\":{placeholder}}}]");
    assert_eq!(publish(&text, Some(&bytes)), binary(0));
}

#[test]
fn events_that_are_no_requests_say_why() {
    for (text, what) in [
        ("27", "array"),
        ("27{}", "array"),
        ("27[]", "array"),
        ("27[1]", "array"),
        ("27[\"publish\",1,2,3,4]", "array"),
        ("27[\"subscribe\",\"a\"", "array"),
        ("27[\"shout\"]", "unknown event \"shout\"; use subscribe"),
        ("27[\"subscribe\"]", "topic is missing"),
        ("27[\"publish\",\"a\"]", "data is missing"),
        ("27[\"subscribe\",\"a\",5]", "options must be an object"),
        ("27[\"subscribe\",\"a\",{},{}]", "too many arguments"),
        ("27[\"subscribe\",\"a\",{\"frm\":1}]", "frm"),
        ("27[\"subscribe\",\"a\",{\"id\":1}]", "id"),
        ("27[\"subscribe\",\"a\",{\"op\":\"publish\"}]", "op"),
        ("27[\"subscribe\",{\"topics\":[\"a\",\"b\"]}]", "one topic"),
        ("27[\"subscribe\",\"a\",{\"topics\":[\"b\"]}]", "one topic"),
        ("51-7[\"publish\",\"a\",1]", "binary data"),
        ("51-7[\"publish\",\"a\",{\"x\":{\"_placeholder\":true,\"num\":0}}]", "binary data"),
        ("51-7[\"publish\",\"a\",{\"_placeholder\":true,\"num\":1}]", "binary data"),
        ("51-7[\"subscribe\",\"a\"]", "binary data"),
    ] {
        let error = failed(text);
        assert!(error.request == 8 && error.text.contains(what), "{text}: {error:?}");
    }
}

#[test]
fn a_token_is_a_string_in_the_auth_object() {
    for auth in ["", " ", "{}", "{\"pid\":7}", "{\"token\":null}", "{\"token\":\"\"}"] {
        assert_eq!(decode_auth(auth), Ok(None), "{auth}");
    }
    let token = Ok(Some(Token(Cow::Borrowed(&b"t"[..]))));
    assert_eq!(decode_auth("{\"user\":1,\"token\":\"t\"}"), token);
    for auth in ["x", "[\"t\"]", "\"t\"", "{\"token\":7}", "{\"token\":\"t\"", "null"] {
        assert!(decode_auth(auth).is_err(), "{auth}");
    }
}

#[test]
fn answers_are_acknowledgements_and_everything_else_is_an_event() {
    let encoded = |reply: &Reply<'_>| {
        let mut out = Vec::new();
        encode_reply(reply, &mut out);
        String::from_utf8(out).unwrap()
    };
    let error = |request| Reply::Error { request, code: ErrorCode::BadTopic, text: "t" };
    assert_eq!(encoded(&error(1)), r#"30[{"op":"error","id":0,"code":101,"text":"t"}]"#);
    assert_eq!(encoded(&error(0)), r#"2["failed",{"op":"error","id":0,"code":101,"text":"t"}]"#);
    assert_eq!(
        encoded(&Reply::Subscribed { request: u32::MAX, pattern: "a.>", epoch: 1, since_us: None }),
        r#"34294967294[{"op":"subscribed","id":4294967294,"pattern":"a.>","topics":[]}]"#
    );
    assert_eq!(
        encoded(&Reply::Closing { code: 3001, reason: "r", reconnect_after_ms: 5 }),
        r#"2["closing",{"op":"closing","code":3001,"reason":"r","reconnect_after_ms":5}]"#
    );
}

#[test]
fn a_refusal_names_its_namespace() {
    let refused = |namespace, code| {
        let mut out = Vec::new();
        encode_refused(&mut out, namespace, "why \"so\"", code);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(refused("/", Some(3500)), r#"4{"message":"why \"so\"","data":{"code":3500}}"#);
    assert_eq!(refused("/chat", None), r#"4/chat,{"message":"why \"so\""}"#);
}
