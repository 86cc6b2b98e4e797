//! `tickcast token`: makes a token for tests and scripts, or the hash of a static one.

use std::{
    io::{self, BufRead, Write},
    path::PathBuf,
};

use serde_json::{Map, Value, json};

use super::CommandError;
use crate::{
    auth::{
        key::{self, Algorithm},
        permissions::{PermissionsTable, RulesTable},
        policy, sign,
    },
    cli::values::Time,
    clock,
    limits::STATIC_TOKEN_BYTES_LOWEST,
};
use tickcast_proto::{identity, limits::TOKEN_BYTES_MAX};

/// Options of `tickcast token`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
A pattern may contain {sub} and {tenant}, which become those of the token. Everything is denied that --allow-sub or \
--allow-pub does not name; --deny-sub and --deny-pub take away from that. Without --allow-sub and --allow-pub the token has no \
permissions of its own, and gets those of its [[auth.key]].")]
pub struct TokenArgs {
    /// File with the signing key: a private key in PEM (PKCS#8), or the secret for HS256
    #[arg(long, value_name = "FILE", required_unless_present = "hash")]
    pub key: Option<PathBuf>,
    /// Algorithm [default: the key's]
    #[arg(long, value_name = "ALGORITHM", requires = "key")]
    pub alg: Option<Algorithm>,
    /// Key id (kid)
    #[arg(long, value_name = "ID", requires = "key")]
    pub kid: Option<String>,
    /// Subject (sub): the client's identity
    #[arg(long, value_name = "NAME", required_unless_present = "hash")]
    pub sub: Option<String>,
    /// Tenant of the subject
    #[arg(long, value_name = "NAME", requires = "key")]
    pub tenant: Option<String>,
    /// Token id (jti), for revoking only this token
    #[arg(long, value_name = "ID", requires = "key")]
    pub jti: Option<String>,
    /// Pattern that the client may subscribe to; repeatable
    #[arg(long, value_name = "PATTERN", requires = "key")]
    pub allow_sub: Vec<String>,
    /// Pattern that the token denies subscribing to, although --allow-sub covers it; repeatable
    #[arg(long, value_name = "PATTERN", requires = "allow_sub")]
    pub deny_sub: Vec<String>,
    /// Pattern of topics that the client may publish to; repeatable
    #[arg(long, value_name = "PATTERN", requires = "key")]
    pub allow_pub: Vec<String>,
    /// Pattern of topics that the token denies publishing, although --allow-pub covers them; repeatable
    #[arg(long, value_name = "PATTERN", requires = "allow_pub")]
    pub deny_pub: Vec<String>,
    /// Lifetime of the token
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub ttl: Time,
    /// Issuer
    #[arg(long, value_name = "ISSUER", requires = "key")]
    pub iss: Option<String>,
    /// Audience
    #[arg(long, value_name = "AUDIENCE", requires = "key")]
    pub aud: Option<String>,
    /// Claim that holds the permissions; must match the server's `claim`
    #[arg(long, value_name = "NAME", default_value = "tickcast")]
    pub claim: String,
    /// Read a static token from standard input and print its hash for [[auth.token]] or [[auth.operator]]
    #[arg(long, conflicts_with = "key")]
    pub hash: bool,
}

/// Prints a token, or a hash.
///
/// # Errors
/// The key cannot be used, or the output cannot be written.
pub fn token(args: &TokenArgs) -> Result<(), CommandError> {
    let line = match args.hash {
        true => hash_line(io::stdin().lock())?,
        false => made(args, clock::realtime_ns() / 1_000_000_000).map_err(CommandError::Token)?,
    };
    writeln!(io::stdout().lock(), "{line}").map_err(CommandError::Output)
}

/// The line of the configuration file for a token on the first line of `input`.
fn hash_line(input: impl BufRead) -> Result<String, CommandError> {
    let mut line = String::new();
    let bytes_max = TOKEN_BYTES_MAX as u64 + 2;
    input.take(bytes_max).read_line(&mut line).map_err(CommandError::Input)?;
    let token = line.trim_end_matches(['\r', '\n']);
    if !(STATIC_TOKEN_BYTES_LOWEST..=TOKEN_BYTES_MAX).contains(&token.len()) {
        return Err(CommandError::Token(format!(
            "the token on standard input has {} bytes: must be {STATIC_TOKEN_BYTES_LOWEST} to {TOKEN_BYTES_MAX}, such as from \
             `openssl rand -hex 32`",
            token.len()
        )));
    }
    Ok(format!("sha256 = {:?}", policy::token_hash(token)))
}

/// A signed token, issued at `now_s`.
fn made(args: &TokenArgs, now_s: u64) -> Result<String, String> {
    let file = args.key.as_deref().ok_or("--key is missing")?;
    let of_file = |text: String| format!("--key {}: {text}", file.display());
    let content = policy::read_bounded(file).map_err(of_file)?;
    let (algorithm, key) = key::signing_key(args.alg, &content).map_err(of_file)?;
    let names = [("sub", &args.sub), ("tenant", &args.tenant), ("jti", &args.jti)];
    for (name, text) in names.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?))) {
        identity::check(text.as_bytes())
            .map_err(|_| format!("--{name}: must be 1 to 255 bytes without control characters"))?;
    }
    let rules = |allow: &[String], deny: &[String]| RulesTable { allow: allow.into(), deny: deny.into() };
    let permissions = PermissionsTable {
        sub: rules(&args.allow_sub, &args.deny_sub),
        publish: rules(&args.allow_pub, &args.deny_pub),
    };
    permissions.check()?;
    let expires_s = now_s.saturating_add(args.ttl.ns / 1_000_000_000);
    let mut claims = Map::from_iter([("iat".into(), now_s.into()), ("exp".into(), expires_s.into())]);
    let texts = names.into_iter().chain([("iss", &args.iss), ("aud", &args.aud)]);
    claims.extend(texts.filter_map(|(name, text)| Some((name.to_owned(), Value::from(text.clone()?)))));
    if permissions != PermissionsTable::default() {
        claims.insert(args.claim.clone(), json!(permissions));
    }
    sign(algorithm, &key, args.kid.clone(), &claims)
}

#[cfg(test)]
mod tests;
