//! Payloads that are not JSON, as base64.

use std::borrow::Cow;

use base64::{DecodeError, Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::value::RawValue;

/// Decodes the base64 in a JSON string.
///
/// # Errors
/// What is wrong with the field `data`.
pub fn base64(data: &RawValue) -> Result<Vec<u8>, String> {
    let text: Cow<'_, str> =
        serde_json::from_str(data.get()).map_err(|_| "base64 \"data\" must be a string".to_owned())?;
    BASE64
        .decode(text.as_bytes())
        .map_err(|error| format!("\"data\" is not base64: {}", base64_fault(&error)))
}

/// Why a text is not base64.
fn base64_fault(error: &DecodeError) -> String {
    match *error {
        DecodeError::InvalidByte(at, byte) => format!("{:?} at {at}", char::from(byte)),
        DecodeError::InvalidLastSymbol(at, _) => {
            format!("the character at {at} has bits beyond the last whole byte")
        }
        DecodeError::InvalidLength(_) | DecodeError::InvalidPadding => {
            "its length, including padding (=), must be a multiple of 4".into()
        }
    }
}
