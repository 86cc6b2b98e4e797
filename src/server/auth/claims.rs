//! Checks the claims of a JSON Web Token (RFC 7519, section 4.1). A claim of the wrong type is refused, never ignored.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::permissions::{PermissionsTable, Templates};
use tickcast_core::principal::{AuthRefusal, Principal};
use tickcast_proto::{identity, limits::IDENTITY_BYTES_MAX};

/// What a token's claims must be, depending on its key.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectations {
    /// Required `iss`; `None`: any.
    pub issuer: Option<Box<str>>,
    /// Required in `aud`; `None`: the token must not have the claim.
    pub audience: Option<Box<str>>,
    /// Permissions of a token without a permissions claim.
    pub permissions: PermissionsTable,
}

/// Settings that apply to all tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Common {
    /// Name of the claim that holds the permissions.
    pub claim: Box<str>,
    /// Tolerated clock difference in seconds.
    pub leeway_s: u64,
    /// Maximum seconds until a token expires, from now and from its time of issue; `None`: no limit.
    pub ttl_max_s: Option<u64>,
}

/// The claims of a token whose signature has been verified.
pub struct Claims(pub Map<String, Value>);

fn invalid(text: &'static str) -> AuthRefusal {
    AuthRefusal::Invalid(text.into())
}

impl Claims {
    /// Whether the issuer is the expected one.
    pub fn is_from(&self, issuer: Option<&str>) -> bool {
        issuer.is_none_or(|issuer| self.0.get("iss").and_then(Value::as_str) == Some(issuer))
    }

    /// Checks every claim. `now_s`: seconds since 1970.
    ///
    /// # Errors
    /// Names the first claim that is missing, malformed or not as expected.
    pub fn identify(
        &self,
        expected: &Expectations,
        common: &Common,
        now_s: u64,
    ) -> Result<Principal, AuthRefusal> {
        self.audience(expected.audience.as_deref())?;
        if !self.is_from(expected.issuer.as_deref()) {
            return Err(invalid("its issuer (iss) is not the one of its key"));
        }
        let expires_s = self.time("exp", "its expiry (exp) is not a number of seconds")?;
        let Some(expires_s) = expires_s else {
            return Err(invalid("it has no expiry (exp)"));
        };
        let latest_s = |ttl_max_s: u64| now_s.saturating_add(ttl_max_s).saturating_add(common.leeway_s);
        if common.ttl_max_s.is_some_and(|ttl_max_s| expires_s > latest_s(ttl_max_s)) {
            return Err(invalid("it expires later than the server allows (ttl_max)"));
        }
        let issued_at_s = self.time("iat", "its time of issue (iat) is not a number of seconds")?;
        // Otherwise a token would become valid late in its life, after its revocation has been forgotten.
        if let (Some(ttl_max_s), Some(issued_at_s)) = (common.ttl_max_s, issued_at_s)
            && expires_s.saturating_sub(issued_at_s) > ttl_max_s.saturating_add(common.leeway_s)
        {
            return Err(invalid("it is valid for longer than the server allows (ttl_max)"));
        }
        let expires_s = expires_s.saturating_add(common.leeway_s);
        let not_before_s = self.time("nbf", "its begin (nbf) is not a number of seconds")?;
        // Build the principal before checking the expiry: if the token is also wrong otherwise, the client need not retry with a new
        // one.
        let principal = Principal {
            // The clock of an issuer may be ahead. But the token exists, so a revocation from now on is later.
            issued_at_s: issued_at_s.map(|issued_at_s| issued_at_s.min(now_s)),
            expires_at_s: Some(expires_s),
            ..self.principal(expected, common)?
        };
        if expires_s <= now_s {
            return Err(AuthRefusal::Expired);
        }
        let is_early = |time_s: &u64| *time_s > now_s.saturating_add(common.leeway_s);
        if not_before_s.iter().chain(&issued_at_s).any(is_early) {
            return Err(AuthRefusal::NotYetValid);
        }
        Ok(principal)
    }

    /// The principal without its times.
    fn principal(&self, expected: &Expectations, common: &Common) -> Result<Principal, AuthRefusal> {
        let name = |name, is_wrong| -> Result<Option<&str>, AuthRefusal> {
            let text = self.text(name, is_wrong)?;
            let is_name = text.is_none_or(|text| identity::check(text.as_bytes()).is_ok());
            if is_name { Ok(text) } else { Err(invalid(is_wrong)) }
        };
        let Some(subject) = name("sub", "its subject (sub) is not a text of 1 to 255 bytes")? else {
            return Err(invalid("it has no subject (sub)"));
        };
        let tenant = name("tenant", "its tenant is not a text of 1 to 255 bytes")?.unwrap_or_default();
        let token_id = name("jti", "its id (jti) is not a text of 1 to 255 bytes")?;
        let own = match self.0.get(&*common.claim) {
            None => None,
            Some(claim) => Some(
                PermissionsTable::of_claim(claim)
                    .ok_or_else(|| invalid("its claim of permissions is malformed"))?,
            ),
        };
        let permissions = own.as_ref().unwrap_or(&expected.permissions);
        let permissions = permissions.expand(Templates { sub: subject, tenant });
        Ok(Principal {
            subject: subject.into(),
            tenant: tenant.into(),
            token_id: token_id.map(Into::into),
            permissions: Arc::new(permissions.map_err(|error| invalid(error.text()))?),
            ..Principal::default()
        })
    }

    /// A token for another audience must not be accepted (RFC 7519, section 4.1.3).
    fn audience(&self, expected: Option<&str>) -> Result<(), AuthRefusal> {
        let is_malformed = || invalid("its audience (aud) is neither a text nor a list of texts");
        let named: Vec<&str> = match self.0.get("aud") {
            None => Vec::new(),
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(many)) => {
                let texts: Option<Vec<&str>> = many.iter().map(Value::as_str).collect();
                texts.ok_or_else(is_malformed)?
            }
            Some(_) => return Err(is_malformed()),
        };
        let is_for_us = match expected {
            Some(expected) => named.contains(&expected),
            None => named.is_empty(),
        };
        if is_for_us { Ok(()) } else { Err(invalid("its audience (aud) is not this server")) }
    }

    fn text(&self, name: &str, is_wrong: &'static str) -> Result<Option<&str>, AuthRefusal> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(invalid(is_wrong)),
        }
    }

    /// A NumericDate (RFC 7519, section 2), rounded down.
    fn time(&self, name: &str, is_wrong: &'static str) -> Result<Option<u64>, AuthRefusal> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        if let Some(seconds) = value.as_u64() {
            return Ok(Some(seconds));
        }
        // The cast saturates.
        let seconds = value.as_f64().filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
        seconds.map(|seconds| Some(seconds as u64)).ok_or_else(|| invalid(is_wrong))
    }
}

const _: () = assert!(IDENTITY_BYTES_MAX == 255, "refusals name it");

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW_S: u64 = 1_000_000;

    fn expectations() -> Expectations {
        Expectations {
            issuer: Some("https://id.example".into()),
            audience: Some("ticks".into()),
            permissions: PermissionsTable::default(),
        }
    }

    fn identify(changes: &Value) -> Result<Principal, AuthRefusal> {
        let mut claims = json!({
            "sub": "alice", "iss": "https://id.example", "aud": "ticks", "exp": NOW_S + 60,
            "tickcast": {"sub": {"allow": ["user.{sub}.>"]}},
        });
        let claims = claims.as_object_mut().unwrap();
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => drop(claims.remove(name)),
                value => drop(claims.insert(name.clone(), value.clone())),
            }
        }
        let common = Common { claim: "tickcast".into(), leeway_s: 10, ttl_max_s: None };
        Claims(claims.clone()).identify(&expectations(), &common, NOW_S)
    }

    #[test]
    fn a_token_identifies_its_subject_and_expires_after_the_leeway() {
        let principal =
            identify(&json!({"tenant": "acme", "jti": "7", "iat": NOW_S - 1, "aud": ["x", "ticks"]}))
                .unwrap();
        assert_eq!((&*principal.subject, &*principal.tenant), ("alice", "acme"));
        assert_eq!((principal.token_id.as_deref(), principal.expires_at_s), (Some("7"), Some(NOW_S + 70)));
        assert_eq!(principal.issued_at_s, Some(NOW_S - 1));
        let ahead = identify(&json!({"iat": NOW_S + 5})).unwrap();
        assert_eq!(ahead.issued_at_s, Some(NOW_S), "the issuer's clock is ahead");
        assert!(principal.permissions.subscribe.permits("user.alice.x"));
        assert!(!principal.permissions.publish.permits("user.alice.x"));
    }

    #[test]
    fn times_are_compared_with_leeway_and_refused_unless_they_are_numbers() {
        assert!(identify(&json!({"exp": NOW_S - 9})).is_ok());
        assert!(identify(&json!({"exp": NOW_S as f64 - 8.5})).is_ok());
        assert_eq!(identify(&json!({"exp": NOW_S - 10})), Err(AuthRefusal::Expired));
        assert_eq!(identify(&json!({"exp": 0})), Err(AuthRefusal::Expired));
        assert!(identify(&json!({"exp": u64::MAX})).is_ok(), "no overflow");
        assert!(identify(&json!({"exp": 1e300})).is_ok());
        assert!(identify(&json!({"nbf": NOW_S + 10, "iat": NOW_S + 10})).is_ok());
        assert_eq!(identify(&json!({"nbf": NOW_S + 11})), Err(AuthRefusal::NotYetValid));
        assert_eq!(identify(&json!({"iat": NOW_S + 11})), Err(AuthRefusal::NotYetValid));
        for name in ["exp", "nbf", "iat"] {
            for bad in [
                json!("1000060"),
                json!("2033-01-01T00:00:00Z"),
                json!(-1),
                json!([1]),
                json!(true),
                json!({}),
            ] {
                let refused = identify(&json!({name: bad}));
                assert!(matches!(refused, Err(AuthRefusal::Invalid(_))), "{name} {bad}: {refused:?}");
            }
        }
    }

    #[test]
    fn a_token_that_is_valid_for_too_long_is_refused() {
        let within = |ttl_s: u64| {
            let common = Common { claim: "tickcast".into(), leeway_s: 10, ttl_max_s: Some(3_600) };
            let claims =
                json!({"sub": "a", "iss": "https://id.example", "aud": "ticks", "exp": NOW_S + ttl_s});
            Claims(claims.as_object().unwrap().clone()).identify(&expectations(), &common, NOW_S)
        };
        assert!(within(3_600).is_ok() && within(3_610).is_ok(), "the clocks may differ");
        for ttl_s in [3_611, u64::MAX - NOW_S] {
            let refused = within(ttl_s);
            assert!(
                matches!(&refused, Err(AuthRefusal::Invalid(text)) if text.contains("ttl_max")),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn a_token_of_a_long_life_is_not_valid_at_its_end_either() {
        let with = |issued_at_s: u64| {
            let common = Common { claim: "tickcast".into(), leeway_s: 10, ttl_max_s: Some(3_600) };
            let claims = json!({
                "sub": "a", "iss": "https://id.example", "aud": "ticks", "exp": NOW_S + 60, "iat": issued_at_s
            });
            Claims(claims.as_object().unwrap().clone()).identify(&expectations(), &common, NOW_S)
        };
        assert!(with(NOW_S + 60 - 3_610).is_ok());
        for issued_at_s in [NOW_S + 60 - 3_611, 0] {
            let refused = with(issued_at_s);
            assert!(
                matches!(&refused, Err(AuthRefusal::Invalid(text)) if text.contains("ttl_max")),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn claims_that_are_missing_malformed_or_for_others_are_refused() {
        let long = "x".repeat(256);
        for (changes, part) in [
            (json!({"exp": null}), "no expiry"),
            (json!({"sub": null}), "no subject"),
            (json!({"sub": ""}), "subject"),
            (json!({"sub": 7}), "subject"),
            (json!({"sub": "a\nb"}), "subject"),
            (json!({"sub": long}), "subject"),
            (json!({"jti": ""}), "id (jti)"),
            (json!({"jti": {}}), "id (jti)"),
            (json!({"tenant": ["a"]}), "tenant"),
            (json!({"iss": null}), "issuer"),
            (json!({"iss": "https://id.example/"}), "issuer"),
            (json!({"iss": ["https://id.example"]}), "issuer"),
            (json!({"aud": null}), "audience"),
            (json!({"aud": "other"}), "audience"),
            (json!({"aud": ["other"]}), "audience"),
            (json!({"aud": ["ticks", 7]}), "audience"),
            (json!({"aud": {"ticks": 1}}), "audience"),
            (json!({"tickcast": []}), "permissions"),
            (json!({"tickcast": {"sub": {"allow": "a"}}}), "permissions"),
            (json!({"tickcast": {"sub": {"alow": ["a"]}}}), "permissions"),
            (json!({"tickcast": {"sub": {"allow": ["a..b"]}}}), "pattern"),
            (json!({"sub": "a.b"}), "literal token"),
        ] {
            match identify(&changes) {
                Err(AuthRefusal::Invalid(text)) => assert!(text.contains(part), "{changes}: {text}"),
                other => panic!("{changes}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_token_for_someone_is_refused_if_the_server_has_no_audience() {
        let mut expected = expectations();
        expected.audience = None;
        let common = Common { claim: "tickcast".into(), leeway_s: 0, ttl_max_s: None };
        let claims = |aud: Value| {
            let claims = json!({"sub": "a", "iss": "https://id.example", "exp": NOW_S + 1, "aud": aud});
            Claims(claims.as_object().unwrap().clone()).identify(&expected, &common, NOW_S)
        };
        assert!(claims(json!("other")).is_err() && claims(json!([])).is_ok());
    }
}
