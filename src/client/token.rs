//! The token with which a client says who it is.

use std::{
    fmt,
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use tickcast_proto::limits::TOKEN_BYTES_MAX;

/// A token: 1 to [`TOKEN_BYTES_MAX`] visible ASCII characters. It is a secret, so debug output hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientToken(Box<str>);

impl ClientToken {
    /// Takes a token, without the white space around it; `None` if it is none.
    pub fn new(text: &str) -> Option<ClientToken> {
        let text = text.trim();
        let is_token =
            (1..=TOKEN_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_token.then(|| ClientToken(text.into()))
    }

    /// Reads the token on the first line of a file.
    ///
    /// # Errors
    /// Why there is none.
    pub fn read(file: &Path) -> Result<ClientToken, String> {
        let mut line = Vec::new();
        let bytes_max = TOKEN_BYTES_MAX as u64 + 2;
        File::open(file)
            .and_then(|file| BufReader::new(file).take(bytes_max).read_until(b'\n', &mut line))
            .map_err(|error| error.to_string())?;
        let token = std::str::from_utf8(&line).ok().and_then(ClientToken::new);
        token
            .ok_or_else(|| format!("not a token: it must be 1 to {TOKEN_BYTES_MAX} visible ASCII characters"))
    }

    /// The token.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ClientToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientToken({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_visible_characters_are_a_token_and_debug_output_hides_it() {
        let token = ClientToken::new(" 0123456789abcdef-._~+/=\r\n").unwrap();
        assert_eq!(token.as_str(), "0123456789abcdef-._~+/=");
        assert_eq!(format!("{token:?}"), "ClientToken(23 bytes)");
        for bad in ["", " ", "two words", "a\u{e4}", "a\nb", &"x".repeat(TOKEN_BYTES_MAX + 1)] {
            assert!(ClientToken::new(bad).is_none(), "{bad:?}");
        }
        assert!(ClientToken::new(&"x".repeat(TOKEN_BYTES_MAX)).is_some());
    }

    #[test]
    fn a_file_without_a_token_is_an_error() {
        for path in ["/nowhere/token", "/dev/null"] {
            assert!(ClientToken::read(Path::new(path)).is_err(), "{path}");
        }
    }
}
