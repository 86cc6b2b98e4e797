//! The name of a topic in an engine: literal text, the topic, or tokens of it.

use std::fmt;

use tickcast_core::routes::Outcome;

/// Highest number of a token that a template may name.
const TOKEN_HIGHEST: usize = 32;
/// Maximum parts of a template.
const PARTS_MAX: usize = 32;

/// A template such as `orders.{topic}` or `in.{2}.{1}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicTemplate {
    parts: Vec<Part>,
    /// Separator of tokens, instead of a dot.
    separator: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Box<str>),
    Topic,
    /// From 1.
    Token(usize),
}

/// Why a topic has no name in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unnameable {
    /// The template names a token that the topic does not have.
    Missing(usize),
    /// The topic, which a client chooses, would make the name a reserved one: engines reserve those that begin with `$` or `_`, and a
    /// key that ends with `:gen` is the generation of a Redis stream.
    Reserved,
}

impl Unnameable {
    /// The answer to a tick of such a topic.
    pub fn outcome(self) -> Outcome {
        match self {
            Unnameable::Missing(_) => Outcome::Refused,
            Unnameable::Reserved => Outcome::Reserved,
        }
    }
}

impl fmt::Display for Unnameable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unnameable::Missing(number) => write!(f, "it has no token {number}"),
            Unnameable::Reserved => write!(f, "names that begin with $ or _, or end with :gen, are reserved"),
        }
    }
}

impl TopicTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, separator: &str) -> Result<TopicTemplate, String> {
        let (mut parts, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            if parts.len() >= PARTS_MAX {
                return Err(format!("more than {PARTS_MAX} parts"));
            }
            let at = rest.find(['{', '}']).unwrap_or(rest.len());
            if at > 0 {
                let literal = &rest[..at];
                if literal.contains(|c: char| c.is_whitespace() || c.is_control() || c == '*' || c == '>') {
                    return Err(format!("{literal:?} contains white space, a control character, * or >"));
                }
                parts.push(Part::Literal(literal.into()));
            }
            rest = &rest[at..];
            if !rest.is_empty() {
                let inner = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
                let (name, after) = inner.ok_or("a brace is not closed")?;
                parts.push(match (name, name.parse()) {
                    ("topic", _) => Part::Topic,
                    (_, Ok(number @ 1..=TOKEN_HIGHEST)) => Part::Token(number),
                    _ => {
                        return Err(format!(
                            "{{{name}}} is not known: use {{topic}}, or {{1}} to {{{TOKEN_HIGHEST}}} for its tokens"
                        ));
                    }
                });
                rest = after;
            }
        }
        if parts.is_empty() {
            return Err("it is empty".into());
        }
        Ok(TopicTemplate { parts, separator: separator.into() })
    }

    /// The name of a topic.
    ///
    /// # Errors
    /// Why it has none.
    pub fn render(&self, topic: &str) -> Result<String, Unnameable> {
        let mut name = String::with_capacity(topic.len() + 16);
        for part in &self.parts {
            match part {
                Part::Literal(text) => name.push_str(text),
                Part::Topic if &*self.separator == "." => name.push_str(topic),
                Part::Topic => name.push_str(&topic.replace('.', &self.separator)),
                Part::Token(number) => {
                    name.push_str(topic.split('.').nth(number - 1).ok_or(Unnameable::Missing(*number))?);
                }
            }
        }
        let is_own = matches!(self.parts.first(), Some(Part::Literal(_)));
        match name.starts_with(['$', '_']) && !is_own {
            true => Err(Unnameable::Reserved),
            false => Ok(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_named_by_their_tokens() {
        for (template, separator, topic, name) in [
            ("{topic}", ".", "a.b.c", Ok("a.b.c")),
            ("in.{topic}", ".", "a.b", Ok("in.a.b")),
            ("x:{topic}", ":", "a.b", Ok("x:a:b")),
            ("{2}.{1}", ".", "a.b.c", Ok("b.a")),
            ("all", ".", "a.b", Ok("all")),
            ("{3}", ".", "a.b", Err(Unnameable::Missing(3))),
            ("{topic}", ".", "$JS.API.STREAM.DELETE.ORDERS", Err(Unnameable::Reserved)),
            ("{1}.x", ".", "$JS.API", Err(Unnameable::Reserved)),
            ("{topic}", ".", "_INBOX.a", Err(Unnameable::Reserved)),
            ("$KV.bucket.{topic}", ".", "a", Ok("$KV.bucket.a")),
        ] {
            let rendered = TopicTemplate::parse(template, separator).unwrap().render(topic);
            assert_eq!(rendered.as_deref(), name.as_deref(), "{template} {topic}");
        }
    }

    #[test]
    fn bad_templates_are_refused() {
        for bad in ["", "{", "a}", "{subject}", "{0}", "{33}", "a b", "a.*", "a.>"] {
            assert!(TopicTemplate::parse(bad, ".").is_err(), "{bad}");
        }
    }
}
