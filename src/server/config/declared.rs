//! The options that [`crate::cli::serve`] declares, read from clap. The file's keys and tables are derived from them.

use std::sync::OnceLock;

use clap::{ArgAction, Command, CommandFactory};

use crate::{cli::Cli, sources::kind::SourceKind};

/// Table of the options that set the listeners' addresses.
pub const LISTENER: &str = "listener";
/// Lowest similarity (Jaro-Winkler, 0 to 1) at which a known name is suggested for an unknown one.
const ALIKE_LOWEST: f64 = 0.75;

/// One option of `tickcast serve` that a file may set.
#[derive(Clone, Debug)]
pub struct Declared {
    /// Name of its field in the code.
    pub id: String,
    /// Table in the file, or kind of source; empty if it has neither.
    pub table: String,
    /// Key in that table.
    pub key: String,
    /// Flag, without the leading dashes.
    pub flag: String,
    /// Old spellings of the flag.
    pub aliases: Vec<String>,
    /// Environment variable.
    pub env: Option<String>,
    /// Whether it takes no value.
    pub is_switch: bool,
    /// Placeholder of its value in `--help`.
    pub placeholder: String,
}

impl Declared {
    /// Whether it is an option of a kind of source.
    pub fn is_of_source(&self) -> bool {
        SourceKind::named(&self.table).is_some()
    }

    /// Whether it belongs to a table such as `[limits]`.
    pub fn is_of_table(&self) -> bool {
        !self.table.is_empty() && self.table != LISTENER && !self.is_of_source()
    }

    /// Path of its value in the file: `limits.frame_max`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.table, self.key)
    }

    /// The flag or alias that a flat key of 0.1 spells with `_`; `None` if there is none.
    pub fn flat_spelling(&self, key: &str) -> Option<&str> {
        let spellings = self.aliases.iter().chain([&self.flag]);
        spellings.map(String::as_str).find(|spelling| spelling.replace('-', "_") == key)
    }
}

/// All options, in the order of `--help`.
pub fn all() -> &'static [Declared] {
    static ALL: OnceLock<Vec<Declared>> = OnceLock::new();
    ALL.get_or_init(|| {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").cloned().unwrap_or_default();
        serve.get_arguments().filter_map(|arg| declared(&serve, arg)).collect()
    })
}

/// The options of one table or kind of source.
pub fn of(table: &str) -> impl Iterator<Item = &'static Declared> {
    all().iter().filter(move |declared| declared.table == table)
}

/// Names of the tables, such as `limits`.
pub fn tables() -> Vec<&'static str> {
    let mut tables: Vec<&str> = Vec::new();
    for declared in all().iter().filter(|declared| declared.is_of_table()) {
        if !tables.contains(&&*declared.table) {
            tables.push(&declared.table);
        }
    }
    tables
}

/// The known name most similar to this one; `None` if none is similar enough.
pub fn suggestion<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.replace('-', "_");
    let alike = known.map(|known| (strsim::jaro_winkler(&name, known), known));
    let alike = alike.filter(|(alike, _)| *alike >= ALIKE_LOWEST);
    alike.max_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, known)| known)
}

fn declared(serve: &Command, arg: &clap::Arg) -> Option<Declared> {
    let id = arg.get_id().as_str();
    let flag = arg.get_long()?;
    if ["config", "check_config", "print_config", "help", "version"].contains(&id) {
        return None;
    }
    let group = serve.get_groups().find(|group| group.get_args().any(|has| has == arg.get_id()));
    let table = group.map_or(String::new(), |group| group.get_id().to_string());
    let prefix = SourceKind::named(&table).and_then(|kind| kind.flags).map_or("", |flags| flags.prefix);
    let names = arg.get_value_names().unwrap_or_default();
    Some(Declared {
        key: id.strip_prefix(prefix).unwrap_or(id).to_owned(),
        table,
        id: id.to_owned(),
        flag: flag.to_owned(),
        aliases: arg.get_all_aliases().unwrap_or_default().into_iter().map(str::to_owned).collect(),
        env: arg.get_env().map(|name| name.to_string_lossy().into_owned()),
        is_switch: matches!(arg.get_action(), ArgAction::SetTrue),
        placeholder: names.first().map(ToString::to_string).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::serve::LIVE, sources::KINDS};

    #[test]
    fn every_option_has_a_place_in_a_file_and_live_options_exist() {
        assert_eq!(tables(), ["server", "limits", "delivery", "timeouts", "web", "debug"]);
        let homeless: Vec<&str> =
            all().iter().filter(|declared| declared.table.is_empty()).map(|declared| &*declared.id).collect();
        assert_eq!(homeless, ["no_sim"]);
        assert_eq!(of(LISTENER).count(), 4);
        for kind in KINDS {
            let is_key = |declared: &Declared| kind.keys().contains(&&*declared.key);
            assert!(of(kind.name).all(is_key), "{kind:?}: a flag is a key, behind the prefix");
            assert_eq!(
                of(kind.name).next().is_some(),
                kind.flags.is_some(),
                "{kind:?}: the group is the kind"
            );
        }
        for live in LIVE {
            assert!(all().iter().any(|declared| declared.is_of_table() && declared.key == live), "{live}");
        }
        let flags: Vec<&str> = all().iter().map(|declared| &*declared.flag).collect();
        for old in ["-ms", "-us", "-bytes", "-bytes-max"] {
            assert!(!flags.iter().any(|flag| flag.ends_with(old)), "{old}: {flags:?}");
        }
    }

    #[test]
    fn old_names_are_found_and_alike_names_suggested() {
        let behind = all().iter().find(|declared| declared.id == "behind_time").unwrap();
        assert_eq!(behind.flat_spelling("behind_ms"), Some("behind-ms"));
        assert_eq!(behind.flat_spelling("behind_time"), Some("behind-time"));
        assert_eq!(suggestion("behind-tim", ["behind_time", "report"].into_iter()), Some("behind_time"));
        assert_eq!(suggestion("xyzzy", ["behind_time", "report"].into_iter()), None);
    }
}
