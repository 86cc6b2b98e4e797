//! The effective options: command line, environment, file and defaults, in this order of precedence, and where each value
//! comes from.

use std::{collections::BTreeMap, ffi::OsString, fmt::Write, path::PathBuf};

use clap::{ArgMatches, error::ErrorKind, parser::ValueSource};
use serde::Deserialize;
use toml::{Table, Value};

use super::{
    declared::{self, Declared, LISTENER},
    file::{Entry, File, Section},
    listener::{Address, Kind, ListenerTable},
    reload::{self, Change},
};
use crate::{
    cli::{Cli, Command, ServeArgs, serve::Tables},
    error::Problem,
    sources::{
        KINDS,
        kind::{SourceKind, Starts},
    },
};

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it. The flag that would.
    Default(String),
    /// This flag.
    CommandLine(String),
    /// This variable.
    Environment(String),
    /// A line of the file, and the key as it stands there.
    File(usize, String),
}

/// A listener or source: its values by key, and where each comes from.
#[derive(Clone, Debug, PartialEq)]
struct Item {
    kind: String,
    values: Table,
    origins: BTreeMap<String, Origin>,
}

/// A `[[source]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceTable {
    /// Its kind.
    pub kind: &'static SourceKind,
    /// All its options, set or default.
    pub options: Table,
}

/// The options of `tickcast serve`, and where each comes from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The command line.
    pub args: Box<ServeArgs>,
    /// The tables of a file.
    pub tables: Tables,
    /// `[[listener]]`.
    pub listeners: Vec<ListenerTable>,
    /// `[[source]]`.
    pub sources: Vec<SourceTable>,
    /// What is wrong with single values: the server must not start.
    pub problems: Vec<Problem>,
    /// Flags of the options whose values are wrong, and have their defaults here; `listener` or `source` where one of them is
    /// left out for it.
    pub broken: Vec<String>,
    /// Keys of 0.1 in the file, each with its new place.
    pub warnings: Vec<String>,
    file: Option<PathBuf>,
    /// All values, as a file has them.
    tree: Table,
    /// By path: `limits.frame_max`, `listener[0].address`.
    origins: BTreeMap<String, Origin>,
}

impl Settings {
    /// Reads the command line and the environment, and the file that they name, if any.
    ///
    /// # Errors
    /// Clap's, for words that it refuses. Problems in the file are in the settings.
    pub fn read(words: &[OsString]) -> Result<Settings, clap::Error> {
        let (args, matches) = parse(words)?;
        let file = match &args.config {
            Some(path) => File::read(path, &parse(&["tickcast", "serve"].map(OsString::from))?.0),
            None => File::default(),
        };
        Layers { args: &args, matches: &matches, file: &file }.settings()
    }

    /// Whether a file was read, which may say something else later.
    pub fn have_a_file(&self) -> bool {
        self.file.is_some()
    }

    /// What is wrong with the value at a path, named as the operator gave it.
    pub fn problem(&self, path: &str, text: String) -> Problem {
        match self.origins.get(path) {
            Some(Origin::File(line, named)) => {
                Problem { file: self.file.clone(), line: Some(*line), named: named.clone(), text }
            }
            Some(Origin::Default(name) | Origin::CommandLine(name) | Origin::Environment(name)) => {
                Problem { file: None, line: None, named: name.clone(), text }
            }
            None => Problem { file: None, line: None, named: path.to_owned(), text },
        }
    }

    /// How errors name a listener: by the option that set its address, or by its place in the file.
    pub fn name_of_listener(&self, at: usize) -> String {
        match (self.origins.get(&format!("listener[{at}].address")), &self.file) {
            (Some(Origin::File(line, _)), Some(path)) => format!("{}, line {line}", path.display()),
            (Some(Origin::Default(name) | Origin::CommandLine(name) | Origin::Environment(name)), _) => {
                name.clone()
            }
            _ => format!("listener {at}"),
        }
    }

    /// What is another than before.
    pub fn changes_since(&self, before: &Settings) -> Vec<Change> {
        let (was, is) = (flattened(&before.tree), flattened(&self.tree));
        let mut paths: Vec<&String> = is.keys().chain(was.keys()).collect();
        paths.sort_unstable();
        paths.dedup();
        let value = |of: &BTreeMap<String, String>, path: &str| of.get(path).cloned().unwrap_or_default();
        let changes = paths.into_iter().map(|path| {
            let (before, after) = (value(&was, path), value(&is, path));
            Change { key: path.clone(), before, after, is_live: reload::is_live(path) }
        });
        changes.filter(|change| change.before != change.after).collect()
    }

    /// Every option as it is used, as a file, with where it comes from. Defaults are comments, but for listeners and sources:
    /// a file that lists one lists all.
    pub fn to_toml(&self) -> String {
        let mut text = String::from("# tickcast serve: the effective configuration\n");
        if self.sources.is_empty() {
            text.push_str("\nsource = []\n");
        }
        for list in [LISTENER, "source"] {
            let items = self.tree.get(list).and_then(Value::as_array).into_iter().flatten();
            for (at, item) in items.enumerate() {
                let _ = writeln!(text, "\n[[{list}]]");
                let kind = item.get("kind").and_then(Value::as_str).unwrap_or_default();
                let keys: Vec<&str> = match list {
                    LISTENER => ListenerTable::KEYS.to_vec(),
                    _ => {
                        let keys = SourceKind::named(kind).map_or(&[][..], SourceKind::keys);
                        ["kind"].iter().chain(keys).copied().collect()
                    }
                };
                for key in keys {
                    let origin = self.origins.get(&format!("{list}[{at}].{key}"));
                    line_of(&mut text, key, item.get(key), origin, key == "kind" || key == "address");
                }
            }
        }
        for table in declared::tables() {
            let _ = writeln!(text, "\n[{table}]");
            for declared in declared::of(table) {
                let value = self.tree.get(table).and_then(|table| table.get(&declared.key));
                line_of(&mut text, &declared.key, value, self.origins.get(&declared.path()), false);
            }
        }
        text
    }
}

/// Appends `key = value # where it comes from`.
fn line_of(text: &mut String, key: &str, value: Option<&Value>, origin: Option<&Origin>, always: bool) {
    let (mark, from) = match origin {
        None | Some(Origin::Default(_)) if always => ("", "default".to_owned()),
        None | Some(Origin::Default(_)) => ("# ", "default".to_owned()),
        Some(Origin::CommandLine(flag)) => ("", flag.clone()),
        Some(Origin::Environment(name)) => ("", name.clone()),
        Some(Origin::File(line, _)) => ("", format!("line {line}")),
    };
    let _ = match value {
        Some(value) => writeln!(text, "{mark}{key} = {value} # {from}"),
        None => writeln!(text, "# {key} = # not set"),
    };
}

/// Values by their paths, lists of values as one text.
fn flattened(tree: &Table) -> BTreeMap<String, String> {
    let mut flat = BTreeMap::new();
    let plain = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => {
            let texts = values.iter().map(|value| value.as_str().map_or(value.to_string(), str::to_owned));
            texts.collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    };
    for (name, value) in tree {
        let tables: Vec<(String, &Table)> = match value {
            Value::Table(table) => vec![(name.clone(), table)],
            Value::Array(items) => {
                let tables = items.iter().filter_map(Value::as_table).enumerate();
                tables.map(|(at, table)| (format!("{name}[{at}]"), table)).collect()
            }
            _ => Vec::new(),
        };
        for (path, table) in tables {
            flat.extend(table.iter().map(|(key, value)| (format!("{path}.{key}"), plain(value))));
        }
    }
    flat
}

fn parse(words: &[OsString]) -> Result<(Box<ServeArgs>, ArgMatches), clap::Error> {
    let (cli, matches) = Cli::read(words.iter().cloned())?;
    let wrong = || clap::Error::new(ErrorKind::InvalidSubcommand);
    match cli.command {
        Command::Serve(args) => Ok((args, matches.subcommand_matches("serve").cloned().ok_or_else(wrong)?)),
        _ => Err(wrong()),
    }
}

/// What the settings are made of.
struct Layers<'a> {
    args: &'a ServeArgs,
    matches: &'a ArgMatches,
    file: &'a File,
}

impl Layers<'_> {
    fn settings(self) -> Result<Settings, clap::Error> {
        let inner = |error: &dyn std::fmt::Display| clap::Error::raw(ErrorKind::Io, format!("{error}\n"));
        let mut problems = self.file.problems.clone();
        let (mut tree, mut origins) = (Table::new(), BTreeMap::new());
        for (name, mut table) in Table::try_from(&self.args.tables).map_err(|error| inner(&error))? {
            for declared in declared::of(&name) {
                let (origin, from_file) = self.origin(declared);
                origins.insert(declared.path(), origin);
                if let (Some(entry), Some(table)) = (from_file, table.as_table_mut()) {
                    table.insert(declared.key.clone(), entry.value.clone());
                }
            }
            tree.insert(name, table);
        }
        let tables = Tables::deserialize(tree.clone()).map_err(|error| inner(&error))?;
        let listeners = self.listeners();
        let sources = self.sources(&mut problems);
        for (list, items) in [(LISTENER, &listeners), ("source", &sources)] {
            for (at, item) in items.iter().enumerate() {
                let of_item =
                    item.origins.iter().map(|(key, origin)| (format!("{list}[{at}].{key}"), origin.clone()));
                origins.extend(of_item);
            }
            let values = items.iter().map(|item| Value::Table(item.values.clone())).collect();
            tree.insert(list.to_owned(), Value::Array(values));
        }
        let typed = |item: &Item| ListenerTable::deserialize(item.values.clone());
        let listeners: Result<_, _> = listeners.iter().map(typed).collect();
        Ok(Settings {
            args: Box::new(self.args.clone()),
            tables,
            listeners: listeners.map_err(|error| inner(&error))?,
            sources: sources.iter().filter_map(Item::source).collect(),
            problems,
            broken: self.file.broken.clone(),
            warnings: self.file.warnings.clone(),
            file: (!self.file.path.as_os_str().is_empty()).then(|| self.file.path.clone()),
            tree,
            origins,
        })
    }

    /// Where an option comes from, and what the file has of it if that is used.
    fn origin(&self, declared: &Declared) -> (Origin, Option<&Entry>) {
        let flag = format!("--{}", declared.flag);
        match (self.matches.value_source(&declared.id), self.file.options.get(&declared.id)) {
            (Some(ValueSource::CommandLine), _) => (Origin::CommandLine(flag), None),
            (Some(ValueSource::EnvVariable), _) => {
                (Origin::Environment(declared.env.clone().unwrap_or(flag)), None)
            }
            (_, Some(entry)) => (Origin::File(entry.line, entry.named.clone()), Some(entry)),
            _ => (Origin::Default(flag), None),
        }
    }

    /// Whether a switch is on that has no table, by the command line or a flat key.
    fn is_on(&self, id: &str) -> bool {
        let typed = self.matches.try_get_one::<bool>(id).ok().flatten();
        typed == Some(&true) || self.file.options.contains_key(id)
    }

    /// The file's listeners, or one of each kind; the options for addresses change the first of their kind.
    fn listeners(&self) -> Vec<Item> {
        let mut items: Vec<Item> = match &self.file.listeners {
            Some(sections) => sections.iter().map(|section| Item::of(section, Table::new())).collect(),
            None => Vec::new(),
        };
        let flags = &self.args.listeners;
        for (kind, address) in Kind::ALL.into_iter().zip([&flags.tcp, &flags.http, &flags.admin]) {
            let Some(declared) = declared::of(LISTENER).find(|declared| declared.flag == kind.option())
            else {
                continue;
            };
            let (origin, entry) = self.origin(declared);
            let is_default = matches!(origin, Origin::Default(_));
            if is_default && self.file.listeners.is_some() {
                continue;
            }
            let address =
                entry.map_or_else(|| Value::String(address.to_string()), |entry| entry.value.clone());
            let first = items.iter().position(|item| item.kind == kind.name());
            let at = first.unwrap_or_else(|| {
                items.push(Item::new(kind.name(), Table::new()));
                items.len() - 1
            });
            // What was set for the address in the file may not suit the new one.
            let moot = match address.as_str().is_some_and(is_unix) {
                true => &["socket_send_buffer", "notsent_lowat"][..],
                false => &["mode"],
            };
            moot.iter().for_each(|key| items[at].remove(key));
            items[at].set("address", address, origin);
        }
        if self.is_on("no_admin") {
            items.retain(|item| item.kind != Kind::Admin.name());
        }
        for item in &mut items {
            item.values.entry("transport").or_insert(Value::String("plain".into()));
        }
        items
    }

    /// The file's sources, and those that flags ask for. Flags change the first source of their kind.
    fn sources(&self, problems: &mut Vec<Problem>) -> Vec<Item> {
        let sections = self.file.sources.as_deref().unwrap_or_default();
        let mut items: Vec<Item> = sections.iter().map(Item::of_source).collect();
        let with_flags = KINDS.iter().filter_map(|kind| Some((kind, kind.flags?.starts)));
        // What runs instead of the default source comes before it.
        let (first, others): (Vec<_>, Vec<_>) =
            with_flags.partition(|(_, starts)| *starts == Starts::Instead);
        for (kind, starts) in first.into_iter().chain(others) {
            let given = self.given(kind);
            let is_asked_for = given.iter().any(|(declared, ..)| kind.required.contains(&&*declared.key));
            let is_off = kind.off_switch().is_some_and(|switch| self.is_on(switch));
            let is_wanted = match starts {
                Starts::ByDefault { .. } => {
                    !is_off && (!given.is_empty() || self.file.sources.is_none() && items.is_empty())
                }
                Starts::Instead | Starts::Beside => is_asked_for,
            };
            if is_wanted && !items.iter().any(|item| item.kind == kind.name) {
                items.push(Item::new(kind.name, kind.defaults()));
            }
            match (items.iter_mut().find(|item| item.kind == kind.name), given.first()) {
                (Some(item), _) => {
                    given
                        .into_iter()
                        .for_each(|(declared, origin, value)| item.set(&declared.key, value, origin));
                }
                (None, Some((declared, origin, _))) if !is_off => {
                    problems.push(self.without_source(kind, declared, origin));
                }
                _ => {}
            }
            if is_off {
                items.retain(|item| item.kind != kind.name);
            }
        }
        items
    }

    /// The options of a kind that were given by flag, variable or flat key.
    fn given(&self, kind: &SourceKind) -> Vec<(&'static Declared, Origin, Value)> {
        let typed = self.args.sources.of(kind);
        let given = |declared: &'static Declared| {
            let (origin, entry) = self.origin(declared);
            let value = match (&origin, entry) {
                (Origin::Default(_), _) => return None,
                (_, Some(entry)) => entry.value.clone(),
                (_, None) => typed?.get(&declared.key)?.clone(),
            };
            Some((declared, origin, value))
        };
        declared::of(kind.name).filter_map(given).collect()
    }

    /// An option of a source that there is not.
    fn without_source(&self, kind: &SourceKind, declared: &Declared, origin: &Origin) -> Problem {
        let asks = declared::of(kind.name).find(|declared| kind.required.first() == Some(&&*declared.key));
        let (name, asks) =
            (kind.name, asks.map_or(String::new(), |asks| format!("add --{}, or ", asks.flag)));
        let text = format!("there is no {name} source; {asks}a [[source]] with kind = \"{name}\"");
        match origin {
            Origin::File(line, named) => {
                Problem { file: Some(self.file.path.clone()), line: Some(*line), named: named.clone(), text }
            }
            _ => Problem { file: None, line: None, named: format!("--{}", declared.flag), text },
        }
    }
}

fn is_unix(address: &str) -> bool {
    address.parse::<Address>().is_ok_and(|address| address.tcp().is_none())
}

impl Item {
    fn new(kind: &str, mut values: Table) -> Item {
        values.insert("kind".into(), Value::String(kind.into()));
        Item { kind: kind.into(), values, origins: BTreeMap::new() }
    }

    fn of_source(section: &Section) -> Item {
        Item::of(section, SourceKind::named(&section.kind).map_or_else(Table::new, SourceKind::defaults))
    }

    fn of(section: &Section, defaults: Table) -> Item {
        let mut item = Item::new(&section.kind, defaults);
        item.origins.insert("kind".into(), Origin::File(section.line, "kind".into()));
        for (key, entry) in &section.entries {
            item.set(key, entry.value.clone(), Origin::File(entry.line, entry.named.clone()));
        }
        item
    }

    fn set(&mut self, key: &str, value: Value, origin: Origin) {
        self.values.insert(key.into(), value);
        self.origins.insert(key.into(), origin);
    }

    fn remove(&mut self, key: &str) {
        self.values.remove(key);
        self.origins.remove(key);
    }

    /// `None` for a kind that there is not, which reading the file has refused.
    fn source(&self) -> Option<SourceTable> {
        let mut options = self.values.clone();
        options.remove("kind");
        Some(SourceTable { kind: SourceKind::named(&self.kind)?, options })
    }
}

#[cfg(test)]
mod tests;
