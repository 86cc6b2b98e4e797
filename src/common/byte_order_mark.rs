//! Byte order marks at the start of text from other tools: PowerShell and Windows editors write them.

/// U+FEFF in UTF-8.
const UTF8: &[u8] = b"\xef\xbb\xbf";

/// The text without a UTF-8 byte order mark, which JSON readers may ignore (RFC 8259, section 8.1).
pub fn strip(text: &[u8]) -> &[u8] {
    text.strip_prefix(UTF8).unwrap_or(text)
}

/// What to do with a text in UTF-16.
pub const UTF16: &str = "the text is UTF-16, convert it with iconv -f UTF-16 -t UTF-8";

/// Whether the text starts with a UTF-16 byte order mark of either byte order.
pub fn is_utf16(text: &[u8]) -> bool {
    text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_mark_at_the_start_is_removed() {
        assert_eq!(strip(b"\xef\xbb\xbf{}"), b"{}");
        assert_eq!(strip(b"\xef\xbb\xbf"), b"");
        for other in [&b"{}"[..], b"", b"\xef\xbb", b"{\xef\xbb\xbf}", b"\xff\xfe{\0"] {
            assert_eq!(strip(other), other);
        }
        assert!(is_utf16(b"\xff\xfe{\0}\0") && is_utf16(b"\xfe\xff\0{") && !is_utf16(b"\xef\xbb\xbf{"));
    }
}
