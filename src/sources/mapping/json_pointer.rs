//! Reads one value of a JSON text without building the rest.

use std::fmt;

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

/// Maximum tokens of a pointer.
const TOKENS_MAX: usize = 16;

/// A JSON pointer (RFC 6901).
///
/// Bound: `TOKENS_MAX` tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonPointer(Vec<Box<str>>);

impl JsonPointer {
    /// Parses a pointer; `""` is the whole text. `None` if it is not one, or longer than 16 tokens.
    pub fn parse(text: &str) -> Option<JsonPointer> {
        if text.is_empty() {
            return Some(JsonPointer(Vec::new()));
        }
        let tokens = text.strip_prefix('/')?.split('/');
        let unescaped: Vec<Box<str>> = tokens.map(unescaped).collect::<Option<_>>()?;
        (unescaped.len() <= TOKENS_MAX).then_some(JsonPointer(unescaped))
    }

    /// Appends what the pointer names in `json` to `text`: a string without its quotes, a number or boolean as JSON. Returns
    /// `false`, with `text` unchanged, if there is no such scalar or the JSON is broken before it. Reads no further than that;
    /// allocates only for strings with escapes.
    pub fn append_scalar(&self, json: &[u8], text: &mut String) -> bool {
        let mut found = false;
        let leaf = AppendScalar { text, found: &mut found };
        // Ends with an error once the value is found, so that the rest is not read.
        let _ = Descent { path: &self.0, leaf }.deserialize(&mut serde_json::Deserializer::from_slice(json));
        found
    }

    /// The JSON text of what the pointer names in `json`; `None` if there is no such value or the JSON is broken before its end.
    pub fn value<'a>(&self, json: &'a [u8]) -> Option<&'a RawValue> {
        let mut found = None;
        let leaf = TakeValue { found: &mut found };
        let _ = Descent { path: &self.0, leaf }.deserialize(&mut serde_json::Deserializer::from_slice(json));
        found
    }
}

impl fmt::Display for JsonPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|token| write!(f, "/{}", token.replace('~', "~0").replace('/', "~1")))
    }
}

fn unescaped(token: &str) -> Option<Box<str>> {
    let mut text = String::with_capacity(token.len());
    let mut characters = token.chars();
    while let Some(character) = characters.next() {
        text.push(match character {
            '~' => match characters.next()? {
                '0' => '~',
                '1' => '/',
                _ => return None,
            },
            other => other,
        });
    }
    Some(text.into())
}

/// What to do with the value that a pointer names.
trait Leaf<'de> {
    fn take<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error>;
}

struct TakeValue<'a, 'de> {
    found: &'a mut Option<&'de RawValue>,
}

impl<'de> Leaf<'de> for TakeValue<'_, 'de> {
    fn take<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        *self.found = Some(Deserialize::deserialize(deserializer)?);
        Ok(())
    }
}

struct AppendScalar<'a> {
    text: &'a mut String,
    found: &'a mut bool,
}

/// Arrays, objects and `null` are not scalars.
impl<'de> Leaf<'de> for AppendScalar<'_> {
    fn take<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        // As text: as a number, digits beyond 2^64 or 17 places would be lost.
        let raw: &RawValue = Deserialize::deserialize(deserializer)?;
        let raw = raw.get();
        let quoted = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        match (quoted, raw.as_bytes().first()) {
            (Some(plain), _) if !plain.contains('\\') => self.text.push_str(plain),
            (Some(_), _) => {
                self.text.push_str(&serde_json::from_str::<String>(raw).map_err(D::Error::custom)?);
            }
            (None, Some(b'-' | b'0'..=b'9' | b't' | b'f')) => self.text.push_str(raw),
            _ => return Err(D::Error::custom("not a scalar")),
        }
        *self.found = true;
        Ok(())
    }
}

struct Descent<'p, L> {
    path: &'p [Box<str>],
    leaf: L,
}

impl<'de, L: Leaf<'de>> DeserializeSeed<'de> for Descent<'_, L> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.path.is_empty() {
            true => self.leaf.take(deserializer),
            false => deserializer.deserialize_any(self),
        }
    }
}

/// Scalars have no members: an error.
impl<'de, L: Leaf<'de>> Visitor<'de> for Descent<'_, L> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array or object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((name, rest)) = self.path.split_first() else {
            return Err(A::Error::custom("not a scalar"));
        };
        while let Some(is_wanted) = map.next_key_seed(IsName(name))? {
            if is_wanted {
                map.next_value_seed(Descent { path: rest, leaf: self.leaf })?;
                return Err(A::Error::custom("the rest need not be read"));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Some((index, rest)) = self.path.split_first() else {
            return Err(A::Error::custom("not a scalar"));
        };
        // As in RFC 6901: no sign, no leading zero.
        let is_index = &**index == "0" || !index.starts_with(['0', '+']);
        let Some(index) = index.parse::<usize>().ok().filter(|_| is_index) else {
            return Err(A::Error::custom("not an index"));
        };
        for _ in 0..index {
            if items.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        items.next_element_seed(Descent { path: rest, leaf: self.leaf })?;
        Err(A::Error::custom("the rest need not be read"))
    }
}

/// Whether a member has this name.
struct IsName<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for IsName<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for IsName<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}
