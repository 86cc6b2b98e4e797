//! Positions older than a server's history, in topics whose log has a reader: clients get the ticks from the log.

use crate::{
    harness::{
        Server, beside_others,
        engines::{Nats, Redis},
        eventually,
        http::{get_of_all_shards, request},
    },
    positions::{FORMATS, Reader, numbers, serve_with_history},
};
use tickcast_proto::WireFormat;

/// Value of a counter of all shards, or of all sources.
pub(crate) fn metric(server: &Server, name: &str) -> u64 {
    let text = request(server.admin.unwrap(), "GET", "/metrics").body;
    let samples = text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
    samples.map(|(_, value)| value.parse::<f64>().unwrap() as u64).sum()
}

/// Whether the server's source has published so many ticks.
pub(crate) fn has_read(server: &Server, ticks: u64) -> bool {
    let shards = get_of_all_shards(server.admin.unwrap(), "/v1/shards").json();
    shards["sources"][0]["ticks"].as_u64() == Some(ticks)
}

/// What a reader must have of a topic: numbers in order, each once.
fn assert_whole(reader: &Reader, topic: &str, count: u32) {
    assert_eq!(reader.got[topic], numbers(0..count).collect::<Vec<_>>(), "{topic}: every tick once");
}

/// Readers leave, miss far more than the server keeps, and come back while more is published.
pub(crate) fn away_for_longer_than_the_history(
    server: &Server,
    publish: impl Fn(&str, std::ops::Range<u32>),
) {
    let mut readers = FORMATS.map(|format| {
        let mut reader = Reader::default();
        reader.connect(server, format);
        reader
    });
    for topic in ["t.a", "t.b"] {
        publish(topic, 0..10);
    }
    for reader in &mut readers {
        reader.read(20);
        reader.client = None;
    }
    for range in [10..3_000, 3_000..6_000] {
        for topic in ["t.a", "t.b"] {
            publish(topic, range.clone());
        }
    }
    for (format, reader) in FORMATS.into_iter().zip(&mut readers) {
        reader.connect(server, format);
    }
    publish("t.a", 6_000..6_100);
    for reader in &mut readers {
        reader.read(2 * 6_000 + 100);
        assert_whole(reader, "t.a", 6_100);
        assert_whole(reader, "t.b", 6_000);
        assert!(reader.recovered.iter().all(|recovered| *recovered), "{:?}", reader.recovered);
    }
    assert!(metric(server, "tickcast_log_ticks_read_total") > 2 * 5_000);
    assert!(metric(server, "tickcast_source_messages_read_back_total") > 5_000);
    eventually("nobody waits", || metric(server, "tickcast_log_reads_waiting") == 0);
}

#[test]
fn a_client_that_was_away_for_longer_than_the_history_gets_every_tick_from_jetstream() {
    let _machine = beside_others();
    let nats = Nats::start("js-read-back", &[]);
    nats.make_stream("TICKS", "t.>");
    let source = format!("kind = 'jetstream'\nstream = 'TICKS'\nstart = 'all'\n{}", nats.servers());
    let server = serve_with_history("js-read-back", &source, "50:64KiB:0");
    away_for_longer_than_the_history(&server, |topic, range| nats.store(topic, numbers(range)));
    // A server that starts later has read none of it, and serves the client's place all the same.
    let mut reader = Reader::default();
    reader.connect(&server, WireFormat::TCP_NATIVE);
    nats.store("t.a", numbers(0..1));
    reader.read(1);
    reader.client = None;
    nats.store("t.a", numbers(1..500));
    let source = format!("kind = 'jetstream'\nstream = 'TICKS'\n{}", nats.servers());
    let late = serve_with_history("js-read-back-late", &source, "50:64KiB:0");
    reader.connect(&late, WireFormat::TCP_NATIVE);
    nats.store("t.a", numbers(500..510));
    reader.read(510);
    assert_whole(&reader, "t.a", 510);
    for server in [server, late] {
        server.stop_cleanly();
    }
}

#[test]
fn a_client_that_was_away_for_longer_than_the_history_gets_every_tick_from_redis() {
    let _machine = beside_others();
    let redis = Redis::start("redis-read-back", &[]);
    let source =
        format!("kind = 'redis-stream'\nstreams = ['t.a', 't.b']\nstart = 'all'\n{}", redis.server());
    let server = serve_with_history("redis-read-back", &source, "50:64KiB:0");
    away_for_longer_than_the_history(&server, |topic, range| redis.add(topic, numbers(range)));
    server.stop_cleanly();
}

/// A reader leaves after ten ticks, the log is trimmed past its place, and it comes back.
fn trimmed(server: &Server, publish: impl Fn(std::ops::Range<u32>), trim: impl FnOnce()) {
    let mut reader = Reader::default();
    reader.connect(server, WireFormat::WEBSOCKET_JSON);
    publish(0..10);
    reader.read(10);
    reader.client = None;
    publish(10..1_000);
    // Not before the server has read it all, which would be a hole for everybody.
    eventually("all ticks", || has_read(server, 1_000));
    trim();
    reader.connect(server, WireFormat::WEBSOCKET_JSON);
    reader.read(11);
    let expected: Vec<String> = numbers(0..10).chain(["gap".into(), "999".into()]).collect();
    assert_eq!((&reader.got["t.a"], &reader.recovered[..]), (&expected, &[false][..]));
    assert_eq!(metric(server, "tickcast_log_reads_too_old_total"), 1);
}

#[test]
fn a_place_that_was_trimmed_from_the_log_is_not_recovered() {
    let _machine = beside_others();
    let nats = Nats::start("js-trimmed", &[]);
    nats.make_stream("TICKS", "t.>");
    let source = format!("kind = 'jetstream'\nstream = 'TICKS'\nstart = 'all'\n{}", nats.servers());
    let server = serve_with_history("js-trimmed", &source, "50:64KiB:0");
    let trim = || {
        nats.with(async |client| {
            let stream = async_nats::jetstream::new(client).get_stream("TICKS").await.unwrap();
            stream.purge().sequence(500_u64).await.unwrap();
        });
    };
    trimmed(&server, |range| nats.store("t.a", numbers(range)), trim);
    server.stop_cleanly();
    let redis = Redis::start("redis-trimmed", &[]);
    let source = format!("kind = 'redis-stream'\nstreams = ['t.a']\nstart = 'all'\n{}", redis.server());
    let server = serve_with_history("redis-trimmed", &source, "50:64KiB:0");
    let trim = || {
        let mut connection = redis.connect();
        redis::cmd("XTRIM").arg("t.a").arg("MAXLEN").arg("=").arg(500).exec(&mut connection).unwrap();
    };
    trimmed(&server, |range| redis.add("t.a", numbers(range)), trim);
    server.stop_cleanly();
}

#[test]
fn an_engine_that_is_away_delays_a_client_no_longer_than_the_timeout() {
    let _machine = beside_others();
    let mut nats = Nats::start("js-away", &[]);
    nats.make_stream("TICKS", "t.>");
    let source = format!(
        "kind = 'jetstream'\nstream = 'TICKS'\nstart = 'all'\nread_back_timeout = '300ms'\n{}",
        nats.servers()
    );
    let server = serve_with_history("js-away", &source, "50:64KiB:0");
    let mut reader = Reader::default();
    reader.connect(&server, WireFormat::TCP_NATIVE);
    nats.store("t.a", numbers(0..10));
    reader.read(10);
    reader.client = None;
    nats.store("t.a", numbers(10..1_000));
    eventually("all ticks", || has_read(&server, 1_000));
    nats.kill();
    reader.connect(&server, WireFormat::TCP_NATIVE);
    reader.read(11);
    assert_eq!((reader.got["t.a"].last().unwrap().as_str(), &reader.recovered[..]), ("999", &[false][..]));
    assert_eq!(metric(&server, "tickcast_log_reads_expired_total"), 1);
    server.stop_cleanly();
}

#[test]
fn a_source_that_does_not_read_back_answers_from_its_history() {
    let _machine = beside_others();
    let nats = Nats::start("js-no-read-back", &[]);
    nats.make_stream("TICKS", "t.>");
    let source =
        format!("kind = 'jetstream'\nstream = 'TICKS'\nstart = 'all'\nread_back = false\n{}", nats.servers());
    let server = serve_with_history("js-no-read-back", &source, "50:64KiB:0");
    let mut reader = Reader::default();
    reader.connect(&server, WireFormat::TCP_NATIVE);
    nats.store("t.a", numbers(0..10));
    reader.read(10);
    reader.client = None;
    nats.store("t.a", numbers(10..1_000));
    eventually("all ticks", || has_read(&server, 1_000));
    reader.connect(&server, WireFormat::TCP_NATIVE);
    reader.read(11);
    assert_eq!(reader.recovered, [false]);
    assert_eq!(metric(&server, "tickcast_log_reads_total"), 0);
    server.stop_cleanly();
}
