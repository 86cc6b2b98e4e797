//! Explains why a text is not a request, or another object that clients and files have, so that its author can correct it. Finds the
//! id of a request, which the ERROR repeats. Runs only after decoding has failed, so valid texts are parsed once.

use std::{borrow::Cow, fmt};

use serde::{
    Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{error::Category, value::RawValue};

use super::{InvalidRequest, OPERATIONS, cut, key};

/// An object as its author knows it: see [`explain`].
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// What the text is called: `message`.
    pub text: &'static str,
    /// What the object is called: `request`.
    pub object: &'static str,
    /// Whether the text is one line of a file, whose number is said elsewhere.
    pub is_line: bool,
    /// Its fields. At most 32.
    pub fields: &'static [(&'static str, Form)],
    /// Fields that may not be missing, and what to use; empty: that is plain.
    pub required: &'static [(&'static str, &'static str)],
    /// Whether other fields are skipped.
    pub has_others: bool,
}

/// What a field's value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
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

/// Requests, with the fields of all of them.
const REQUEST: Shape = Shape {
    text: "message",
    object: "request",
    is_line: false,
    required: &[("op", OPERATIONS)],
    has_others: false,
    fields: &[
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
    ],
};

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
    let (request, text) = examine(text, &REQUEST);
    InvalidRequest { request, text }
}

/// The first reason why `text`, which cannot be decoded, is not an object of a shape.
#[cold]
pub fn explain(text: &str, shape: &'static Shape) -> String {
    examine(text, shape).1
}

/// The `id` that the text has, and what is wrong with it.
fn examine(text: &str, shape: &'static Shape) -> (u32, String) {
    let Shape { text: whole, object, .. } = *shape;
    if !text.trim_start().starts_with('{') {
        let text = match text.trim() {
            "" => format!("the {whole} is empty; a {object} is one JSON object"),
            other => format!("a {object} is one JSON object, not {}", cut(other)),
        };
        return (0, text);
    }
    let mut findings = Findings { shape, request: 0, seen: 0, problem: None };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let read = deserializer.deserialize_map(&mut findings);
    let missing = findings.missing();
    let Findings { request, problem, .. } = findings;
    let text = problem.unwrap_or_else(|| match (read.map(|()| deserializer.end()), missing) {
        (Err(error), _) => not_json(text, &error, shape),
        (Ok(Err(_)), _) => format!("a {whole} is one JSON object, and something follows it"),
        (Ok(Ok(())), Some((name, ""))) => format!("\"{name}\" is missing"),
        (Ok(Ok(())), Some((name, values))) => format!("\"{name}\" is missing; use {values}"),
        (Ok(Ok(())), None) => {
            debug_assert!(false, "what cannot be decoded has something wrong with it");
            format!("not a {object}")
        }
    });
    (request, text)
}

/// Describes where a text, which the shape names, ceases to be JSON.
pub fn not_json(text: &str, error: &serde_json::Error, shape: &Shape) -> String {
    let whole = shape.text;
    if error.classify() == Category::Eof {
        return format!("the {whole} is not JSON: it ends too early");
    }
    // Lines end at LF; a column counts bytes from 1.
    let line = text.split('\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let mut at = error.column().saturating_sub(1).min(line.len());
    while !line.is_char_boundary(at) {
        at -= 1;
    }
    let (line_number, column, at) = (error.line(), error.column(), cut(&line[at..]));
    match shape.is_line {
        true => format!("the {whole} is not JSON at column {column}: {at:?}"),
        false => format!("the {whole} is not JSON: see line {line_number}, column {column}, at {at:?}"),
    }
}

/// What the object has contained so far.
struct Findings {
    shape: &'static Shape,
    request: u32,
    /// Fields seen so far, as bits by their index.
    seen: u32,
    problem: Option<String>,
}

impl Findings {
    fn field(&mut self, name: &str, value: &str) {
        let fields = self.shape.fields;
        let Some(at) = fields.iter().position(|(known, _)| *known == name) else {
            if !self.shape.has_others {
                self.problem.get_or_insert_with(|| {
                    let known: Vec<_> = fields.iter().map(|(name, _)| *name).collect();
                    format!("unknown field {:?}; the fields are {}", cut(name), known.join(", "))
                });
            }
            return;
        };
        let (bit, form) = (1 << at, fields[at].1);
        if self.seen & bit != 0 {
            self.problem.get_or_insert_with(|| format!("\"{name}\" is given twice"));
            return;
        }
        self.seen |= bit;
        if form == Form::Token && !form.is(value) {
            self.problem.get_or_insert_with(|| format!("\"{name}\" must be {form}"));
        } else if !form.is(value) {
            self.problem.get_or_insert_with(|| format!("\"{name}\" must be {form}, not {}", cut(value)));
        } else if name == "id" {
            self.request = serde_json::from_str(value).unwrap_or(0);
        }
    }
}

impl Findings {
    /// The first required field that the object does not have.
    fn missing(&self) -> Option<(&'static str, &'static str)> {
        let has = |name: &str| {
            self.shape
                .fields
                .iter()
                .position(|(known, _)| *known == name)
                .is_some_and(|at| self.seen & 1 << at != 0)
        };
        self.shape.required.iter().find(|(name, _)| !has(name)).copied()
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
