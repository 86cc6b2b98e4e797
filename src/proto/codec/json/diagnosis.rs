//! Explains why a text is not a request, so that its author can correct it, and finds its id, which the ERROR repeats.
//! Runs only after decoding has failed, so valid requests are parsed once.

use std::{borrow::Cow, fmt};

use serde::{
    Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{error::Category, value::RawValue};

use super::{InvalidRequest, OPERATIONS, cut, key};

/// What a field's value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A string.
    Text,
    /// A string, or `null` for none.
    OptionalText,
    /// An array of strings, or `null` for none.
    Texts,
    /// A number that fits 32 bits.
    Number32,
    /// A number that fits 64 bits.
    Number64,
    /// A number that fits 64 bits, or its digits.
    Key,
    /// A number that fits 64 bits, or a string, which may be a secret.
    Token,
    /// Checked where the request's operation is known.
    Any,
}

/// The fields of all requests.
const FIELDS: [(&str, Form); 16] = [
    ("op", Form::Text),
    ("id", Form::Number32),
    ("name", Form::OptionalText),
    ("features", Form::Texts),
    ("topics", Form::Texts),
    ("topic", Form::OptionalText),
    ("from", Form::Any),
    ("policy", Form::Any),
    ("max_rate", Form::Any),
    ("data", Form::Any),
    ("encoding", Form::OptionalText),
    ("ts", Form::Number64),
    ("schema", Form::Number32),
    ("key", Form::Key),
    ("token", Form::Token),
    ("message_id", Form::OptionalText),
];

impl Form {
    fn is(self, value: &str) -> bool {
        match self {
            Form::Text => serde_json::from_str::<Cow<'_, str>>(value).is_ok(),
            Form::OptionalText => serde_json::from_str::<Option<Cow<'_, str>>>(value).is_ok(),
            Form::Texts => serde_json::from_str::<Option<Vec<Cow<'_, str>>>>(value).is_ok(),
            Form::Number32 => serde_json::from_str::<u32>(value).is_ok(),
            Form::Number64 => serde_json::from_str::<u64>(value).is_ok(),
            Form::Key => key(&mut serde_json::Deserializer::from_str(value)).is_ok(),
            Form::Token => serde_json::from_str::<Option<super::Token<'_>>>(value).is_ok(),
            Form::Any => true,
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Form::Text | Form::OptionalText => f.write_str("a string"),
            Form::Texts => f.write_str("an array of strings"),
            Form::Number32 => write!(f, "a whole number from 0 to {}", u32::MAX),
            Form::Number64 => write!(f, "a whole number from 0 to {}", u64::MAX),
            Form::Key => write!(f, "a whole number from 0 to {}, or a string of its digits", u64::MAX),
            Form::Token => write!(f, "a string, or for ping a whole number from 0 to {}", u64::MAX),
            Form::Any => f.write_str("a JSON value"),
        }
    }
}

/// The first reason why `text`, which cannot be decoded, is not a request.
/// The id is the first valid `id` before the point where the text ceases to be JSON; else 0.
#[cold]
pub(super) fn diagnose(text: &str) -> InvalidRequest {
    if !text.trim_start().starts_with('{') {
        let text = match text.trim() {
            "" => "the message is empty; a request is one JSON object".into(),
            other => format!("a request is one JSON object, not {}", cut(other)),
        };
        return InvalidRequest { request: 0, text };
    }
    let mut findings = Findings::default();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let read = deserializer.deserialize_map(&mut findings);
    let Findings { request, problem, has_op, .. } = findings;
    let text = problem.unwrap_or_else(|| match read.map(|()| deserializer.end()) {
        Err(error) => not_json(text, &error),
        Ok(Err(_)) => "a message is one JSON object, and something follows it".into(),
        Ok(Ok(())) if !has_op => format!("\"op\" is missing; use {OPERATIONS}"),
        Ok(Ok(())) => {
            debug_assert!(false, "what cannot be decoded has something wrong with it");
            "not a request".into()
        }
    });
    InvalidRequest { request, text }
}

/// Describes where a text ceases to be JSON.
fn not_json(text: &str, error: &serde_json::Error) -> String {
    if error.classify() == Category::Eof {
        return "the message is not JSON: it ends too early".into();
    }
    // Lines end at LF; a column counts bytes from 1.
    let line = text.split('\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let mut at = error.column().saturating_sub(1).min(line.len());
    while !line.is_char_boundary(at) {
        at -= 1;
    }
    let (line_number, column) = (error.line(), error.column());
    format!("the message is not JSON: see line {line_number}, column {column}, at {:?}", cut(&line[at..]))
}

/// What the object has contained so far.
#[derive(Default)]
struct Findings {
    request: u32,
    has_op: bool,
    /// Fields seen so far, as bits by their index in [`FIELDS`].
    seen: u32,
    problem: Option<String>,
}

impl Findings {
    fn field(&mut self, name: &str, value: &str) {
        let Some(at) = FIELDS.iter().position(|(known, _)| *known == name) else {
            self.problem.get_or_insert_with(|| {
                let known: Vec<_> = FIELDS.iter().map(|(name, _)| *name).collect();
                format!("unknown field {:?}; the fields are {}", cut(name), known.join(", "))
            });
            return;
        };
        let (bit, form) = (1 << at, FIELDS[at].1);
        if self.seen & bit != 0 {
            self.problem.get_or_insert_with(|| format!("\"{name}\" is given twice"));
            return;
        }
        self.seen |= bit;
        self.has_op |= name == "op";
        if form == Form::Token && !form.is(value) {
            self.problem.get_or_insert_with(|| format!("\"{name}\" must be {form}"));
        } else if !form.is(value) {
            self.problem.get_or_insert_with(|| format!("\"{name}\" must be {form}, not {}", cut(value)));
        } else if name == "id" {
            self.request = serde_json::from_str(value).unwrap_or(0);
        }
    }
}

impl<'de> Visitor<'de> for &mut Findings {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<Cow<'_, str>>()? {
            let value: &RawValue = map.next_value()?;
            self.field(&name, value.get());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_found_whatever_else_is_wrong() {
        let nested = format!(r#"{{"data":{}{},"id":7,"x":1}}"#, "[".repeat(5_000), "]".repeat(5_000));
        for text in [
            r#"{"op":"publish","id":7,"topic":"t","data":NaN}"#,
            r#"{"op":"publish","id":7,"topic":"t","data":1"#,
            r#"{"op":5,"more":{"id":1},"id":7,"id":8}"#,
            r#" {"i\u0064":7} x"#,
            &nested,
        ] {
            assert_eq!(diagnose(text).request, 7, "{text}");
        }
        for text in
            ["", "{", "[]", "7", r#"[{"id":7}]"#, r#"{"id":"7"}"#, r#"{"id":-7}"#, r#"{"id":4294967296}"#]
        {
            assert_eq!(diagnose(text).request, 0, "{text}");
        }
    }
}
