//! Operators: who may use the admin listener, and for what. Reads no clock and no socket.

use std::{fmt, hint::black_box};

use serde::{Deserialize, Serialize};

use super::policy::{Hash, parsed_hash, sha256};
use crate::{config::auth::OperatorTable, limits::OPERATORS_MAX};
use tickcast_proto::{identity, limits::TOKEN_BYTES_MAX};

/// What an operator may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read only: metrics, topics, sessions.
    Read,
    /// Everything, including closing sessions and revoking tokens.
    Operate,
}

/// An `[[auth.operator]]` table.
#[derive(Clone, PartialEq)]
pub struct Operator {
    /// Name, for the log.
    pub name: String,
    /// What it may do.
    pub role: Role,
    sha256: Option<Hash>,
    certificate: Option<String>,
}

impl fmt::Debug for Operator {
    /// Omits the hash of the operator's token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Operator { name, role, certificate, .. } = self;
        f.debug_struct("Operator")
            .field("name", name)
            .field("role", role)
            .field("certificate", certificate)
            .finish_non_exhaustive()
    }
}

/// All operators, at most [`OPERATORS_MAX`]. A reload replaces them as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Operators(Vec<Operator>);

impl Operators {
    /// Checks the tables. `is_whole`: whether every value could be read. If not, nothing is reported as missing.
    ///
    /// # Errors
    /// All problems, each with its path, such as `auth.operator[0].sha256`.
    pub fn build(tables: &[OperatorTable], is_whole: bool) -> Result<Operators, Vec<(String, String)>> {
        let mut builder = Builder::default();
        for (at, table) in tables.iter().enumerate() {
            builder.add(at, table);
        }
        if tables.len() > OPERATORS_MAX {
            let text = format!("{} tables, the limit is {OPERATORS_MAX}", tables.len());
            builder.refuse(format!("auth.operator[{OPERATORS_MAX}]"), text);
        }
        builder.problems.retain(|(_, text)| is_whole || !text.contains("is missing"));
        match builder.problems.is_empty() {
            true => Ok(Operators(builder.operators)),
            false => Err(builder.problems),
        }
    }

    /// The operator with this token. Takes the same time for every token: always compares all hashes to the last byte.
    pub fn with_token(&self, token: &[u8]) -> Option<&Operator> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let hash = sha256(token);
        let mut found = None;
        for operator in &self.0 {
            if operator.sha256.as_ref().is_some_and(|own| is_same(own, &hash)) {
                found = Some(operator);
            }
        }
        found
    }

    /// The operator whose verified certificate has this name.
    pub fn with_certificate(&self, name: &str) -> Option<&Operator> {
        self.0.iter().find(|operator| operator.certificate.as_deref() == Some(name))
    }
}

/// Compares all bytes, wherever they first differ.
fn is_same(one: &Hash, other: &Hash) -> bool {
    let difference = one.iter().zip(other).fold(0, |bits, (one, other)| black_box(bits | (one ^ other)));
    difference == 0
}

#[derive(Default)]
struct Builder {
    operators: Vec<Operator>,
    /// Each problem's path in the file, and what is wrong.
    problems: Vec<(String, String)>,
}

impl Builder {
    fn refuse(&mut self, path: impl Into<String>, text: impl Into<String>) {
        self.problems.push((path.into(), text.into()));
    }

    fn add(&mut self, at: usize, table: &OperatorTable) {
        let path = format!("auth.operator[{at}]");
        let of = |key: &str| format!("{path}.{key}");
        let problems = self.problems.len();
        for (key, text) in [("name", Some(&table.name)), ("certificate", table.certificate.as_ref())] {
            match text.map(|text| (text.is_empty(), identity::check(text.as_bytes()))) {
                Some((true, _)) if key == "name" => self.refuse(&path, "name is missing"),
                Some((_, Err(_))) => {
                    self.refuse(of(key), "must be 1 to 255 bytes without control characters");
                }
                Some((_, Ok(_))) | None => {}
            }
        }
        let sha256 = table.sha256.as_deref().map(parsed_hash);
        if sha256 == Some(None) {
            let text = "must be 64 hexadecimal digits, the hash and not the token: `tickcast token --hash` prints it";
            self.refuse(of("sha256"), text);
        }
        if sha256.is_none() && table.certificate.is_none() {
            let text = "sha256 is missing (`tickcast token --hash` prints it), or certificate, a name in a client certificate";
            self.refuse(&path, text);
        }
        if table.role.is_none() {
            self.refuse(&path, "role is missing: \"read\" or \"operate\"");
        }
        let operator = Operator {
            name: table.name.clone(),
            role: table.role.unwrap_or(Role::Read),
            sha256: sha256.flatten(),
            certificate: table.certificate.clone(),
        };
        if self.problems.len() > problems {
            return;
        }
        let is_taken = |own: &dyn Fn(&Operator) -> bool| self.operators.iter().any(own);
        let taken = [
            ("name", is_taken(&|other| other.name == operator.name)),
            ("sha256", is_taken(&|other| other.sha256.is_some() && other.sha256 == operator.sha256)),
            (
                "certificate",
                is_taken(&|other| other.certificate.is_some() && other.certificate == operator.certificate),
            ),
        ];
        for (key, is_taken) in taken {
            if is_taken {
                self.refuse(of(key), "another [[auth.operator]] has the same; each operator needs its own");
            }
        }
        self.operators.push(operator);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::policy::token_hash;

    fn table(name: &str, token: Option<&str>, certificate: Option<&str>, role: Role) -> OperatorTable {
        OperatorTable {
            name: name.into(),
            sha256: token.map(token_hash),
            certificate: certificate.map(Into::into),
            role: Some(role),
        }
    }

    #[test]
    fn an_operator_is_found_by_its_token_or_its_certificate() {
        let tables = [
            table("watcher", Some("token-of-the-watcher"), None, Role::Read),
            table("admin", Some("token-of-the-admin"), Some("admin.test"), Role::Operate),
            table("robot", None, Some("spiffe://test/robot"), Role::Operate),
        ];
        let operators = Operators::build(&tables, true).unwrap();
        let name = |found: Option<&Operator>| found.map(|operator| (operator.name.clone(), operator.role));
        let expected = |name: &str, role| Some((name.to_owned(), role));
        assert_eq!(name(operators.with_token(b"token-of-the-watcher")), expected("watcher", Role::Read));
        assert_eq!(name(operators.with_token(b"token-of-the-admin")), expected("admin", Role::Operate));
        assert_eq!(name(operators.with_certificate("admin.test")), expected("admin", Role::Operate));
        assert_eq!(name(operators.with_certificate("spiffe://test/robot")), expected("robot", Role::Operate));
        for token in ["", "token-of-the-watche", "token-of-the-watcher ", &token_hash("token-of-the-admin")] {
            assert_eq!(operators.with_token(token.as_bytes()), None, "{token}");
        }
        assert_eq!(operators.with_token(&vec![b'x'; TOKEN_BYTES_MAX + 1]), None);
        for certificate in ["", "watcher", "ADMIN.TEST.", "test"] {
            assert_eq!(operators.with_certificate(certificate), None, "{certificate}");
        }
    }

    #[test]
    fn hashes_are_compared_to_the_last_byte_and_never_printed() {
        let hash = sha256(b"a");
        let mut last = hash;
        *last.last_mut().unwrap() ^= 1;
        assert!(is_same(&hash, &hash) && !is_same(&hash, &last));
        let operators = Operators::build(&[table("a", Some("a"), None, Role::Read)], true).unwrap();
        let printed = format!("{operators:?}");
        assert!(printed.contains("\"a\"") && !printed.contains(&format!("{}", hash[0])), "{printed}");
    }

    #[test]
    fn everything_that_is_wrong_is_reported_with_its_place() {
        let tables = [
            OperatorTable { sha256: Some("the token itself".into()), ..Default::default() },
            OperatorTable { name: "b".into(), role: Some(Role::Read), ..Default::default() },
            table("c", Some("c"), Some("c.test"), Role::Read),
            table("c", Some("c"), Some("c.test"), Role::Read),
            table("d\n", Some("d"), Some(""), Role::Read),
        ];
        let problems = Operators::build(&tables, true).unwrap_err();
        for (path, part) in [
            ("auth.operator[0]", "name is missing"),
            ("auth.operator[0]", "role is missing"),
            ("auth.operator[0].sha256", "64 hexadecimal digits"),
            ("auth.operator[1]", "sha256 is missing"),
            ("auth.operator[3].name", "another"),
            ("auth.operator[3].sha256", "another"),
            ("auth.operator[3].certificate", "another"),
            ("auth.operator[4].name", "255 bytes"),
            ("auth.operator[4].certificate", "255 bytes"),
        ] {
            let is_there = problems.iter().any(|(place, text)| place == path && text.contains(part));
            assert!(is_there, "{path}: {part} in {problems:?}");
        }
        assert_eq!(problems.len(), 9, "{problems:?}");
        let of_broken = Operators::build(&tables[..2], false).unwrap_err();
        assert_eq!(of_broken.len(), 1, "a value that could not be read is not missing: {of_broken:?}");
    }
}
