//! Query strings of the admin API.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::limits::{ADMIN_ROWS_DEFAULT, ADMIN_ROWS_MAX, REVOCATION_MS_HIGHEST};
use tickcast_core::{
    metrics::latency::Until,
    principal::Revocation,
    shard::survey::{SessionSort, SessionsQuery, TopicSort, TopicsQuery},
};
use tickcast_proto::{identity, units::parse_duration_ns};

/// The values of `sort=` in `/v1/sessions`.
pub const SESSION_SORTS: [(&str, SessionSort); 6] = [
    ("outbox", SessionSort::Outbox),
    ("lag", SessionSort::Lag),
    ("dropped", SessionSort::Dropped),
    ("conflated", SessionSort::Conflated),
    ("topics", SessionSort::Topics),
    ("newest", SessionSort::Newest),
];

/// The format of `/v1/latency`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatencyFormat {
    /// Percentiles of each shard and of all shards together.
    Json,
    /// A count for each latency, over all shards; two responses can be subtracted.
    Counts,
    /// The histogram over all shards, in HdrHistogram's plotter format.
    Hgrm(Until),
}

/// What to revoke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationQuery {
    /// The subject or token.
    pub revocation: Revocation,
    /// How long to refuse it, nanoseconds; `None`: as long as possible.
    pub keep_ns: Option<u64>,
}

/// Parsed parameters, each name at most once.
struct Parameters<'a>(Vec<(&'a str, Cow<'a, str>)>);

impl<'a> Parameters<'a> {
    fn parse(query: &'a str, known: &[&str]) -> Result<Parameters<'a>, String> {
        let mut found: Vec<(&str, Cow<'_, str>)> = Vec::new();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let value = percent_decode_str(value)
                .decode_utf8()
                .map_err(|_| format!("parameter {} is not UTF-8", quoted(name)))?;
            if !known.contains(&name) {
                return Err(format!("unknown parameter {}; use {}", quoted(name), known.join(", ")));
            }
            if found.iter().any(|(before, _)| *before == name) {
                return Err(format!("parameter {name} is given twice"));
            }
            found.push((name, value));
        }
        Ok(Parameters(found))
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_ref())
    }

    fn one_of<T: Copy>(&self, name: &str, values: &[(&str, T)], default: T) -> Result<T, String> {
        let Some(text) = self.value(name) else { return Ok(default) };
        let value = values.iter().find(|(known, _)| *known == text).map(|&(_, value)| value);
        value.ok_or_else(|| {
            let known: Vec<&str> = values.iter().map(|(known, _)| *known).collect();
            format!("invalid {name} {}; use one of {}", quoted(text), known.join(", "))
        })
    }

    fn limit(&self) -> Result<usize, String> {
        let Some(text) = self.value("limit") else { return Ok(ADMIN_ROWS_DEFAULT) };
        let limit = text.parse::<usize>().ok().filter(|limit| (1..=ADMIN_ROWS_MAX).contains(limit));
        limit.ok_or_else(|| format!("invalid limit {}; use 1 to {ADMIN_ROWS_MAX}", quoted(text)))
    }
}

/// A client's text, quoted and truncated so that it is safe to send back.
fn quoted(text: &str) -> String {
    format!("{:?}", text.chars().take(64).collect::<String>())
}

/// Parses the query of `/v1/sessions`.
///
/// # Errors
/// Which parameter is invalid, and why.
pub fn sessions(query: &str) -> Result<SessionsQuery, String> {
    let parameters = Parameters::parse(query, &["tenant", "sort", "limit"])?;
    let sort = parameters.one_of("sort", &SESSION_SORTS, SessionSort::Outbox)?;
    Ok(SessionsQuery { tenant: parameters.value("tenant").map(Into::into), sort, limit: parameters.limit()? })
}

/// Parses the query of `/v1/topics`.
///
/// # Errors
/// Which parameter is invalid, and why.
pub fn topics(query: &str) -> Result<TopicsQuery, String> {
    let parameters = Parameters::parse(query, &["prefix", "tenant", "sort", "limit"])?;
    let sorts = [("ticks", TopicSort::Ticks), ("bytes", TopicSort::Bytes), ("newest", TopicSort::Newest)];
    Ok(TopicsQuery {
        prefix: parameters.value("prefix").unwrap_or_default().to_owned(),
        tenant: parameters.value("tenant").map(Into::into),
        sort: parameters.one_of("sort", &sorts, TopicSort::Ticks)?,
        limit: parameters.limit()?,
    })
}

/// Parses the query of `/v1/latency`.
///
/// # Errors
/// Which parameter is invalid, and why.
pub fn latency(query: &str) -> Result<LatencyFormat, String> {
    let parameters = Parameters::parse(query, &["format", "until"])?;
    let untils = [("sequenced", Until::Sequenced), ("sent", Until::Sent)];
    let until = parameters.one_of("until", &untils, Until::Sent)?;
    let formats = [
        ("json", LatencyFormat::Json),
        ("counts", LatencyFormat::Counts),
        ("hgrm", LatencyFormat::Hgrm(until)),
    ];
    match parameters.one_of("format", &formats, LatencyFormat::Json)? {
        LatencyFormat::Json | LatencyFormat::Counts if parameters.value("until").is_some() => {
            Err("parameter until requires format=hgrm".to_owned())
        }
        format => Ok(format),
    }
}

/// Parses the query of `/v1/revocations`.
///
/// # Errors
/// Which parameter is invalid, and why.
pub fn revocation(query: &str) -> Result<RevocationQuery, String> {
    let parameters = Parameters::parse(query, &["sub", "tenant", "jti", "keep"])?;
    let name = |name| match parameters.value(name) {
        Some(text) if identity::check(text.as_bytes()).is_err() => {
            Err(format!("invalid {name}; use 1 to 255 bytes without control characters"))
        }
        text => Ok(text),
    };
    let tenant = name("tenant")?;
    let revocation = match (name("sub")?, name("jti")?) {
        (Some(subject), None) => {
            Revocation::Subject { tenant: tenant.unwrap_or_default().into(), subject: subject.into() }
        }
        (None, Some(_)) if tenant.is_some() => return Err("parameter tenant requires sub".to_owned()),
        (None, Some(id)) => Revocation::TokenId(id.into()),
        _ => return Err("use either sub or jti".to_owned()),
    };
    let keep_ns = match parameters.value("keep") {
        None => None,
        Some(text) => {
            let ns = parse_duration_ns(text).ok();
            let in_range = ns.filter(|ns| (1_000_000_000..=REVOCATION_MS_HIGHEST * 1_000_000).contains(ns));
            Some(in_range.ok_or_else(|| format!("invalid keep {}; use 1s to 366d", quoted(text)))?)
        }
    };
    Ok(RevocationQuery { revocation, keep_ns })
}

/// Checks the query of an endpoint that takes no parameters.
///
/// # Errors
/// The first parameter found.
pub fn no_parameters(query: &str) -> Result<(), String> {
    match query.split('&').find(|part| !part.is_empty()) {
        Some(part) => {
            let name = part.split('=').next().unwrap_or_default();
            Err(format!("unknown parameter {}; this path takes none", quoted(name)))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn omitted_parameters_have_defaults() {
        let outbox = SessionsQuery { tenant: None, sort: SessionSort::Outbox, limit: ADMIN_ROWS_DEFAULT };
        assert_eq!(sessions(""), Ok(outbox));
        assert_eq!(
            sessions("limit=7&sort=lag"),
            Ok(SessionsQuery { tenant: None, sort: SessionSort::Lag, limit: 7 })
        );
        let of = |prefix: &str, sort| TopicsQuery {
            prefix: prefix.into(),
            tenant: None,
            sort,
            limit: ADMIN_ROWS_DEFAULT,
        };
        assert_eq!(topics("&"), Ok(of("", TopicSort::Ticks)));
        assert_eq!(topics("prefix=k%C3%A4se.&sort=bytes"), Ok(of("käse.", TopicSort::Bytes)));
        assert_eq!(latency(""), Ok(LatencyFormat::Json));
        assert_eq!(latency("format=counts"), Ok(LatencyFormat::Counts));
        assert_eq!(latency("format=hgrm"), Ok(LatencyFormat::Hgrm(Until::Sent)));
        assert_eq!(latency("format=hgrm&until=sequenced"), Ok(LatencyFormat::Hgrm(Until::Sequenced)));
        assert_eq!(no_parameters("&&"), Ok(()));
    }

    #[test]
    fn a_revocation_names_a_subject_or_a_token_and_not_both() {
        let subject = |tenant: &str| Revocation::Subject { tenant: tenant.into(), subject: "alice".into() };
        let of = |query| {
            let seconds = |ns: u64| ns / 1_000_000_000;
            revocation(query).map(|query| (query.revocation, query.keep_ns.map(seconds)))
        };
        assert_eq!(of("sub=alice"), Ok((subject(""), None)));
        assert_eq!(of("sub=alice&tenant=acme&keep=15m"), Ok((subject("acme"), Some(900))));
        assert_eq!(of("jti=a%20b"), Ok((Revocation::TokenId("a b".into()), None)));
        for bad in [
            "",
            "tenant=t",
            "sub=a&jti=b",
            "jti=b&tenant=t",
            "sub=",
            "sub=%00",
            "sub=a&keep=0",
            "jti=a&keep=10y",
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn invalid_parameters_are_refused_by_name() {
        let refused = |query: &str| sessions(query).map(|_| ()).unwrap_err();
        for (query, name) in [
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("limit=-1", "limit"),
            ("limit=", "limit"),
            ("limit=1&limit=1", "limit"),
            ("sort=size", "outbox, lag"),
            ("sort", "sort"),
            ("color=red", "color"),
            ("sort=%ff", "sort"),
        ] {
            assert!(refused(query).contains(name), "{query}: {}", refused(query));
        }
        assert!(topics("prefix=%80").is_err() && topics("sort=lag").is_err());
        assert!(latency("until=sent").unwrap_err().contains("hgrm"));
        assert!(no_parameters("a=b").unwrap_err().contains("\"a\""));
        assert!(refused(&format!("{}=1", "x".repeat(10_000))).len() < 200);
    }
}
