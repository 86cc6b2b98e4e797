//! The effective options and the origin of each value. Precedence: command line, environment, file, defaults.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::Write,
    path::{Path, PathBuf},
};

use clap::{ArgMatches, error::ErrorKind, parser::ValueSource};
use serde::Deserialize;
use toml::{Table, Value};

use super::{
    auth::{self, AUTH, AuthSection, AuthTables},
    declared::{self, Declared, LISTENER},
    file::{Entry, File, Section},
    listener::{Address, Kind, ListenerTable},
    reload::{self, Change},
    sink::{self, ROUTE, RouteTable, SINK, SinkTable},
    tenant::{self, TENANT, TenantTable},
};
use crate::{
    cli::{Cli, Command, ServeArgs, serve::Tables},
    error::Problem,
    sources::{
        KINDS,
        common::CommonOptions,
        kind::{SourceKind, Starts},
        sink::kind::SinkKind,
    },
};

/// Origin of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Not set; the flag that would set it.
    Default(String),
    /// Set by this flag.
    CommandLine(String),
    /// Set by this environment variable.
    Environment(String),
    /// Set in the file: line and key, as written there.
    File(usize, String),
}

/// A listener, source or sink: its values and their origins, by key.
#[derive(Clone, Debug, PartialEq)]
struct Item {
    kind: String,
    values: Table,
    origins: BTreeMap<String, Origin>,
}

/// The effective options of a source.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceTable {
    /// Its kind.
    pub kind: &'static SourceKind,
    /// All of its options, whether set or default.
    pub options: Table,
    /// Tenant of its topics; `None`: the default.
    pub tenant: Option<String>,
    /// Keys that every kind has.
    pub common: CommonOptions,
}

/// The effective options of `tickcast serve`, with their origins.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Options of the command line.
    pub args: Box<ServeArgs>,
    /// Effective options of the tables.
    pub tables: Tables,
    /// Effective listeners.
    pub listeners: Vec<ListenerTable>,
    /// Effective sources.
    pub sources: Vec<SourceTable>,
    /// Effective sinks.
    pub sinks: Vec<SinkTable>,
    /// The `[[route]]` tables.
    pub routes: Vec<RouteTable>,
    /// `[auth]`.
    pub auth: Option<AuthTables>,
    /// The `[[tenant]]` tables.
    pub tenants: Vec<TenantTable>,
    /// Invalid values, each checked on its own. If there are any, the server must not start.
    pub problems: Vec<Problem>,
    /// Flags of the options with an invalid value, which have their defaults here; also `listener`, `source`, `sink` or `auth` if a part
    /// of them was left out because of an error.
    pub broken: Vec<String>,
    /// One warning per key of 0.1 in the file, with its new place.
    pub warnings: Vec<String>,
    file: Option<PathBuf>,
    /// `[auth]` from the file.
    auth_section: Option<AuthSection>,
    /// The `[[tenant]]` tables as the file has them.
    tenant_section: Option<AuthSection>,
    /// The `[[route]]` tables as the file has them.
    route_section: Option<AuthSection>,
    /// All effective values, laid out as in a file.
    tree: Table,
    /// Origins by path: `limits.frame_max`, `listener[0].address`.
    origins: BTreeMap<String, Origin>,
}

impl Settings {
    /// Reads the command line, the environment, and the configuration file if they name one.
    ///
    /// # Errors
    /// Clap's error for an invalid command line. Errors in the file go to [`Settings::problems`].
    pub fn read(words: &[OsString]) -> Result<Settings, clap::Error> {
        let (args, matches) = parse(words)?;
        let file = match &args.config {
            Some(path) => File::read(path, &parse(&["tickcast", "serve"].map(OsString::from))?.0),
            None => File::default(),
        };
        Layers { args: &args, matches: &matches, file: &file }.settings()
    }

    /// The configuration file, if there is one.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Whether a file was read, so that a reload may find changes.
    pub fn have_a_file(&self) -> bool {
        self.file.is_some()
    }

    /// An error about the value at a path. Names the option as the operator wrote it.
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

    /// Name of a listener in errors: the option that set its address, or its line in the file.
    pub fn name_of_listener(&self, at: usize) -> String {
        match (self.origins.get(&format!("listener[{at}].address")), &self.file) {
            (Some(Origin::File(line, _)), Some(path)) => format!("{}, line {line}", path.display()),
            (Some(Origin::Default(name) | Origin::CommandLine(name) | Origin::Environment(name)), _) => {
                name.clone()
            }
            _ => format!("listener {at}"),
        }
    }

    /// The options whose values differ from `before`.
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

    /// The effective configuration as a file, with the origin of each value. Defaults are commented out, except in listeners
    /// and sources: a file that lists one must list all.
    pub fn to_toml(&self) -> String {
        let mut text = String::from("# tickcast serve: the effective configuration\n");
        if self.sources.is_empty() {
            text.push_str("\nsource = []\n");
        }
        for list in [LISTENER, "source", SINK] {
            let items = self.tree.get(list).and_then(Value::as_array).into_iter().flatten();
            for (at, item) in items.enumerate() {
                let _ = writeln!(text, "\n[[{list}]]");
                let kind = item.get("kind").and_then(Value::as_str).unwrap_or_default();
                let keys: Vec<&str> = match list {
                    LISTENER => ListenerTable::KEYS.to_vec(),
                    SINK => {
                        let keys = SinkKind::named(kind).into_iter().flat_map(SinkKind::keys);
                        ["kind"].into_iter().chain(keys).collect()
                    }
                    _ => {
                        let keys = SourceKind::named(kind).map_or(&[][..], SourceKind::keys);
                        let common = CommonOptions::keys().iter().copied().chain([TENANT]);
                        ["kind"].iter().chain(keys).copied().chain(common).collect()
                    }
                };
                for key in keys {
                    let origin = self.origins.get(&format!("{list}[{at}].{key}"));
                    line_of(&mut text, key, item.get(key), origin, key == "kind" || key == "address");
                }
            }
        }
        if let Some(section) = &self.route_section {
            auth::write_tables(&mut text, ROUTE, ROUTE, sink::tables_of(section).iter(), section);
        }
        if let Some(section) = &self.tenant_section {
            auth::write_tables(&mut text, TENANT, TENANT, tenant::tables_of(section).iter(), section);
        }
        if let Some(section) = &self.auth_section {
            auth::write_toml(&mut text, section);
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

/// Appends `key = value # origin`.
fn line_of(text: &mut String, key: &str, value: Option<&Value>, origin: Option<&Origin>, always: bool) {
    let (prefix, from) = match origin {
        None | Some(Origin::Default(_)) if always => ("", "default".to_owned()),
        None | Some(Origin::Default(_)) => ("# ", "default".to_owned()),
        Some(Origin::CommandLine(flag)) => ("", flag.clone()),
        Some(Origin::Environment(name)) => ("", name.clone()),
        Some(Origin::File(line, _)) => ("", format!("line {line}")),
    };
    let _ = match value {
        Some(value) => writeln!(text, "{prefix}{key} = {value} # {from}"),
        None => writeln!(text, "# {key} = # not set"),
    };
}

/// Values by path. A list becomes one text.
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

/// The inputs of the settings.
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
        let sinks: Vec<Item> = self.file.sinks.iter().map(Item::of_sink).collect();
        for (list, items) in [(LISTENER, &listeners), ("source", &sources), (SINK, &sinks)] {
            for (at, item) in items.iter().enumerate() {
                let of_item =
                    item.origins.iter().map(|(key, origin)| (format!("{list}[{at}].{key}"), origin.clone()));
                origins.extend(of_item);
            }
            let values = items.iter().map(|item| Value::Table(item.values.clone())).collect();
            tree.insert(list.to_owned(), Value::Array(values));
        }
        let auth = self.file.auth.as_ref().map(|section| {
            let places = section
                .places
                .iter()
                .map(|(path, (line, named))| (path.clone(), Origin::File(*line, named.clone())));
            origins.extend(places);
            tree.insert(AUTH.to_owned(), auth::shown(&section.values).into());
            AuthTables::deserialize(section.values.clone())
        });
        let mut tables_of = |section: &Option<AuthSection>, of: fn(&AuthSection) -> Vec<Table>| {
            section.as_ref().map_or_else(Vec::new, |section| {
                let places = section.places.iter();
                origins.extend(
                    places.map(|(path, (line, named))| (path.clone(), Origin::File(*line, named.clone()))),
                );
                tree.extend(section.values.clone());
                of(section)
            })
        };
        let tenants = tables_of(&self.file.tenants, tenant::tables_of);
        let routes = tables_of(&self.file.routes, sink::tables_of);
        let routes: Result<Vec<RouteTable>, _> = routes.into_iter().map(RouteTable::deserialize).collect();
        let tenants: Result<Vec<TenantTable>, _> =
            tenants.into_iter().map(TenantTable::deserialize).collect();
        let typed = |item: &Item| ListenerTable::deserialize(item.values.clone());
        let listeners: Result<_, _> = listeners.iter().map(typed).collect();
        Ok(Settings {
            args: Box::new(self.args.clone()),
            tables,
            listeners: listeners.map_err(|error| inner(&error))?,
            sources: sources.iter().filter_map(Item::source).collect(),
            sinks: sinks.iter().filter_map(Item::sink).collect(),
            routes: routes.map_err(|error| inner(&error))?,
            auth: auth.transpose().map_err(|error| inner(&error))?,
            tenants: tenants.map_err(|error| inner(&error))?,
            problems,
            broken: self.file.broken.clone(),
            warnings: self.file.warnings.clone(),
            file: (!self.file.path.as_os_str().is_empty()).then(|| self.file.path.clone()),
            auth_section: self.file.auth.clone(),
            tenant_section: self.file.tenants.clone(),
            route_section: self.file.routes.clone(),
            tree,
            origins,
        })
    }

    /// Origin of an option, and its entry in the file if that is the origin.
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

    /// Whether the command line or a flat key sets a switch that has no table.
    fn is_on(&self, id: &str) -> bool {
        let typed = self.matches.try_get_one::<bool>(id).ok().flatten();
        typed == Some(&true) || self.file.options.contains_key(id)
    }

    /// The listeners in the file, or one of each kind. The address options change the first of their kind.
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
            // Options that the file sets for its address may be invalid for the new one.
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
            let transport = if item.values.contains_key("tls") { "tls" } else { "plain" };
            item.values.entry("transport").or_insert(Value::String(transport.into()));
        }
        items
    }

    /// The sources in the file and those that flags add. Flags change the first source of their kind.
    fn sources(&self, problems: &mut Vec<Problem>) -> Vec<Item> {
        let sections = self.file.sources.as_deref().unwrap_or_default();
        let mut items: Vec<Item> = sections.iter().map(Item::of_source).collect();
        let with_flags = KINDS.iter().filter_map(|kind| Some((kind, kind.flags?.starts)));
        // Sources that replace the default one are added before it.
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

    /// The options of a kind that a flag, a variable or a flat key sets.
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

    /// The error for an option of a source that does not exist.
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

    fn of_sink(section: &Section) -> Item {
        Item::of(section, SinkKind::named(&section.kind).map_or_else(Table::new, SinkKind::defaults))
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

    /// The source's options; `None` for an unknown kind, which reading the file refused.
    fn source(&self) -> Option<SourceTable> {
        let mut options = self.values.clone();
        options.remove("kind");
        let tenant = options.remove(TENANT).and_then(|name| name.as_str().map(str::to_owned));
        let common: Table = CommonOptions::keys()
            .iter()
            .filter_map(|key| Some(((*key).to_owned(), options.remove(*key)?)))
            .collect();
        // Each value has been checked when the file was read.
        let common = CommonOptions::deserialize(common).unwrap_or_default();
        Some(SourceTable { kind: SourceKind::named(&self.kind)?, options, tenant, common })
    }

    /// The sink's options; `None` for an unknown kind, which reading the file refused.
    fn sink(&self) -> Option<SinkTable> {
        let mut options = self.values.clone();
        options.remove("kind");
        Some(SinkTable { kind: SinkKind::named(&self.kind)?, options })
    }
}

#[cfg(test)]
mod tests;
