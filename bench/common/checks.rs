//! Checks of option values. Every error is one line for the operator that names the option.

use std::net::{SocketAddr, ToSocketAddrs};

use tickcast_proto::units::{format_duration, format_size};

/// Checks that a count is within its bounds.
///
/// # Errors
/// The option, the value and the bounds.
pub fn within(option: &str, value: u64, lowest: u64, highest: u64) -> Result<(), String> {
    check_range(option, value, lowest, highest, |value| value.to_string())
}

/// Checks that a duration is within its bounds.
///
/// # Errors
/// The option, the value and the bounds, each with its unit.
pub fn duration_within(option: &str, ns: u64, lowest_ns: u64, highest_ns: u64) -> Result<(), String> {
    check_range(option, ns, lowest_ns, highest_ns, format_duration)
}

/// Checks that a size is within its bounds.
///
/// # Errors
/// The option, the value and the bounds, each with its unit.
pub fn size_within(option: &str, bytes: u64, lowest: u64, highest: u64) -> Result<(), String> {
    check_range(option, bytes, lowest, highest, format_size)
}

fn check_range(
    option: &str,
    value: u64,
    lowest: u64,
    highest: u64,
    show: impl Fn(u64) -> String,
) -> Result<(), String> {
    if (lowest..=highest).contains(&value) {
        return Ok(());
    }
    Err(format!("{option} {}: must be between {} and {}", show(value), show(lowest), show(highest)))
}

/// Resolves `--server HOST:PORT` to its first address.
///
/// # Errors
/// The resolver's, or that the name has no address.
pub fn resolve_server(host: &str) -> Result<SocketAddr, String> {
    let mut addresses =
        host.to_socket_addrs().map_err(|error| format!("--server {host}: {error}; expected HOST:PORT"))?;
    addresses.next().ok_or_else(|| format!("--server {host}: the name has no address"))
}

/// Checks that `--path` can go into an HTTP request line as it is.
///
/// # Errors
/// The path, and one that would do.
pub fn check_path(path: &str, example: &str) -> Result<(), String> {
    if path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err(format!("--path {path:?}: must begin with / and be percent-encoded, such as {example}"))
}
