use super::*;
use crate::kind::SourceBounds;

struct Pairs<'a>(&'a [(&'a str, &'a str)]);

impl Headers for Pairs<'_> {
    fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    fn partition(&self) -> Option<i32> {
        self.value("partition")?.parse().ok()
    }
}

fn options(text: &str) -> MapOptions {
    toml::from_str(text).unwrap()
}

fn mapping(text: &str) -> Mapping {
    let mut checks = checks();
    let mapping = Mapping::new(&options(text), &mut checks);
    assert_eq!(checks.into_refused(), []);
    mapping.unwrap()
}

fn checks() -> OptionChecks {
    OptionChecks::new(SourceBounds { payload_bytes_max: 64, topics_max: 10, reads_files: true })
}

fn message<'a>(subject: &'a str, payload: &'a str, headers: &'a Pairs<'a>) -> Message<'a> {
    Message { subject, key: Some("k-1"), headers, payload: payload.as_bytes(), time_ns: Some(5) }
}

#[test]
fn a_topic_is_made_of_subject_key_partition_headers_and_json() {
    let headers = Pairs(&[("Venue", "xnas"), ("partition", "12")]);
    for (map, subject, topic) in [
        ("", "md.aapl", "md.aapl"),
        ("prefix = 'p.'", "md.aapl", "p.md.aapl"),
        ("strip = 'md.'", "md.aapl", "aapl"),
        ("strip = 'md/'\nseparator = '/'", "md/eu/aapl", "eu.aapl"),
        ("separator = '/'\ntopic = 'x.{2}'", "md/eu/aapl", "x.eu"),
        ("topic = '{2}.{1}'", "md.aapl", "aapl.md"),
        ("topic = 'm.{header:Venue}.{key}'", "md", "m.xnas.k-1"),
        ("topic = 'm.{json:/s}.{json:/a/1}'", "md", "m.AAPL.7"),
        ("topic = '{subject}.{partition}'", "md.aapl", "md.aapl.12"),
    ] {
        let mut mapping = mapping(map);
        let payload = r#"{"n":{"s":1},"s":"AAPL","a":[true,7,null]}"#;
        assert_eq!(mapping.map(message(subject, payload, &headers)).unwrap().topic, topic, "{map}");
        assert!(pattern::matches(&mapping.pattern(), topic), "{map}: {}", mapping.pattern());
    }
}

#[test]
fn a_message_without_what_the_mapping_needs_is_skipped_with_its_reason() {
    let headers = Pairs(&[("h", "1")]);
    for (map, subject, payload, reason) in [
        ("strip = 'x.'", "md.a", "1", "the subject does not begin with what `strip` says"),
        ("topic = '{3}'", "md.a", "1", "there is no token 3 in the subject"),
        ("topic = '{header:H}'", "md.a", "1", "there is no header H"),
        (
            "topic = 't.{json:/a/b}'",
            "md.a",
            r#"{"a":{"c":1}}"#,
            "there is no text or number at /a/b in the payload",
        ),
        ("topic = 't.{json:/a}'", "md.a", r#"{"a":{}}"#, "there is no text or number at /a in the payload"),
        ("topic = 't.{json:/a}'", "md.a", "not JSON", "there is no text or number at /a in the payload"),
        ("time = '{json:/t}'", "md.a", r#"{"t":"noon"}"#, "time \"noon\" is not a number"),
        ("time = '{json:/t}'", "md.a", r#"{"t":-1}"#, "time \"-1\" is not a number"),
        (
            "",
            "md..a",
            "1",
            "topic \"md..a\": contains an empty token: two dots in a row, or a dot at either end",
        ),
        ("", "md.*", "1", "topic \"md.*\": contains a wildcard; `*` and `>` are for subscriptions"),
        ("", "a b", "1", "topic \"a b\": contains whitespace or a control character"),
        ("", "", "1", "topic \"\": 0 bytes long; 1 to 255 are allowed"),
        ("", "a", &"x".repeat(65), "a payload of 65 bytes"),
    ] {
        let error = mapping(map).map(message(subject, payload, &headers)).unwrap_err();
        assert_eq!(error.to_string(), reason, "{map}");
    }
}

#[test]
fn a_numeric_key_is_itself_and_another_text_always_the_same_below_2_pow_53() {
    let keys: Vec<u64> =
        ["7", "18446744073709551615", "AAPL", "AAPL ", "", "18446744073709551616", "+7", "0", "07", "00"]
            .map(key_of)
            .into();
    assert_eq!((keys[0], keys[1]), (7, u64::MAX));
    // FNV-1a of "AAPL", computed elsewhere, folded to 53 bits.
    assert_eq!(keys[2], {
        let hash: u64 = 0x8910_6b8b_9f08_6ccb;
        (hash >> 53) ^ (hash & ((1 << 53) - 1))
    });
    for (at, key) in keys.iter().enumerate().skip(2) {
        assert!(*key > 0 && *key < 1 << 53 && !keys[..at].contains(key), "{at}: {key}");
    }
}

#[test]
fn a_time_is_exact_to_the_nanosecond_in_every_unit() {
    for (text, unit, ns) in [
        ("1793322000000000001", TimeUnit::Ns, Some(1_793_322_000_000_000_001)),
        ("1793322000000.000001", TimeUnit::Ms, Some(1_793_322_000_000_000_001)),
        ("1793322000.000000001", TimeUnit::S, Some(1_793_322_000_000_000_001)),
        ("1793322000.0000000019", TimeUnit::S, Some(1_793_322_000_000_000_001)),
        ("1793322000000000", TimeUnit::Us, Some(1_793_322_000_000_000_000)),
        ("1.5e3", TimeUnit::S, Some(1_500_000_000_000)),
        ("0", TimeUnit::S, Some(0)),
        ("18446744073709551616", TimeUnit::Ns, None),
        ("18446744074", TimeUnit::S, None),
        ("1e99", TimeUnit::S, None),
        ("NaN", TimeUnit::S, None),
        ("inf", TimeUnit::S, None),
        ("", TimeUnit::S, None),
        (".", TimeUnit::S, None),
        ("1.2.3", TimeUnit::S, None),
    ] {
        assert_eq!(time_ns(text, unit), ns, "{text} {unit:?}");
    }
}

#[test]
fn time_is_the_one_mapped_or_that_of_the_engine() {
    let headers = Pairs(&[]);
    let exact = mapping("time = '{json:/t}'\ntime_unit = 's'")
        .map(message("a", r#"{"t":1793322000.123456789}"#, &headers))
        .unwrap()
        .producer_time_ns;
    assert_eq!(exact, Some(1_793_322_000_123_456_789));
    let payload = r#"{"t":"1.5"}"#;
    assert_eq!(mapping("").map(message("a", payload, &headers)).unwrap().producer_time_ns, Some(5));
    let mut mapped = mapping("time = '{json:/t}'\ntime_unit = 's'");
    assert_eq!(mapped.map(message("a", payload, &headers)).unwrap().producer_time_ns, Some(1_500_000_000));
}

#[test]
fn a_pointer_finds_scalars_as_rfc_6901_says() {
    let json = br#"{"foo":["bar","baz"],"":0,"a/b":1,"m~n":8,"k\"l":6," ":7,"u":"\u00e9\n","t":true,"e":1e2,"o":{"p":-2},"big":18446744073709551617,"long":1793322000.1234567891,"z":null}"#;
    for (pointer, value) in [
        ("/foo/0", Some("bar")),
        ("/foo/1", Some("baz")),
        ("/foo/2", None),
        ("/foo/01", None),
        ("/foo/-", None),
        ("/foo", None),
        ("", None),
        ("/", Some("0")),
        ("/a~1b", Some("1")),
        ("/m~0n", Some("8")),
        ("/k\"l", Some("6")),
        ("/ ", Some("7")),
        ("/u", Some("é\n")),
        ("/t", Some("true")),
        ("/e", Some("1e2")),
        ("/big", Some("18446744073709551617")),
        ("/long", Some("1793322000.1234567891")),
        ("/z", None),
        ("/o/p", Some("-2")),
        ("/o/q", None),
        ("/t/x", None),
    ] {
        let mut text = String::from(">");
        let parsed = json_pointer::JsonPointer::parse(pointer).unwrap();
        assert_eq!(parsed.to_string(), pointer);
        assert_eq!(parsed.append_scalar(json, &mut text), value.is_some(), "{pointer}");
        assert_eq!(text, format!(">{}", value.unwrap_or_default()), "{pointer}");
    }
    let value = |pointer: &str| {
        let parsed = json_pointer::JsonPointer::parse(pointer).unwrap();
        parsed.value(json).map(serde_json::value::RawValue::get)
    };
    assert_eq!(value("/foo"), Some(r#"["bar","baz"]"#));
    assert_eq!(
        (value("/o"), value("/e"), value("/x"), value("/t/x")),
        (Some(r#"{"p":-2}"#), Some("1e2"), None, None)
    );
    assert_eq!(value("").map(str::len), Some(json.len()));
    for bad in ["a", "/~", "/~2", &"/a".repeat(17)] {
        assert!(json_pointer::JsonPointer::parse(bad).is_none(), "{bad}");
    }
    let deep = "[".repeat(200_000);
    let pointer = json_pointer::JsonPointer::parse("/0/0").unwrap();
    assert!(!pointer.append_scalar(deep.as_bytes(), &mut String::new()), "depth is bounded");
    let cut = br#"{"a":1,"b":"#;
    let pointer = json_pointer::JsonPointer::parse("/a").unwrap();
    assert!(pointer.append_scalar(cut, &mut String::new()), "what follows is not read");
}

#[test]
fn only_the_whole_subject_tells_topics_of_several_logs_apart() {
    let apart =
        |map: &str, subjects: [&str; 2]| options(map).tells_subjects_apart(&subjects.map(str::to_owned));
    assert!(apart("", ["a.b", "a.c"]));
    assert!(apart("strip = 'a.'", ["a.b", "a.c"]));
    assert!(!apart("strip = 'a.'", ["a.b", "b"]));
    assert!(!apart("separator = '/'", ["a/b", "a.b"]));
    assert!(!apart("topic = '{1}'", ["a.b", "a.c"]));
    assert!(!apart("topic = '{subject}.{json:/x}'", ["a", "a.b"]), "with x = b.c and c");
}

#[test]
fn partitions_are_told_apart_only_by_the_first_or_the_last_token() {
    let subjects = ["md.eu", "md.us"].map(str::to_owned);
    for (topic, partitions, both) in [
        ("{subject}", false, true),
        ("{subject}.{partition}", true, true),
        ("{partition}.{subject}", true, true),
        ("{key}.{partition}", true, false),
        ("{partition}", true, false),
        ("{key}.{partition}.{subject}", false, false),
        ("{subject}{partition}", false, false),
    ] {
        let options = MapOptions { topic: topic.into(), ..MapOptions::default() };
        let told = (options.tells_partitions_apart(), options.tells_subjects_apart(&subjects));
        assert_eq!(told, (partitions, both), "{topic}");
    }
}

#[test]
fn wrong_options_are_refused_with_what_is_right() {
    for (map, part) in [
        ("topic = '{nine}'", "{nine} is not known: use {subject}"),
        ("topic = '{33}'", "{33} is not known"),
        ("topic = '{0}'", "{0} is not known"),
        ("topic = '{header:}'", "{header:} is not known"),
        ("topic = '{subject'", "a brace is not closed"),
        ("topic = 'a}'", "a brace is not closed"),
        ("topic = ''", "it is empty"),
        ("key = '{json:a}'", "\"a\" is not a JSON pointer such as /data/0/symbol"),
        ("separator = ''", "separator is empty"),
        ("prefix = 'a b.'", "prefix \"a b.\": contains whitespace"),
    ] {
        let mut checks = checks();
        assert!(Mapping::new(&options(map), &mut checks).is_none(), "{map}");
        let refused = checks.into_refused();
        assert!(refused.len() == 1 && refused[0].0 == "map" && refused[0].1.contains(part), "{refused:?}");
    }
    assert!(toml::from_str::<MapOptions>("topics = 'x'").is_err());
}
