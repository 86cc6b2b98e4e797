//! A template of literal text and parts of a message.

use std::fmt::{self, Write as _};

use super::{Message, Unmappable, json_pointer::JsonPointer};

/// Highest number of a subject token that a template may name.
const TOKEN_HIGHEST: usize = 32;
/// Maximum parts of a template.
const PARTS_MAX: usize = 32;

/// Literal text and parts of a message, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Box<str>),
    Subject,
    /// From 1.
    Token(usize),
    Key,
    Partition,
    Header(Box<str>),
    Json(JsonPointer),
}

/// Why a text is not a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TemplateError {
    Empty,
    Unclosed,
    TooMany,
    Unknown(Box<str>),
    Pointer(Box<str>),
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TemplateError::Empty => write!(f, "it is empty"),
            TemplateError::Unclosed => write!(f, "a brace is not closed"),
            TemplateError::TooMany => write!(f, "more than {PARTS_MAX} parts"),
            TemplateError::Unknown(name) => write!(
                f,
                "{{{name}}} is not known: use {{subject}}, {{1}} to {{{TOKEN_HIGHEST}}}, {{key}}, {{partition}}, {{header:NAME}} or {{json:/POINTER}}"
            ),
            TemplateError::Pointer(pointer) => {
                write!(f, "{pointer:?} is not a JSON pointer such as /data/0/symbol")
            }
        }
    }
}

/// What a template takes its parts from.
pub(super) struct Input<'a> {
    /// The subject without what is stripped.
    pub subject: &'a str,
    pub separator: &'a str,
    pub message: Message<'a>,
}

impl Template {
    pub(super) fn parse(text: &str) -> Result<Template, TemplateError> {
        let (mut parts, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            if parts.len() >= PARTS_MAX {
                return Err(TemplateError::TooMany);
            }
            let at = rest.find(['{', '}']).unwrap_or(rest.len());
            if at > 0 {
                parts.push(Part::Literal(rest[..at].into()));
            }
            rest = &rest[at..];
            if !rest.is_empty() {
                let inner = rest.strip_prefix('{').ok_or(TemplateError::Unclosed)?;
                let (name, after) = inner.split_once('}').ok_or(TemplateError::Unclosed)?;
                parts.push(part(name)?);
                rest = after;
            }
        }
        if parts.is_empty() { Err(TemplateError::Empty) } else { Ok(Template(parts)) }
    }

    /// Whether the result is the subject as it is.
    pub(super) fn is_subject(&self) -> bool {
        self.0 == [Part::Subject]
    }

    /// The literal text before the first part of a message.
    pub(super) fn literal_start(&self) -> &str {
        match self.0.first() {
            Some(Part::Literal(text)) => text,
            _ => "",
        }
    }

    /// The headers that it names.
    pub(super) fn headers(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Header(name) => Some(&**name),
            _ => None,
        })
    }

    /// Renders into `buffer`, which is cleared first.
    pub(super) fn render<'b>(
        &self,
        input: &Input<'_>,
        buffer: &'b mut String,
    ) -> Result<&'b str, Unmappable> {
        buffer.clear();
        self.render_onto(input, buffer)?;
        Ok(buffer)
    }

    /// Renders at the end of `buffer`. Separators in parts of the message become dots.
    pub(super) fn render_onto(&self, input: &Input<'_>, buffer: &mut String) -> Result<(), Unmappable> {
        let missing = |what: &dyn fmt::Display| Unmappable::Missing(what.to_string().into());
        for part in &self.0 {
            match part {
                Part::Literal(text) => buffer.push_str(text),
                Part::Subject => push_dotted(buffer, input.subject, input.separator),
                Part::Token(number) => {
                    let token = input.subject.split(input.separator).nth(number - 1);
                    buffer.push_str(
                        token.ok_or_else(|| missing(&format_args!("token {number} in the subject")))?,
                    );
                }
                Part::Key => buffer.push_str(input.message.key.ok_or_else(|| missing(&"key"))?),
                Part::Partition => {
                    let partition = input.message.headers.partition().ok_or_else(|| missing(&"partition"))?;
                    // A string takes everything.
                    let _ = write!(buffer, "{partition}");
                }
                Part::Header(name) => {
                    let value = input.message.headers.value(name);
                    buffer.push_str(value.ok_or_else(|| missing(&format_args!("header {name}")))?);
                }
                Part::Json(pointer) => {
                    if !pointer.append_scalar(input.message.payload, buffer) {
                        return Err(missing(&format_args!("text or number at {pointer} in the payload")));
                    }
                }
            }
        }
        Ok(())
    }
}

fn push_dotted(buffer: &mut String, text: &str, separator: &str) {
    if separator == "." {
        return buffer.push_str(text);
    }
    for (at, token) in text.split(separator).enumerate() {
        if at > 0 {
            buffer.push('.');
        }
        buffer.push_str(token);
    }
}

fn part(name: &str) -> Result<Part, TemplateError> {
    let unknown = || TemplateError::Unknown(name.into());
    match name.split_once(':') {
        Some(("header", header)) if !header.is_empty() => Ok(Part::Header(header.into())),
        Some(("json", pointer)) => {
            JsonPointer::parse(pointer).map(Part::Json).ok_or_else(|| TemplateError::Pointer(pointer.into()))
        }
        Some(_) => Err(unknown()),
        None if name == "subject" => Ok(Part::Subject),
        None if name == "key" => Ok(Part::Key),
        None if name == "partition" => Ok(Part::Partition),
        None => match name.parse() {
            Ok(number @ 1..=TOKEN_HIGHEST) => Ok(Part::Token(number)),
            _ => Err(unknown()),
        },
    }
}
