//! `/sse`: a stream of ticks as Server-Sent Events, or as lines of JSON.
//!
//! The stream has no length: it lasts until either side closes the connection (RFC 9112, section 6.3, case 8), which every client
//! and proxy understands, HTTP/1.0 included. So no bytes of the stream depend on the connection, and all clients share them.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::{
    Failure, HttpConfig, Outcome, Resumed, Target,
    body::BodyLength,
    query::{self, StreamPath},
    request::Request,
    response, websocket,
};
use crate::{
    WireFormat,
    framing::event_stream::{self, LastEventId},
    limits::EVENT_STREAM_RETRY_MS,
    pattern,
    subscription::StartPosition,
};

/// Methods of `/sse`.
pub(super) const ALLOWED: &str = "GET, HEAD";

/// Answers a request for a stream. `cors`: header lines for browsers.
pub(super) fn open(
    request: &Request,
    cors: &str,
    config: &HttpConfig<'_>,
) -> Result<Outcome<'static>, Failure> {
    if request.head.method() != Method::GET && !request.is_head() {
        return Err(Failure::method_not_allowed(ALLOWED));
    }
    let headers = request.head.headers();
    let query = query::parse(request.head.uri().query(), StreamPath::EventStream, config.query_token)?;
    if request.body != BodyLength::Bytes(0) {
        return Err(Failure::bad_request("a request for a stream has no body"));
    }
    if query.patterns.is_empty() {
        return Err(Failure::bad_request("parameter topics is missing: /sse?topics=a.b,c.>"));
    }
    for pattern in &query.patterns {
        pattern::check_pattern(pattern.as_bytes())
            .map_err(|error| Failure::bad_request(format!("pattern {pattern:?}: {error}")))?;
    }
    let token = websocket::token(request, query.token)?;
    let format = negotiate(headers);
    let (from, resumed) = match last_event_id(headers, &query.last_event_id) {
        None => (query.from, Resumed::Nothing),
        Some(id) => resume(id, &query.patterns),
    };
    let content_type = match format {
        WireFormat::LINES_JSON => "application/x-ndjson",
        _ => "text/event-stream",
    };
    let mut response = format!(
        "HTTP/1.1 200 OK\r\nDate: {}\r\nConnection: close\r\nContent-Type: {content_type}\r\nCache-Control: no-store\r\n\
         X-Accel-Buffering: no\r\nX-Content-Type-Options: nosniff\r\n{cors}\r\n",
        response::date(config.realtime_ns)
    )
    .into_bytes();
    if format.framing.has_places() && !request.is_head() {
        event_stream::encode_retry(&mut response, EVENT_STREAM_RETRY_MS);
    }
    let (patterns, client, delivery) = (query.patterns, query.client, query.delivery);
    Ok(Outcome::Upgrade(
        response,
        Target::Stream { format, inflates: false, patterns, delivery, from, resumed, client, token },
    ))
}

/// Lines if the client accepts them, else events.
fn negotiate(headers: &HeaderMap) -> WireFormat {
    let lines = headers.get_all(header::ACCEPT).into_iter().map(HeaderValue::as_bytes);
    let takes_lines = super::list_elements(lines).any(|element| {
        let media_type = element.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
        ["application/x-ndjson", "application/ndjson"]
            .iter()
            .any(|known| media_type.eq_ignore_ascii_case(known.as_bytes()))
    });
    if takes_lines { WireFormat::LINES_JSON } else { WireFormat::EVENTS_JSON }
}

/// The id of the last event that the client has. What an EventSource sends when it reconnects is newer than the id in its URL.
fn last_event_id<'a>(headers: &'a HeaderMap, in_query: &'a [u8]) -> Option<&'a [u8]> {
    let in_header = headers.get(HeaderName::from_static("last-event-id")).map(HeaderValue::as_bytes);
    in_header.into_iter().chain([in_query]).find(|id| !id.is_empty())
}

/// Where a stream goes on: after the positions in the id of the last event, as far as they are in topics of this stream. An id
/// that is not from this server is not refused: an EventSource does not reconnect after an error response.
fn resume(id: &[u8], patterns: &[String]) -> (StartPosition, Resumed) {
    match event_stream::decode_id(id) {
        Ok(LastEventId::Kept(kept)) => (StartPosition::Live, Resumed::Kept(kept)),
        Ok(LastEventId::Places(mut places, since_us)) => {
            places.retain(|topic, _| {
                pattern::check_topic(topic.as_bytes()).is_ok()
                    && patterns.iter().any(|pattern| pattern::matches(pattern, topic))
            });
            (StartPosition::AfterEach(places), Resumed::Since { since_us })
        }
        Err(_) => (StartPosition::Live, Resumed::Lost),
    }
}
