//! `Idempotency-Key`: the message ids of the ticks of one request (draft-ietf-httpapi-idempotency-key-header).
//!
//! The key is the message id of a single tick. In a list, the tick at place N, from 1, has the id `KEY:N`. So a request that is sent
//! again with its key publishes only the ticks that are not published yet, and a tick may be sent again over another transport.

use http::HeaderName;

use super::{Failure, api::Tick, request::Request};
use crate::limits::MESSAGE_ID_BYTES_MAX;

const HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// Why a server that remembers no message ids refuses one.
pub(super) const OFF: &str = "this server remembers no message ids (message_id_window is 0): \
                              a publish that is sent again is published again";

/// Why a request with a key may have no other message ids.
pub(super) const BOTH: &str = "use header idempotency-key or fields message_id, not both";

/// The refusal of a key of which message ids are too long.
pub(super) fn too_long() -> Failure {
    Failure::bad_request(format!(
        "header idempotency-key: too long: message ids made of it may have {MESSAGE_ID_BYTES_MAX} bytes"
    ))
}

/// Whether a request has a key.
pub(super) fn is_given(request: &Request) -> bool {
    request.head.headers().contains_key(HEADER)
}

/// Gives each tick its message id, if the request has a key.
pub(super) fn give_ids(request: &Request, ticks: &mut [Tick], is_single: bool) -> Result<(), Failure> {
    let Some(key) = key(request)? else { return Ok(()) };
    if ticks.iter().any(|tick| !tick.message_id.is_empty()) {
        return Err(Failure::bad_request(BOTH));
    }
    for (place, tick) in (1..).zip(&mut *ticks) {
        tick.message_id = if is_single { key.clone() } else { format!("{key}:{place}") };
    }
    let longest = ticks.last().map_or(0, |tick| tick.message_id.len());
    match longest > MESSAGE_ID_BYTES_MAX {
        true => Err(too_long()),
        false => Ok(()),
    }
}

/// The key of a request: a string in quotes (RFC 8941, section 3.3.3), or as many clients send it, without.
pub(super) fn key(request: &Request) -> Result<Option<String>, Failure> {
    let mut values = request.head.headers().get_all(HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Failure::bad_request("header idempotency-key is given more than once"));
    }
    let text = std::str::from_utf8(value.as_bytes()).ok().map(|text| text.trim_matches([' ', '\t']));
    let key = text.and_then(|text| match text.strip_prefix('"') {
        Some(quoted) => unquoted(quoted),
        None => (!text.chars().any(char::is_control)).then(|| text.to_owned()),
    });
    match key {
        Some(key) if !key.is_empty() => Ok(Some(key)),
        _ => Err(Failure::bad_request("header idempotency-key: use a text, such as \"8e03978e-40d5\"")),
    }
}

/// The text of a quoted string, after its first quote: printable ASCII, in which `\` precedes `"` and `\`.
fn unquoted(quoted: &str) -> Option<String> {
    let (mut text, mut chars) = (String::new(), quoted.chars());
    loop {
        match chars.next()? {
            '"' => return chars.next().is_none().then_some(text),
            '\\' => text.push(chars.next().filter(|c| ['"', '\\'].contains(c))?),
            c @ ' '..='~' => text.push(c),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_key_is_the_text_in_the_quotes() {
        for (quoted, text) in [
            ("abc\"", Some("abc")),
            ("\"", Some("")),
            (r#"a\"b\\c""#, Some(r#"a"b\c"#)),
            ("abc", None),
            ("abc\";p=1", None),
            (r#"a\bc""#, None),
            ("a\u{e9}\"", None),
        ] {
            assert_eq!(unquoted(quoted).as_deref(), text, "{quoted}");
        }
    }
}
