//! The queries of `/ws`, `/sse` and `/v1`.

use std::{borrow::Cow, str::FromStr};

use percent_encoding::percent_decode_str;

use super::{
    Failure,
    api::{Cursor, Page},
};
use crate::{
    codec::json,
    identity,
    limits::{HTTP_PAGE_ITEMS_DEFAULT, HTTP_PAGE_ITEMS_MAX},
    subscription::{Delivery, OptionError, StartPosition, interval_us},
};

/// The path that a query belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamPath {
    /// `/ws`.
    WebSocket,
    /// `/sse`, which also takes `last_event_id=`: an EventSource sends that in a header only when it reconnects by itself.
    EventStream,
}

/// The query parameters of `/ws` and `/sse`; see [`super::Target::Stream`].
#[derive(Default)]
pub(super) struct StreamQuery {
    pub(super) patterns: Vec<String>,
    pub(super) client: String,
    pub(super) delivery: Delivery,
    pub(super) from: StartPosition,
    /// The client's token, percent-decoded; empty: none.
    pub(super) token: Vec<u8>,
    /// Id of the last event that the client has, percent-decoded; empty: none.
    pub(super) last_event_id: Vec<u8>,
}

/// The parameters of a query, not decoded.
pub(super) fn pairs(text: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    let pairs = text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// The patterns in `topics`, not decoded.
pub(super) fn elements(topics: &str) -> impl Iterator<Item = &str> {
    topics.split(',').filter(|pattern| !pattern.is_empty())
}

/// Parses `topics=a.b,c.>&client=ID&from=latest&policy=conflate&max_rate=5`. A comma within a name is escaped as `%2C`,
/// an `&` within an identity as `%26`. `takes_token`: whether a token is accepted.
pub(super) fn parse(text: Option<&str>, path: StreamPath, takes_token: bool) -> Result<StreamQuery, Failure> {
    let bad = |text: String| Failure::bad_request(text);
    let mut query = StreamQuery::default();
    for (name, value) in pairs(text) {
        match name {
            "topics" => {
                for pattern in elements(value) {
                    let pattern = percent_decode_str(pattern)
                        .decode_utf8()
                        .map_err(|_| bad("parameter topics is not UTF-8".into()))?;
                    query.patterns.push(pattern.into_owned());
                }
            }
            "from" => query.from = json::start_from_word(value).map_err(|error| bad(error.to_string()))?,
            "policy" => {
                query.delivery.policy =
                    Some(value.parse().map_err(|error: OptionError| bad(error.to_string()))?);
            }
            "max_rate" => {
                let rate =
                    value.parse().map_err(|_| bad(OptionError::MaxRate(value.to_owned()).to_string()))?;
                query.delivery.interval_us = interval_us(rate).map_err(|error| bad(error.to_string()))?;
            }
            "client" if !query.client.is_empty() => {
                return Err(bad("parameter client is given more than once".into()));
            }
            "client" => {
                let value: Cow<'_, [u8]> = percent_decode_str(value).into();
                let identity =
                    identity::check(&value).map_err(|error| bad(format!("parameter client: {error}")))?;
                query.client = identity.to_owned();
            }
            "last_event_id" if path == StreamPath::EventStream => {
                query.last_event_id = percent_decode_str(value).collect();
            }
            "token" if !takes_token => {
                return Err(bad(
                    "parameter token is not accepted: send the token in header authorization, as a subprotocol, or in hello".into(),
                ));
            }
            "token" if !query.token.is_empty() => {
                return Err(bad("parameter token is given more than once".into()));
            }
            "token" => query.token = percent_decode_str(value).collect(),
            _ => {
                return Err(bad(format!(
                    "unknown parameter {name:?}; use topics=a.b,c.>, client=ID, from=latest, policy=conflate or max_rate=5"
                )));
            }
        }
    }
    Ok(query)
}

/// The parameters of the query of a `/v1` request, not decoded.
pub(super) struct Query<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Query<'a> {
    pub(super) fn new(text: Option<&'a str>) -> Query<'a> {
        Query(pairs(text).collect())
    }

    pub(super) fn values(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| *known == name).map(|(_, value)| *value)
    }

    pub(super) fn value(&self, name: &str) -> Option<&'a str> {
        self.values(name).next()
    }

    /// Checks that no parameter is unknown, and that none but `topics` is given twice.
    pub(super) fn check(&self, known: &[&str]) -> Result<(), Failure> {
        for (at, (name, _)) in self.0.iter().enumerate() {
            if !known.contains(name) {
                let known: Vec<&str> = known.iter().copied().filter(|known| *known != "token").collect();
                return Err(Failure::bad_request(format!(
                    "unknown parameter {name:?}; this resource has {}",
                    if known.is_empty() { "none".to_owned() } else { known.join(", ") }
                )));
            }
            if *name != "topics" && self.0[..at].iter().any(|(before, _)| before == name) {
                return Err(Failure::bad_request(format!("parameter {name} is given more than once")));
            }
        }
        Ok(())
    }

    pub(super) fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, Failure> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        let number = if is_number { value.parse().ok() } else { None };
        number
            .map(Some)
            .ok_or_else(|| Failure::bad_request(format!("parameter {name} is not a whole number")))
    }

    pub(super) fn limit(&self) -> Result<usize, Failure> {
        match self.number("limit")?.unwrap_or(HTTP_PAGE_ITEMS_DEFAULT) {
            limit @ 1..=HTTP_PAGE_ITEMS_MAX => Ok(limit),
            _ => Err(Failure::bad_request(format!("parameter limit: use 1 to {HTTP_PAGE_ITEMS_MAX}"))),
        }
    }

    pub(super) fn page(&self) -> Result<Page, Failure> {
        let after = self
            .value("after")
            .map_or(Ok(Cursor::default()), str::parse)
            .map_err(|()| Failure::bad_request("parameter after is not the \"next\" of an earlier answer"))?;
        Ok(Page { limit: self.limit()?, after })
    }
}
