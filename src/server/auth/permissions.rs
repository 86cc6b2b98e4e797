//! Permissions as they appear in a claim or the configuration file, and their templates.
//!
//! ```text
//! {"sub":{"allow":["market.>","user.{sub}.>"],"deny":["market.internal.>"]},"pub":{"allow":[],"deny":[]}}
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;

use tickcast_core::{
    limits::PERMISSION_PATTERNS_MAX,
    principal::{Permissions, Rules, RulesError},
};
use tickcast_proto::pattern::check_pattern;

/// Permissions before their templates are expanded. What is not listed is not allowed. Unknown keys are refused, because a
/// misspelt `deny` would allow too much.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PermissionsTable {
    /// Patterns that the client may subscribe to.
    pub sub: RulesTable,
    /// Topics that the client may publish on.
    #[serde(rename = "pub")]
    pub publish: RulesTable,
}

/// Allowed patterns, and exceptions to them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RulesTable {
    /// Allowed patterns.
    pub allow: Vec<String>,
    /// Denied patterns, which take precedence.
    pub deny: Vec<String>,
}

/// Values of the templates.
#[derive(Clone, Copy, Debug, Default)]
pub struct Templates<'a> {
    /// `{sub}`.
    pub sub: &'a str,
    /// `{tenant}`; empty if there is none.
    pub tenant: &'a str,
}

/// Why permissions cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PermissionsError {
    /// A list contains more than [`PERMISSION_PATTERNS_MAX`] patterns.
    TooMany,
    /// Not a valid pattern.
    Pattern,
    /// A brace that is not part of a known template.
    Template,
    /// A template's value is not a single literal token.
    NotAToken,
}

impl PermissionsError {
    /// The reason. Never contains any part of a token.
    pub fn text(self) -> &'static str {
        match self {
            PermissionsError::TooMany => "a list of permissions has more than 256 patterns",
            PermissionsError::Pattern => "a permission is not a valid pattern",
            PermissionsError::Template => {
                "a permission has an unknown template; {sub} and {tenant} are known"
            }
            PermissionsError::NotAToken => {
                "the value of a template in a permission must be one literal token, without dots and wildcards"
            }
        }
    }
}

const _: () = assert!(PERMISSION_PATTERNS_MAX == 256, "the text of TooMany names it");

impl PermissionsTable {
    /// Reads permissions from a claim; `None` if it is malformed. Accepts only objects: serde would read a list as a struct too.
    pub fn of_claim(claim: &Value) -> Option<PermissionsTable> {
        let rules = claim.as_object()?.values();
        rules.into_iter().all(Value::is_object).then(|| PermissionsTable::deserialize(claim).ok())?
    }

    /// The permissions of one principal, with templates expanded.
    ///
    /// # Errors
    /// The first pattern or template that cannot be used.
    pub fn expand(&self, templates: Templates<'_>) -> Result<Permissions, PermissionsError> {
        let rules = |table: &RulesTable| {
            let (allow, deny) = (list(&table.allow, templates)?, list(&table.deny, templates)?);
            Rules::new(allow, deny).map_err(|error| match error {
                RulesError::Pattern(..) => PermissionsError::Pattern,
                RulesError::TooMany => PermissionsError::TooMany,
            })
        };
        Ok(Permissions { subscribe: rules(&self.sub)?, publish: rules(&self.publish)? })
    }

    /// Checks permissions in a file, whose templates have no values yet.
    ///
    /// # Errors
    /// See [`PermissionsTable::expand`]; includes the pattern.
    pub fn check(&self) -> Result<(), String> {
        let any = Templates { sub: "sub", tenant: "tenant" };
        for list in [&self.sub.allow, &self.sub.deny, &self.publish.allow, &self.publish.deny] {
            if list.len() > PERMISSION_PATTERNS_MAX {
                return Err(PermissionsError::TooMany.text().into());
            }
            for pattern in list {
                expanded(pattern, any).map_err(|error| format!("{pattern:?}: {}", error.text()))?;
            }
        }
        Ok(())
    }
}

fn list(patterns: &[String], templates: Templates<'_>) -> Result<Vec<Box<str>>, PermissionsError> {
    if patterns.len() > PERMISSION_PATTERNS_MAX {
        return Err(PermissionsError::TooMany);
    }
    patterns.iter().map(|pattern| expanded(pattern, templates)).collect()
}

/// Expands the templates in a pattern. Values are not searched for further templates.
fn expanded(pattern: &str, templates: Templates<'_>) -> Result<Box<str>, PermissionsError> {
    let mut text = String::new();
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').ok_or(PermissionsError::Template)?;
        let value = match name {
            "sub" => templates.sub,
            "tenant" => templates.tenant,
            _ => return Err(PermissionsError::Template),
        };
        if !is_literal_token(value) {
            return Err(PermissionsError::NotAToken);
        }
        text += before;
        text += value;
        rest = after;
    }
    if rest.contains('}') {
        return Err(PermissionsError::Template);
    }
    text += rest;
    check_pattern(text.as_bytes()).map_err(|_| PermissionsError::Pattern)?;
    Ok(text.into())
}

/// Whether a text is a single topic token that has no special meaning in patterns.
fn is_literal_token(text: &str) -> bool {
    let is_odd = |c: char| c.is_whitespace() || c.is_control() || ['.', '*', '>', '{', '}'].contains(&c);
    !text.is_empty() && !text.contains(is_odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(allow: &[&str], deny: &[&str]) -> PermissionsTable {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        PermissionsTable { sub: RulesTable { allow: texts(allow), deny: texts(deny) }, ..Default::default() }
    }

    #[test]
    fn templates_become_the_values_of_the_token() {
        let templates = Templates { sub: "alice", tenant: "acme" };
        let permissions = table(&["{tenant}.user-{sub}.>"], &["{tenant}.{sub}"]).expand(templates).unwrap();
        assert!(permissions.subscribe.permits("acme.user-alice.x"));
        assert!(!permissions.subscribe.permits("acme.user-bob.x"));
        assert_eq!(&*permissions.subscribe.deny()[0], "acme.alice");
    }

    #[test]
    fn a_template_whose_value_is_no_single_literal_token_is_refused() {
        for sub in ["", "*", ">", "a.b", "a b", "a*", "{tenant}", "a\u{0}", "a\n"] {
            let refused = table(&["user.{sub}.>"], &[]).expand(Templates { sub, tenant: "t" });
            assert_eq!(refused, Err(PermissionsError::NotAToken), "{sub:?}");
        }
        let unused = table(&["user.>"], &[]).expand(Templates { sub: "*", tenant: "" });
        assert!(unused.is_ok(), "only a template that is used needs a value");
    }

    #[test]
    fn unknown_templates_and_invalid_patterns_are_refused() {
        let any = Templates { sub: "s", tenant: "t" };
        for (pattern, why) in [
            ("user.{subject}.>", PermissionsError::Template),
            ("user.{sub", PermissionsError::Template),
            ("user.sub}", PermissionsError::Template),
            ("user.{}", PermissionsError::Template),
            ("user..x", PermissionsError::Pattern),
            ("user.>.x", PermissionsError::Pattern),
            ("", PermissionsError::Pattern),
        ] {
            assert_eq!(table(&[pattern], &[]).expand(any), Err(why), "{pattern}");
            assert_eq!(table(&["a"], &[pattern]).expand(any), Err(why), "{pattern}");
            assert!(table(&[pattern], &[]).check().is_err());
        }
        let many = vec!["a"; PERMISSION_PATTERNS_MAX + 1];
        assert_eq!(table(&many, &[]).expand(any), Err(PermissionsError::TooMany));
    }

    #[test]
    fn a_misspelt_key_is_refused_and_nothing_is_allowed_unless_it_is_named() {
        let of_claim = |json| PermissionsTable::of_claim(&serde_json::from_str(json).unwrap());
        for bad in [
            r#"{"sub":{"allow":["a"],"denny":["a"]}}"#,
            r#"{"sub":{"allow":"a"}}"#,
            r#"{"sub":[["a"],["b"]]}"#,
            r#"{"subscribe":{}}"#,
            r#"[{"allow":["a"]}]"#,
            "[]",
            "null",
            "7",
        ] {
            assert_eq!(of_claim(bad), None, "{bad}");
        }
        let empty = of_claim("{}").unwrap();
        let permissions = empty.expand(Templates::default()).unwrap();
        assert!(!permissions.subscribe.permits("a") && !permissions.publish.permits("a"));
    }
}
