//! The token that `tickcast top` sends. It is never an argument, because every user of the machine could read it there.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use http::HeaderValue;

use super::TopError;
use tickcast_proto::limits::TOKEN_BYTES_MAX;

/// Environment variable with a token.
const TOKEN_VARIABLE: &str = "TICKCAST_TOKEN";

/// The `Authorization` header of each request, with the token from the file's first line, or else from the environment; `None`
/// without either.
///
/// # Errors
/// [`TopError::Token`] if the file or variable has no valid token.
pub(super) fn authorization(file: Option<&Path>) -> Result<Option<HeaderValue>, TopError> {
    let (from, text) = match file {
        Some(file) => {
            let from = format!("--token-file {}", file.display());
            let text = first_line(file).map_err(|error| TopError::Token(format!("{from}: {error}")))?;
            (from, text)
        }
        None => match std::env::var_os(TOKEN_VARIABLE).filter(|text| !text.is_empty()) {
            Some(text) => (TOKEN_VARIABLE.to_owned(), text.into_string().unwrap_or_default()),
            None => return Ok(None),
        },
    };
    header(text.trim()).map(Some).ok_or_else(|| {
        TopError::Token(format!(
            "{from}: not a token: it must be 1 to {TOKEN_BYTES_MAX} visible ASCII characters"
        ))
    })
}

fn header(token: &str) -> Option<HeaderValue> {
    let is_token =
        (1..=TOKEN_BYTES_MAX).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic());
    let mut header = HeaderValue::from_str(&format!("Bearer {token}")).ok().filter(|_| is_token)?;
    header.set_sensitive(true);
    Some(header)
}

fn first_line(file: &Path) -> std::io::Result<String> {
    let mut line = Vec::new();
    let bytes_max = TOKEN_BYTES_MAX as u64 + 2;
    BufReader::new(File::open(file)?).take(bytes_max).read_until(b'\n', &mut line)?;
    Ok(String::from_utf8(line).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_token_of_visible_characters_is_sent_and_debug_output_hides_it() {
        let sent = header("0123456789abcdef-._~+/=").unwrap();
        assert_eq!(sent.as_bytes(), b"Bearer 0123456789abcdef-._~+/=");
        assert_eq!(format!("{sent:?}"), "Sensitive");
        for bad in ["", "two words", "a\u{e4}", "a\nb", &"x".repeat(TOKEN_BYTES_MAX + 1)] {
            assert!(header(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_file_without_a_token_is_an_error_that_names_it() {
        for path in ["/nowhere/token", "/dev/null"] {
            let error = authorization(Some(Path::new(path))).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--token-file {path}: ")), "{error}");
        }
    }
}
