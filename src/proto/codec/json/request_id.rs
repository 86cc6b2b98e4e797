//! The id of a request that cannot be decoded: the ERROR repeats it, as the client waits for an answer by id.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

/// The first `id` of the object that `text` starts with, or 0 if there is none that is a request id.
///
/// Whatever is wrong after the id does not matter: an unknown field, a value of the wrong type, even text that is not
/// JSON. Does not allocate.
pub(super) fn find(text: &str) -> u32 {
    let mut found = 0;
    // The error is known already: this pass only looks for the id.
    let _ = serde_json::Deserializer::from_str(text).deserialize_map(IdVisitor(&mut found));
    found
}

struct IdVisitor<'a>(&'a mut u32);

/// A field's name.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Field {
    Id,
    #[serde(other)]
    Other,
}

impl<'de> Visitor<'de> for IdVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(field) = map.next_key()? {
            match field {
                Field::Id => {
                    *self.0 = map.next_value()?;
                    return Ok(());
                }
                Field::Other => map.next_value::<IgnoredAny>()?,
            };
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
            assert_eq!(find(text), 7, "{text}");
        }
        for text in
            ["", "{", "[]", "7", r#"[{"id":7}]"#, r#"{"id":"7"}"#, r#"{"id":-7}"#, r#"{"id":4294967296}"#]
        {
            assert_eq!(find(text), 0, "{text}");
        }
    }
}
