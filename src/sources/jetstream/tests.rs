use super::*;
use crate::kind::SourceBounds;

#[test]
fn a_start_is_read_as_it_is_written() {
    for (text, start) in [
        ("new", Start::New),
        ("all", Start::All),
        ("17", Start::Sequence(17)),
        ("10m", Start::Window(600_000_000_000)),
    ] {
        assert_eq!(text.parse(), Ok(start));
        assert_eq!(start.to_string(), text);
    }
    for text in ["2026-01-31T08:00:00Z", "2026-01-31T08:00:00.000000001Z"] {
        let start: Start = text.parse().unwrap();
        assert!(matches!(start, Start::Time(_)) && start.to_string() == text, "{start}");
    }
    assert_eq!("2026-01-31T09:00:00+01:00".parse(), "2026-01-31T08:00:00Z".parse::<Start>());
    for bad in ["", "newest", "-1", "10 minutes", "2026-01-31"] {
        assert!(bad.parse::<Start>().is_err(), "{bad}");
    }
}

#[test]
fn a_position_goes_on_only_in_the_life_of_the_stream_that_it_is_from() {
    let state = |first: u64, last: u64| -> stream::State {
        let text = format!(
            r#"{{"messages":0,"bytes":0,"first_seq":{first},"first_ts":"2026-01-01T00:00:00Z","last_seq":{last},"last_ts":"2026-01-01T00:00:00Z","consumer_count":0}}"#
        );
        serde_json::from_str(&text).unwrap()
    };
    let position = Position { created_ns: 7, next: 101, complete_from: 1 };
    for (created_ns, first, last, expected) in [
        (7, 1, 100, Continuation::Same),
        (7, 1, 5_000, Continuation::Same),
        (7, 101, 100, Continuation::Same),
        (7, 101, 200, Continuation::Same),
        (7, 111, 200, Continuation::Passed { next: 111, lost: 10 }),
        (7, 201, 200, Continuation::Passed { next: 201, lost: 100 }),
        (7, 1, 99, Continuation::NewLife),
        (8, 1, 100, Continuation::NewLife),
        (8, 1, 5_000, Continuation::NewLife),
    ] {
        assert_eq!(position.continuation(created_ns, &state(first, last)), expected, "{first} {last}");
    }
}

#[test]
fn a_source_has_read_back_once_it_is_where_the_stream_ended_when_it_was_found() {
    let bounds = SourceBounds { payload_bytes_max: 64, topics_max: 10, reads_files: true };
    let options = Options::default();
    let mut checks = OptionChecks::new(bounds);
    let connection = Connection::new("jetstream", options.servers, options.auth, options.tls, &mut checks);
    let mut source = JetStream {
        connection: connection.unwrap(),
        stream: "T".into(),
        subjects: Vec::new(),
        start: Start::All,
        mapping: Mapping::new(&options.map, &mut checks).unwrap(),
        is_logged: true,
        position: None,
        filtered: Filtered::default(),
        read_back_to: None,
        set_back: 0,
    };
    assert!(!source.has_read_back(), "not found yet");
    source.read_back_to = Some(10);
    assert!(!source.has_read_back(), "nothing read yet");
    for (next, has_read_back) in [(10, false), (11, true), (500, true)] {
        source.position = Some(Position { created_ns: 7, next, complete_from: 1 });
        assert_eq!(source.has_read_back(), has_read_back, "{next}");
    }
}
