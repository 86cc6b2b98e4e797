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
    reload::{Change, LIVE},
};
use crate::{
    cli::{
        Cli, Command, ServeArgs,
        serve::{EcgOptions, ReplayOptions, SimulatorOptions, Tables},
    },
    error::Problem,
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
pub enum SourceTable {
    /// `kind = "simulator"`.
    Simulator(SimulatorOptions),
    /// `kind = "replay"`.
    Replay(ReplayOptions),
    /// `kind = "ecg"`.
    Ecg(EcgOptions),
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
            let is_live = path.split_once('.').is_some_and(|(_, key)| LIVE.contains(&key));
            Change { key: path.clone(), before: value(&was, path), after: value(&is, path), is_live }
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
                    _ => ["kind"]
                        .into_iter()
                        .chain(declared::of(kind).map(|declared| &*declared.key))
                        .collect(),
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
        let sources = self.sources(&mut problems)?;
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
        let sources: Result<_, _> = sources.iter().map(Item::source).collect();
        Ok(Settings {
            args: Box::new(self.args.clone()),
            tables,
            listeners: listeners.map_err(|error| inner(&error))?,
            sources: sources.map_err(|error| inner(&error))?,
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
    fn is_on(&self, id: &str, typed: bool) -> bool {
        typed || self.file.options.contains_key(id)
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
        if self.is_on("no_admin", flags.no_admin) {
            items.retain(|item| item.kind != Kind::Admin.name());
        }
        for item in &mut items {
            item.values.entry("transport").or_insert(Value::String("plain".into()));
        }
        items
    }

    /// The file's sources, and those that options ask for. Options change the first source of their kind.
    fn sources(&self, problems: &mut Vec<Problem>) -> Result<Vec<Item>, clap::Error> {
        let defaults = parse(&["tickcast", "serve"].map(OsString::from))?.0;
        let no_simulator = self.is_on("no_sim", self.args.no_sim);
        let sections = self.file.sources.as_deref().unwrap_or_default();
        let mut items: Vec<Item> =
            sections.iter().map(|section| Item::of(section, defaults_of(&section.kind, &defaults))).collect();
        for kind in ["replay", "simulator", "ecg"] {
            let given: Vec<(&Declared, Origin, Value)> = declared::of(kind)
                .filter_map(|declared| {
                    let (origin, entry) = self.origin(declared);
                    let value = match (&origin, entry) {
                        (Origin::Default(_), _) => return None,
                        (_, Some(entry)) => entry.value.clone(),
                        (_, None) => defaults_of(kind, self.args).get(&declared.key)?.clone(),
                    };
                    Some((declared, origin, value))
                })
                .collect();
            let has_none = !items.iter().any(|item| item.kind == kind);
            let names_it = given.iter().any(|(declared, ..)| ["file", "record"].contains(&&*declared.key));
            let is_wanted = match kind {
                "simulator" if no_simulator => false,
                "simulator" => !given.is_empty() || self.file.sources.is_none() && items.is_empty(),
                _ => names_it,
            };
            if has_none && is_wanted {
                items.push(Item::new(kind, defaults_of(kind, &defaults)));
            }
            let first = items.iter_mut().find(|item| item.kind == kind);
            match (first, given.first()) {
                (Some(item), _) => {
                    given
                        .into_iter()
                        .for_each(|(declared, origin, value)| item.set(&declared.key, value, origin));
                }
                (None, Some((declared, origin, _))) if kind != "simulator" => {
                    problems.push(self.without_source(kind, declared, origin));
                }
                _ => {}
            }
        }
        if no_simulator {
            items.retain(|item| item.kind != "simulator");
        }
        Ok(items)
    }

    /// An option of a source that there is not.
    fn without_source(&self, kind: &str, declared: &Declared, origin: &Origin) -> Problem {
        let text = format!("there is no {kind} source; add --{kind}, or a [[source]] with kind = \"{kind}\"");
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

/// A source's values where nothing else is said; empty for another kind.
fn defaults_of(kind: &str, args: &ServeArgs) -> Table {
    let table = match kind {
        "simulator" => Table::try_from(&args.simulator),
        "replay" => Table::try_from(&args.replay),
        "ecg" => Table::try_from(&args.ecg),
        _ => return Table::new(),
    };
    // Every type of an option has a form in a file.
    table.unwrap_or_default()
}

impl Item {
    fn new(kind: &str, mut values: Table) -> Item {
        values.insert("kind".into(), Value::String(kind.into()));
        Item { kind: kind.into(), values, origins: BTreeMap::new() }
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

    fn source(&self) -> Result<SourceTable, toml::de::Error> {
        let mut values = self.values.clone();
        values.remove("kind");
        match &*self.kind {
            "replay" => ReplayOptions::deserialize(values).map(SourceTable::Replay),
            "ecg" => EcgOptions::deserialize(values).map(SourceTable::Ecg),
            _ => SimulatorOptions::deserialize(values).map(SourceTable::Simulator),
        }
    }
}

#[cfg(test)]
mod tests;
