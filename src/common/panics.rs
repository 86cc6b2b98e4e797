//! Messages of caught panics.

use std::any::Any;

/// The message of a panic, for the log. The panic hook has also printed it, with its location.
pub fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::panic::{catch_unwind, panic_any};

    use super::*;

    #[test]
    fn a_message_is_what_panic_was_called_with() {
        let said = |panic: fn()| message(&*catch_unwind(panic).unwrap_err()).to_owned();
        assert_eq!(said(|| panic!("as it is")), "as it is");
        assert_eq!(said(|| panic!("number {}", 7)), "number 7");
        assert_eq!(said(|| panic_any(7)), "no message");
    }
}
