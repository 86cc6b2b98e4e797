//! The token that `tickcast top` sends. It is never an argument, because every user of the machine could read it there.

use std::path::Path;

use http::HeaderValue;
use tickcast_client::ClientToken;

use super::TopError;
use crate::commands::token_variable;

/// The `Authorization` header of each request, with the token from the file's first line, or else from the environment; `None`
/// without either.
///
/// # Errors
/// [`TopError::Token`] if the file or variable has no valid token.
pub(super) fn authorization(file: Option<&Path>) -> Result<Option<HeaderValue>, TopError> {
    let token = match file {
        Some(file) => Some(
            ClientToken::read(file)
                .map_err(|text| TopError::Token(format!("--token-file {}: {text}", file.display())))?,
        ),
        None => token_variable(true).map_err(|error| TopError::Token(error.to_string()))?,
    };
    Ok(token.as_ref().map(header))
}

fn header(token: &ClientToken) -> HeaderValue {
    let mut header = HeaderValue::from_str(&format!("Bearer {}", token.as_str()))
        .unwrap_or_else(|_| unreachable!("the characters of a token are visible ASCII"));
    header.set_sensitive(true);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_hides_the_token_that_is_sent() {
        let sent = header(&ClientToken::new("0123456789abcdef-._~+/=").unwrap());
        assert_eq!(sent.as_bytes(), b"Bearer 0123456789abcdef-._~+/=");
        assert_eq!(format!("{sent:?}"), "Sensitive");
    }

    #[test]
    fn a_file_without_a_token_is_an_error_that_names_it() {
        for path in ["/nowhere/token", "/dev/null"] {
            let error = authorization(Some(Path::new(path))).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--token-file {path}: ")), "{error}");
        }
    }
}
