//! `/v1`: publishing, and reading last values, history and topic names, with one request each. The core carries them out, so they
//! have the permissions, budgets and tenants of every other request.
//!
//! ```text
//!  POST /v1/publish            one tick, an array of ticks, or lines of ticks
//!  POST /v1/publish?answer=summary  lines of ticks without end, published while they arrive: see lines.rs
//!  POST /v1/publish/TOPIC      the body is the payload
//!  GET  /v1/latest?topics=a.b,c.>&limit=100&after=CURSOR
//!  GET  /v1/history?topic=a.b&epoch=E&from=N&limit=100
//!  GET  /v1/topics?pattern=a.>&limit=100&after=CURSOR
//! ```
//! `docs/openapi.json` describes them.

use std::{borrow::Cow, str::FromStr};

use http::{Method, StatusCode, header};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Answer, Failure, HttpConfig, Response, idempotency,
    query::{self, Query},
    request::Request,
    response::Delivery,
    websocket,
};
use crate::{
    ErrorCode,
    codec::json::{
        self,
        diagnosis::{self, Form, Shape},
    },
    command::Token,
    limits::{HTTP_PUBLISH_TICKS_MAX, REFUSED_RETRY_AFTER_S},
    pattern,
};

/// A request of `/v1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Publishes these ticks, in order. `is_single`: the answer is that of one tick, not a list.
    Publish {
        /// 1 to [`HTTP_PUBLISH_TICKS_MAX`].
        ticks: Vec<Tick>,
        /// The request has one tick.
        is_single: bool,
    },
    /// Publishes the next lines of a body that is still arriving. Answered once the last ones have been published.
    PublishLines {
        /// At most [`HTTP_PUBLISH_TICKS_MAX`].
        ticks: Vec<Tick>,
        /// No more lines follow.
        is_last: bool,
        /// Why the rest of the body is not read.
        refused: Option<Refused>,
    },
    /// Reads the last value of each key of topics.
    Latest {
        /// Valid patterns, at least one.
        patterns: Vec<String>,
        /// Which part of them.
        page: Page,
    },
    /// Reads the ticks that a topic keeps.
    History {
        /// A valid name.
        topic: String,
        /// The epoch of `from`; `None`: whichever the topic has.
        epoch: Option<u64>,
        /// The first sequence wanted.
        from: u64,
        /// Most ticks.
        limit: usize,
    },
    /// Reads the names of topics.
    Topics {
        /// A valid pattern.
        pattern: String,
        /// Which part of them.
        page: Page,
    },
}

/// Why a body is not read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The status of the answer.
    pub status: u16,
    /// What is wrong, and in which tick.
    pub text: String,
}

/// A part of a list of topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Most items: 1 to [`HTTP_PAGE_ITEMS_MAX`](crate::limits::HTTP_PAGE_ITEMS_MAX).
    pub limit: usize,
    /// Where it begins.
    pub after: Cursor,
}

/// Where a page ends and the next one begins. Topics that are created or forgotten between two pages may be missed or come again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Index of the pattern.
    pub pattern: u32,
    /// The home shard.
    pub home: u16,
    /// The topic's place at its home.
    pub place: u32,
    /// The first sequence wanted of that topic.
    pub sequence: u64,
    /// Identifies that topic and its life if not all of its sequences are wanted: the place may be another topic's by the next page.
    pub life: u64,
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Cursor { pattern, home, place, sequence, life } = self;
        write!(f, "{pattern}.{home}.{place}.{sequence}.{life}")
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Cursor, ()> {
        let mut parts = text.split('.');
        let mut next = || parts.next().ok_or(());
        let cursor = Cursor {
            pattern: next()?.parse().map_err(drop)?,
            home: next()?.parse().map_err(drop)?,
            place: next()?.parse().map_err(drop)?,
            sequence: next()?.parse().map_err(drop)?,
            life: next()?.parse().map_err(drop)?,
        };
        parts.next().map_or(Ok(cursor), |_| Err(()))
    }
}

/// A tick to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tick {
    /// The topic; not validated.
    pub topic: String,
    /// The payload.
    pub payload: Vec<u8>,
    /// Whether the payload is known to be JSON.
    pub is_json: bool,
    /// Producer's timestamp, nanoseconds since 1970; 0: the time of receipt.
    pub producer_time_ns: u64,
    /// Schema number.
    pub schema: u32,
    /// Conflation key; 0: none.
    pub key: u64,
    /// Message id; empty: none.
    pub message_id: String,
}

/// How a request of `/v1` is answered, once its answer is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Whether the connection closes after the answer.
    pub closes: bool,
    is_head: bool,
    is_1_0: bool,
    /// Header lines for browsers.
    cors: String,
}

impl Exchange {
    pub(super) fn new(request: &Request, keeps_alive: bool, cors: String) -> Exchange {
        let is_1_0 = request.head.version() < http::Version::HTTP_11;
        Exchange { closes: !keeps_alive, is_head: request.is_head(), is_1_0, cors }
    }

    /// The bytes of an answer: JSON, which ends with a line break.
    pub fn answer(&self, status: u16, json: String, realtime_ns: u64) -> Vec<u8> {
        let code = StatusCode::from_u16(status);
        debug_assert!(code.is_ok(), "{status} is an HTTP status");
        let status = code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut fields =
            format!("Content-Type: application/json\r\nCache-Control: no-store\r\n{}", self.cors);
        match status {
            StatusCode::UNAUTHORIZED => fields += "WWW-Authenticate: Bearer\r\n",
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                fields += &format!("Retry-After: {REFUSED_RETRY_AFTER_S}\r\n");
            }
            _ => {}
        }
        let response = Response { status, fields, body: Cow::Owned((json + "\n").into_bytes()) };
        self.encode(&response, realtime_ns)
    }

    /// The bytes of an answer to long-polling: packets, or `ok`; with status 400 an error as JSON.
    pub fn answer_poll(&self, status: u16, body: Vec<u8>, realtime_ns: u64) -> Vec<u8> {
        let media_type = if status == 200 { "text/plain; charset=UTF-8" } else { "application/json" };
        let fields = format!("Content-Type: {media_type}\r\nCache-Control: no-store\r\n{}", self.cors);
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.encode(&Response { status, fields, body: Cow::Owned(body) }, realtime_ns)
    }

    fn encode(&self, response: &Response, realtime_ns: u64) -> Vec<u8> {
        let (is_head, keeps_alive, is_1_0) = (self.is_head, !self.closes, self.is_1_0);
        response.encode(Delivery { is_head, keeps_alive, is_1_0, realtime_ns })
    }

    /// The bytes of an answer that says what is wrong.
    pub fn refuse(&self, status: u16, error: &str, realtime_ns: u64) -> Vec<u8> {
        self.answer(status, format!("{{\"error\":{error}}}"), realtime_ns)
    }
}

/// An error as JSON: `{"code":108,"text":"..."}`.
pub fn error_json(code: ErrorCode, text: &str) -> String {
    format!("{{\"code\":{},\"text\":{}}}", code as u16, json::literal(text))
}

/// The status that says that a request of `/v1` has failed for this reason. A client may send the request again after 429 and 503:
/// nothing of it has been published.
pub fn status_of(code: ErrorCode) -> u16 {
    match code {
        ErrorCode::BadRequest
        | ErrorCode::BadTopic
        | ErrorCode::BadPattern
        | ErrorCode::NotSubscribed
        | ErrorCode::AlreadySubscribed => 400,
        ErrorCode::NotAllowed => 403,
        ErrorCode::FedByLog => 409,
        ErrorCode::TooLarge => 413,
        ErrorCode::RateLimited | ErrorCode::TooManySubscriptions => 429,
        ErrorCode::TooManyTopics | ErrorCode::EngineUnavailable => 503,
        ErrorCode::Unconfirmed => 504,
    }
}

/// A resource of `/v1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource<'a> {
    Publish,
    PublishTo(&'a str),
    Latest,
    History,
    Topics,
}

impl Resource<'_> {
    /// The resource at a path.
    pub(super) fn at(path: &str) -> Option<Resource<'_>> {
        Some(match path {
            "/v1/publish" => Resource::Publish,
            "/v1/latest" => Resource::Latest,
            "/v1/history" => Resource::History,
            "/v1/topics" => Resource::Topics,
            _ => Resource::PublishTo(path.strip_prefix("/v1/publish/").filter(|topic| !topic.is_empty())?),
        })
    }

    /// Methods that it supports.
    pub(super) fn allowed(self) -> &'static str {
        match self {
            Resource::Publish | Resource::PublishTo(_) => "POST",
            Resource::Latest | Resource::History | Resource::Topics => "GET, HEAD",
        }
    }

    pub(super) fn allows(self, method: &Method) -> bool {
        match self {
            Resource::Publish | Resource::PublishTo(_) => method == Method::POST,
            Resource::Latest | Resource::History | Resource::Topics => {
                method == Method::GET || method == Method::HEAD
            }
        }
    }
}

/// Checks what can be checked before the body has arrived, and returns the token.
pub(super) fn check(request: &Request, config: &HttpConfig<'_>) -> Result<Option<Token<'static>>, Failure> {
    if idempotency::is_given(request) && request.head.method() == Method::POST && !config.message_ids {
        return Err(Failure(StatusCode::NOT_IMPLEMENTED, idempotency::OFF.into()));
    }
    let pairs = Query::new(request.head.uri().query());
    let in_query = pairs.value("token");
    if in_query.is_some() && !config.query_token {
        return Err(Failure::bad_request(
            "parameter token is not accepted: send the token in header authorization",
        ));
    }
    let in_query = in_query.map(|token| percent_decode_str(token).collect()).unwrap_or_default();
    websocket::token(request, in_query)
}

/// Parses a request whose body has arrived.
pub(super) fn call(
    resource: Resource<'_>,
    request: &Request,
    body: &[u8],
    exchange: Exchange,
    token: Option<Token<'static>>,
    config: &HttpConfig<'_>,
) -> Answer {
    let host = super::host_of(request);
    match parse(resource, request, body, config) {
        Ok(call) => Answer::Call { call, exchange, host, forwarded_for: request.forwarded_for(), token },
        Err(Failure(status, text)) => {
            let response = exchange.refuse(
                status.as_u16(),
                &error_json(ErrorCode::BadRequest, &text),
                config.realtime_ns,
            );
            Answer::Respond { response, status: status.as_u16(), closes: exchange.closes }
        }
    }
}

fn parse(
    resource: Resource<'_>,
    request: &Request,
    body: &[u8],
    config: &HttpConfig<'_>,
) -> Result<Call, Failure> {
    let query = Query::new(request.head.uri().query());
    match resource {
        Resource::Publish => {
            query.check(&["token", "answer"])?;
            let media_type = media_type(request);
            if !["application/json", "application/x-ndjson", "application/ndjson", ""].contains(&&*media_type)
            {
                return Err(Failure(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    format!(
                        "content-type {media_type:?}: use application/json or application/x-ndjson, \
                         or /v1/publish/TOPIC for any payload"
                    ),
                ));
            }
            let text =
                std::str::from_utf8(body).map_err(|_| Failure::bad_request("the body is not UTF-8"))?;
            let (mut ticks, is_single) = ticks(text, media_type.ends_with("ndjson"))?;
            if !config.message_ids && ticks.iter().any(|tick| !tick.message_id.is_empty()) {
                return Err(Failure(StatusCode::NOT_IMPLEMENTED, idempotency::OFF.into()));
            }
            idempotency::give_ids(request, &mut ticks, is_single)?;
            Ok(Call::Publish { ticks, is_single })
        }
        Resource::PublishTo(topic) => {
            query.check(&["token", "key", "ts", "schema"])?;
            let topic = percent_decode_str(topic)
                .decode_utf8()
                .map_err(|_| Failure::bad_request("the topic in the path is not UTF-8"))?
                .into_owned();
            let tick = Tick {
                topic,
                payload: body.to_vec(),
                is_json: false,
                producer_time_ns: query.number("ts")?.unwrap_or(0),
                schema: query.number("schema")?.unwrap_or(0),
                key: query.number("key")?.unwrap_or(0),
                message_id: String::new(),
            };
            let mut ticks = vec![tick];
            idempotency::give_ids(request, &mut ticks, true)?;
            Ok(Call::Publish { ticks, is_single: true })
        }
        Resource::Latest => {
            query.check(&["token", "topics", "limit", "after"])?;
            let mut patterns = Vec::new();
            for value in query.values("topics") {
                for pattern in query::elements(value) {
                    patterns.push(checked(pattern, "topics")?);
                }
            }
            if patterns.is_empty() {
                return Err(Failure::bad_request("parameter topics is missing: /v1/latest?topics=a.b,c.>"));
            }
            Ok(Call::Latest { patterns, page: query.page()? })
        }
        Resource::History => {
            query.check(&["token", "topic", "epoch", "from", "limit"])?;
            let topic = query
                .value("topic")
                .ok_or_else(|| Failure::bad_request("parameter topic is missing: /v1/history?topic=a.b"))?;
            let topic = checked(topic, "topic")?;
            pattern::check_topic(topic.as_bytes())
                .map_err(|error| Failure::bad_request(format!("topic {topic:?}: {error}")))?;
            let from = query.number("from")?.unwrap_or(1).max(1);
            Ok(Call::History { topic, epoch: query.number("epoch")?, from, limit: query.limit()? })
        }
        Resource::Topics => {
            query.check(&["token", "pattern", "limit", "after"])?;
            let pattern = checked(query.value("pattern").unwrap_or(">"), "pattern")?;
            Ok(Call::Topics { pattern, page: query.page()? })
        }
    }
}

/// A pattern of a query, decoded and validated.
fn checked(encoded: &str, parameter: &str) -> Result<String, Failure> {
    let pattern = percent_decode_str(encoded)
        .decode_utf8()
        .map_err(|_| Failure::bad_request(format!("parameter {parameter} is not UTF-8")))?;
    match pattern::check_pattern(pattern.as_bytes()) {
        Ok(pattern) => Ok(pattern.to_owned()),
        Err(error) => Err(Failure::bad_request(format!("{parameter} {pattern:?}: {error}"))),
    }
}

/// The type of a request's body, without parameters, in lower case; empty: none given, or one that no client means (curl's default
/// for `--data`).
fn media_type(request: &Request) -> String {
    let value = request.head.headers().get(header::CONTENT_TYPE).map(|value| value.as_bytes());
    let text = String::from_utf8_lossy(value.unwrap_or_default()).to_ascii_lowercase();
    let media_type = text.split(';').next().unwrap_or_default().trim();
    if media_type == "application/x-www-form-urlencoded" { String::new() } else { media_type.to_owned() }
}

/// A tick in a body. Unknown fields are rejected, so that a misspelt one is not ignored.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item<'a> {
    #[serde(borrow)]
    topic: Cow<'a, str>,
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(default, borrow)]
    encoding: Option<Cow<'a, str>>,
    #[serde(default)]
    ts: u64,
    #[serde(default)]
    schema: u32,
    #[serde(default, deserialize_with = "json::key")]
    key: u64,
    #[serde(default, borrow)]
    message_id: Option<Cow<'a, str>>,
}

/// [`Item`], for errors.
const TICK: Shape = Shape {
    text: "tick",
    object: "tick",
    is_line: false,
    fields: &[
        ("topic", Form::Text),
        ("data", Form::Any),
        ("encoding", Form::OptionalText),
        ("ts", Form::Number64),
        ("schema", Form::Number32),
        ("key", Form::Key),
        ("message_id", Form::OptionalText),
    ],
    required: &[("topic", ""), ("data", "")],
    has_others: false,
};
/// A body that is an array of ticks, for errors.
const BODY: Shape = Shape { text: "body", object: "body", fields: &[], required: &[], ..TICK };

impl Item<'_> {
    fn into_tick(self) -> Result<Tick, String> {
        let Item { topic, data, encoding, ts, schema, key, message_id } = self;
        if message_id.as_deref() == Some("") {
            return Err("\"message_id\" is empty".into());
        }
        let (payload, is_json) = match encoding.as_deref() {
            None | Some("json") => (data.get().as_bytes().to_vec(), true),
            Some("base64") => (json::base64(data)?, false),
            Some(other) => {
                let other: String = other.chars().take(32).collect();
                return Err(format!("unknown \"encoding\" {other:?}; use json or base64"));
            }
        };
        let topic = topic.into_owned();
        let message_id = message_id.unwrap_or_default().into_owned();
        Ok(Tick { topic, payload, is_json, producer_time_ns: ts, schema, key, message_id })
    }
}

/// Whether the lines of a publish are published while they arrive: `?answer=summary`.
pub(super) fn is_summarised(resource: Resource<'_>, request: &Request) -> Result<bool, Failure> {
    let query = Query::new(request.head.uri().query());
    match query.value("answer").filter(|_| resource == Resource::Publish) {
        None | Some("each") => Ok(false),
        Some("summary")
            if ["application/x-ndjson", "application/ndjson"].contains(&&*media_type(request)) =>
        {
            query.check(&["token", "answer"])?;
            Ok(true)
        }
        Some("summary") => Err(Failure::bad_request(
            "parameter answer: a summary is for lines (content-type: application/x-ndjson)",
        )),
        Some(_) => Err(Failure::bad_request("parameter answer: use each or summary")),
    }
}

/// The tick in a text that is one object. `place`: its number in the body, from 1.
pub(super) fn line(text: &str, place: u64) -> Result<Tick, Failure> {
    let bad = |text: String| Failure::bad_request(format!("tick {place}: {text}"));
    let item: Item<'_> = serde_json::from_str(text).map_err(|_| bad(diagnosis::explain(text, &TICK)))?;
    item.into_tick().map_err(bad)
}

/// The ticks in a body: one object, an array of objects, or an object on each line. Also returns whether it is one object.
fn ticks(text: &str, are_lines: bool) -> Result<(Vec<Tick>, bool), Failure> {
    let too_many = || {
        Failure(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a request may publish {HTTP_PUBLISH_TICKS_MAX} ticks"),
        )
    };
    let mut ticks = Vec::new();
    let is_single = !are_lines && text.trim_ascii_start().starts_with('{');
    let mut add = |text: &str| {
        let at = ticks.len() + 1;
        if at > HTTP_PUBLISH_TICKS_MAX {
            return Err(too_many());
        }
        ticks.push(line(text, at as u64)?);
        Ok(())
    };
    if are_lines {
        for line in text.lines().filter(|line| !line.trim_ascii().is_empty()) {
            add(line)?;
        }
    } else if is_single {
        add(text)?;
    } else {
        let items: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| {
            Failure::bad_request(match text.trim_ascii_start().chars().next() {
                None => {
                    "the body is empty; it has one tick, an array of ticks, or a tick on each line".to_owned()
                }
                Some('[') => diagnosis::not_json(text, &error, &BODY),
                Some(_) => "the body is neither a tick nor an array of ticks".to_owned(),
            })
        })?;
        for item in items {
            add(item.get())?;
        }
    }
    match ticks.is_empty() {
        true => Err(Failure::bad_request("the body has no tick")),
        false => Ok((ticks, is_single)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_body_is_said_in_the_words_of_its_author() {
        for (text, part) in [
            ("", "the body is empty"),
            ("7", "the body is neither a tick nor an array of ticks"),
            ("[1,]", "the body is not JSON: see line 1, column 4, at \"]\""),
            (r#"[{"topic":"a","data":1},7]"#, "tick 2: a tick is one JSON object, not 7"),
            (r#"{"topic":"a","data":1} x"#, "tick 1: a tick is one JSON object, and something follows it"),
            (r#"{"topic":7,"data":1}"#, "tick 1: \"topic\" must be a string, not 7"),
            (r#"{"data":1}"#, "tick 1: \"topic\" is missing"),
            (r#"{"topic":"a","data":1,"data":2}"#, "tick 1: \"data\" is given twice"),
            (
                r#"{"topic":"a","data":1,"x":2}"#,
                "tick 1: unknown field \"x\"; the fields are topic, data, encoding",
            ),
            (r#"{"topic":"a","data":1,"key":-1}"#, "tick 1: \"key\" must be a whole number from 0 to"),
            (
                "{\"topic\":\"a\",\n\"data\":NaN}",
                "tick 1: the tick is not JSON: see line 2, column 8, at \"NaN}\"",
            ),
            (r#"{"topic":"a","data":"#, "tick 1: the tick is not JSON: it ends too early"),
        ] {
            let Failure(status, said) = ticks(text, false).unwrap_err();
            assert!(status == StatusCode::BAD_REQUEST && said.starts_with(part), "{text}: {said}");
        }
    }

    #[test]
    fn errors_of_the_server_and_of_engines_are_not_blamed_on_the_request() {
        let statuses = [400, 400, 400, 429, 503, 400, 400, 413, 403, 429, 409, 503, 504];
        for (code, status) in (100..).zip(statuses) {
            assert_eq!(ErrorCode::from_wire(code).map(status_of), Some(status), "{code}");
        }
    }
}
