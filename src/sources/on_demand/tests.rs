//! Tests of how topics lead back to subjects.

use super::*;
use crate::kind::SourceBounds;

fn options<'a>(
    dialect: Dialect,
    subjects: &'a [String],
    on_demand: &'a [String],
    map: &'a MapOptions,
) -> OnDemandOptions<'a> {
    let key = if dialect == Dialect::Nats { "subjects" } else { "channels" };
    OnDemandOptions { key, subjects, on_demand, linger: LINGER_DEFAULT, map, dialect }
}

/// What is refused.
fn refused(dialect: Dialect, subjects: &[&str], on_demand: &[&str], map: &MapOptions) -> Vec<String> {
    let bounds = SourceBounds { payload_bytes_max: 64, topics_max: 10, reads_files: true };
    let mut checks = OptionChecks::new(bounds);
    let [subjects, on_demand] =
        [subjects, on_demand].map(|texts| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
    let made = OnDemand::new(options(dialect, &subjects, &on_demand, map), &mut checks);
    let refused = checks.into_refused();
    assert!(made.is_none() || refused.is_empty());
    refused.into_iter().map(|(_, text)| text).collect()
}

fn on_demand(dialect: Dialect, subjects: &[&str], map: &MapOptions) -> OnDemand {
    let bounds = SourceBounds { payload_bytes_max: 64, topics_max: 10, reads_files: true };
    let mut checks = OptionChecks::new(bounds);
    let subjects: Vec<String> = subjects.iter().map(|&subject| subject.to_owned()).collect();
    let made = OnDemand::new(options(dialect, &subjects, &subjects, map), &mut checks);
    assert_eq!(checks.into_refused(), []);
    made.unwrap()
}

fn map(strip: &str, separator: &str, prefix: &str) -> MapOptions {
    let [strip, separator, prefix] = [strip, separator, prefix].map(str::to_owned);
    MapOptions { strip, separator, prefix, ..MapOptions::default() }
}

#[test]
fn patterns_of_topics_lead_back_to_subjects_of_nats() {
    let plain = on_demand(Dialect::Nats, &["md.>", "status.*"], &map("", ".", ""));
    assert_eq!(plain.topics().iter().map(|topics| &**topics).collect::<Vec<_>>(), ["md.>", "status.*"]);
    assert_eq!((plain.subject("md.*.x"), plain.topic("md.a")), ("md.*.x".into(), Some("md.a".into())));
    let stripped = on_demand(Dialect::Nats, &["*.eu"], &map("md.", ".", "prices.fra."));
    assert_eq!(stripped.topics()[0].as_ref(), "prices.fra.eu", "of `*.eu`, only md.eu is left after `strip`");
    let mapped = on_demand(Dialect::Nats, &["md.>"], &map("md.", ".", "prices.fra."));
    assert_eq!(mapped.topics()[0].as_ref(), "prices.fra.>");
    assert_eq!(mapped.subject("prices.fra.*.x"), "md.*.x");
    assert_eq!(mapped.topic("md.eu").as_deref(), Some("prices.fra.eu"));
    assert_eq!(mapped.topic("other.eu"), None);
    assert_eq!(&*mapped.widened("prices.fra.*".into()), "prices.fra.*");
}

#[test]
fn patterns_of_topics_lead_back_to_channels_and_globs_of_redis() {
    let made = on_demand(Dialect::Redis, &["in:md:*", "in:status"], &map("in:", ":", "p."));
    assert_eq!(made.topics().iter().map(|topics| &**topics).collect::<Vec<_>>(), ["p.md.>", "p.status"]);
    for (pattern, subject) in [
        ("p.status", "in:status"),
        ("p.md.a", "in:md:a"),
        ("p.md.a?b[c]", "in:md:a?b[c]"),
        ("p.md.>", "in:md:*"),
        ("p.md.*.x", "in:md:*:x"),
        ("p.md.a?[.>", "in:md:a\\?\\[:*"),
    ] {
        assert_eq!(made.subject(pattern), subject);
    }
    assert_eq!(made.topic("in:md:a:b").as_deref(), Some("p.md.a.b"));
    assert_eq!(made.topic("in:md:a.b"), None, "p.md.a.b leads to in:md:a:b");
    // One token and the rest are the same glob.
    for (wanted, widened) in
        [("p.md.*", "p.md.>"), ("p.md.*.*", "p.md.*.>"), ("p.md.*.x", "p.md.*.x"), ("p.a*", "p.a*")]
    {
        assert_eq!(&*made.widened(wanted.into()), widened);
    }
}

#[test]
fn what_does_not_lead_back_is_refused_and_the_text_says_what_to_do() {
    let plain = map("", ".", "");
    let nats = |subjects: &[&str], on_demand: &[&str], map: &MapOptions| {
        refused(Dialect::Nats, subjects, on_demand, map)
    };
    assert!(nats(&["md.>"], &[], &MapOptions { topic: "{1}".into(), ..plain.clone() }).is_empty());
    let template = nats(&["md.>"], &["md.>"], &MapOptions { topic: "p.{1}".into(), ..plain.clone() });
    assert!(template[0].contains("leave map.topic out, and use map.strip and map.prefix"), "{template:?}");
    let separator = nats(&["md.>"], &["md.>"], &map("", "/", ""));
    assert!(separator[0].contains("leave it out"), "{separator:?}");
    let parts = nats(&["md.>"], &["md.>"], &map("m", ".", "p"));
    assert!(
        parts[0].contains("map.strip = \"m\": must consist of whole tokens; end it with \".\""),
        "{parts:?}"
    );
    assert!(parts[1].contains("map.prefix = \"p\""), "{parts:?}");
    let other = nats(&["md.>"], &["md.eu"], &plain);
    assert!(other[0].contains("not one of `subjects`; list it there too"), "{other:?}");
    let both = nats(&["md.>", "*.eu"], &["md.>"], &plain);
    assert!(both[0].contains("overlap, so messages would come twice"), "{both:?}");
    let twice = nats(&["md.>"], &["md.>", "md.>"], &plain);
    assert!(twice[0].contains("overlap"), "{twice:?}");
    let stripped = nats(&["md.>"], &["md.>"], &map("in.", ".", ""));
    assert!(stripped[0].contains("does not begin with map.strip, \"in.\""), "{stripped:?}");
    let redis = |channels: &[&str], map: &MapOptions| refused(Dialect::Redis, channels, channels, map);
    for channel in ["md*", "md.?", "md.*.x", "md.[ab]"] {
        let glob = redis(&[channel], &plain);
        assert!(
            glob[0].contains("use the name of a channel, or whole tokens and `*`, such as \"md.*\""),
            "{glob:?}"
        );
    }
    assert!(redis(&["md.eu:*"], &map("", ":", ""))[0].contains("contains a dot"));
    assert!(redis(&["md:*", "md:eu:*"], &map("", ":", ""))[0].contains("overlap"));
    assert!(redis(&["*", "md"], &plain)[0].contains("overlap"));
    assert!(redis(&["md.*", "md", "mda.*"], &plain).is_empty());
}
