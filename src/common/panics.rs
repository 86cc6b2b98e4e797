//! Messages of caught panics, and panics whose message nobody may see.

use std::{
    any::Any,
    cell::RefCell,
    panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind},
};

thread_local! {
    /// Where this thread has panicked, while it hides messages; empty: it has not.
    static HIDDEN: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Calls a function that works on secrets. If it panics, returns where: the message may quote a secret, so it is dropped. What the
/// function changes must be valid after a panic.
///
/// # Errors
/// The place in the source code; empty if [`hides`] is not part of the panic hook.
pub fn catch_hidden<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    HIDDEN.set(Some(String::new()));
    let result = catch_unwind(AssertUnwindSafe(call));
    let place = HIDDEN.take().unwrap_or_default();
    result.map_err(|_| place)
}

/// For the panic hook: returns whether this panic must not be printed.
pub fn hides(panic: &PanicHookInfo<'_>) -> bool {
    HIDDEN.with_borrow_mut(|hidden| {
        let place = panic.location().map_or(String::new(), |location| location.to_string());
        hidden.as_mut().map(|hidden| *hidden = place).is_some()
    })
}

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
    fn a_hidden_panic_ends_the_call_and_no_other() {
        assert_eq!(catch_hidden(|| 7), Ok(7));
        assert!(catch_hidden(|| panic!("a secret")).is_err_and(|place| !place.contains("secret")));
        assert_eq!(catch_hidden(|| 8), Ok(8));
        assert!(HIDDEN.with_borrow(Option::is_none), "panics are shown again");
    }

    #[test]
    fn a_message_is_what_panic_was_called_with() {
        let said = |panic: fn()| message(&*catch_unwind(panic).unwrap_err()).to_owned();
        assert_eq!(said(|| panic!("as it is")), "as it is");
        assert_eq!(said(|| panic!("number {}", 7)), "number 7");
        assert_eq!(said(|| panic_any(7)), "no message");
    }
}
