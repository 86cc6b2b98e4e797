//! Option names of 0.1 that end in a unit. A bare number after such a name is in that unit.

use std::ffi::OsString;

use clap::CommandFactory;

use super::Cli;

/// The unit at the end of an old option name. `None` for sizes: a bare number is bytes whatever the name.
pub fn unit_of(name: &str) -> Option<&'static str> {
    ["ms", "us"].into_iter().find(|unit| {
        let rest = name.strip_suffix(unit);
        rest.is_some_and(|rest| rest.ends_with(['-', '_']))
    })
}

/// Appends the unit to a bare number; returns any other text unchanged.
pub fn with_unit(number: &str, unit: &str) -> String {
    let is_bare = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if is_bare { format!("{number}{unit}") } else { number.to_owned() }
}

/// Adds units to the values of old names: `--behind-ms 500` becomes `--behind-ms 500ms`, which clap reads as
/// `--behind-time 500ms`.
pub fn words(typed: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let old = old_names();
    let unit = |name: &str| old.iter().find(|has| *has == name).and_then(|name| unit_of(name));
    let mut words = Vec::new();
    // The unit for the next word if it is the value of an old name.
    let mut waits = None;
    for word in typed {
        let Some(text) = word.to_str() else {
            words.push(word);
            waits = None;
            continue;
        };
        if let Some(unit) = waits.take() {
            words.push(with_unit(text, unit).into());
            continue;
        }
        let name = text.strip_prefix("--").unwrap_or_default();
        match name.split_once('=') {
            Some((name, value)) => match unit(name) {
                Some(unit) => words.push(format!("--{name}={}", with_unit(value, unit)).into()),
                None => words.push(word),
            },
            None => {
                waits = unit(name);
                words.push(word);
            }
        }
    }
    words
}

/// All aliases, of any subcommand, that end in a unit.
fn old_names() -> Vec<String> {
    let command = Cli::command();
    let arguments = command.get_subcommands().flat_map(|subcommand| subcommand.get_arguments());
    let aliases = arguments.flat_map(|arg| arg.get_all_aliases().unwrap_or_default());
    aliases.filter(|alias| unit_of(alias).is_some()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_number_after_an_old_name_gets_the_units_of_the_name() {
        let read = |typed: &str| {
            let words = words(typed.split_whitespace().map(OsString::from));
            words.iter().map(|word| word.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
        };
        for (typed, expected) in [
            ("serve --behind-ms 500", "serve --behind-ms 500ms"),
            ("serve --spin-us=20 --shards 2", "serve --spin-us=20us --shards 2"),
            ("serve --latency-budget-us 1ms", "serve --latency-budget-us 1ms"),
            ("serve --behind-time 500 --outbox-bytes-max 7", "serve --behind-time 500 --outbox-bytes-max 7"),
            ("serve --ping-interval-ms", "serve --ping-interval-ms"),
        ] {
            assert_eq!(read(typed), expected);
        }
    }
}
