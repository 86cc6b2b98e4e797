//! The configuration file: typed tables in TOML, and the flat keys of 0.1.
//!
//! Checks each value on its own and collects all errors with their lines. [`super::Config::new`] checks the values
//! together.

mod auth;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, Error},
};
use toml::{
    Spanned, Table, Value,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::{
    auth::{AUTH, AuthSection},
    declared::{self, Declared, LISTENER},
    listener::{Address, Kind, ListenerTable},
    sink::{ROUTE, SINK},
    tenant::TENANT,
};
use crate::{
    byte_order_mark,
    cli::{ServeArgs, old, serve::Tables},
    error::Problem,
    sources::{
        KINDS,
        common::CommonOptions,
        kind::SourceKind,
        sink::{self, kind::SinkKind},
    },
};

/// Maximum size of the file, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A value in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Line number.
    pub line: usize,
    /// Table and key, as written in the file.
    pub named: String,
    /// Value in the form that [`super::settings::Settings::to_toml`] writes.
    pub value: Value,
}

/// A `[[listener]]`, `[[source]]` or `[[sink]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    /// Line of its header.
    pub line: usize,
    /// Its `kind`.
    pub kind: String,
    /// Its values by key, including `kind`.
    pub entries: BTreeMap<String, Entry>,
}

/// The content of a configuration file.
#[derive(Clone, Debug, Default)]
pub struct File {
    /// Path of the file.
    pub path: PathBuf,
    /// Options in tables and flat keys, by [`Declared::id`].
    pub options: BTreeMap<String, Entry>,
    /// The `[[listener]]` tables; `None`: the file has none, so the defaults apply.
    pub listeners: Option<Vec<Section>>,
    /// The `[[source]]` tables; `None`: as for listeners. `source = []` gives an empty list.
    pub sources: Option<Vec<Section>>,
    /// The `[[sink]]` tables.
    pub sinks: Vec<Section>,
    /// The `[[route]]` tables, as the list `route`.
    pub routes: Option<AuthSection>,
    /// `[auth]`.
    pub auth: Option<AuthSection>,
    /// The `[[tenant]]` tables, as the list `tenant`.
    pub tenants: Option<AuthSection>,
    /// All errors, by line.
    pub problems: Vec<Problem>,
    /// Flags of the options with an invalid value; also `listener`, `source`, `sink` or `auth` if a part of them was left out because of
    /// an error.
    pub broken: Vec<String>,
    /// One warning per flat key, with its new place.
    pub warnings: Vec<String>,
}

impl File {
    /// Reads a file. `defaults`: the options of an empty command line.
    pub fn read(path: &Path, defaults: &ServeArgs) -> File {
        let mut file = File { path: path.into(), ..File::default() };
        let of_file = |line, text| Problem { file: Some(path.into()), line, named: String::new(), text };
        let text = match text_of(path) {
            Ok(text) => text,
            Err(error) => {
                file.problems.push(of_file(None, error));
                return file;
            }
        };
        let mut reader = Reader { text: &text, defaults, file, warnings: Vec::new() };
        match DeTable::parse(&text) {
            Ok(root) => reader.root(root.get_ref()),
            Err(error) => {
                let line = error.span().map(|span| reader.line_at(span.start));
                reader.file.problems.push(of_file(line, error.message().replace('\n', " ")));
            }
        }
        let Reader { mut file, mut warnings, .. } = reader;
        file.problems.sort_by_key(|problem| problem.line);
        warnings.sort_by_key(|(line, _)| *line);
        file.warnings = warnings.into_iter().map(|(_, text)| text).collect();
        file
    }
}

fn text_of(path: &Path) -> Result<String, String> {
    let unreadable = |error: std::io::Error| format!("cannot be read: {error} (--config)");
    let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(format!("the file is too long: {bytes} bytes, the limit is {FILE_BYTES_MAX} (--config)"));
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    if byte_order_mark::is_utf16(&bytes) {
        return Err(format!("{} (--config)", byte_order_mark::UTF16));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count();
        format!("line {line} is not UTF-8 (--config)")
    })
}

/// Collects the entries and errors of a file.
struct Reader<'a> {
    text: &'a str,
    defaults: &'a ServeArgs,
    file: File,
    /// Line and text of each.
    warnings: Vec<(usize, String)>,
}

type Key<'i> = Spanned<std::borrow::Cow<'i, str>>;

impl Reader<'_> {
    fn root(&mut self, root: &DeTable<'_>) {
        for (key, value) in root {
            let name = key.get_ref().as_ref();
            let is_list = value.get_ref().is_array();
            match name {
                "listener" if is_list => self.file.listeners = Some(self.sections(name, value)),
                "source" if is_list => self.file.sources = Some(self.sections(name, value)),
                SINK if is_list => self.file.sinks = self.sections(name, value),
                "listener" | "source" | SINK => {
                    self.refuse(key, name, format!("must be a list of tables: [[{name}]]"))
                }
                AUTH => self.auth(key, value),
                TENANT => self.tenants(key, value),
                ROUTE => self.routes(key, value),
                _ if declared::tables().contains(&name) => match value.get_ref().as_table() {
                    Some(table) => self.table(name, table),
                    None => self.refuse(key, name, format!("must be a table: [{name}]")),
                },
                _ => self.flat(key, value),
            }
        }
    }

    fn table(&mut self, name: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let named = format!("{name}.{}", key.get_ref());
            let found = declared::of(name).find(|declared| declared.key == key.get_ref().as_ref());
            match found {
                Some(declared) => self.option(declared, key, named, value),
                None => {
                    let text = self.unknown(name, key.get_ref());
                    self.refuse(key, &named, text);
                }
            }
        }
    }

    fn option(&mut self, declared: &Declared, key: &Key<'_>, named: String, value: &Spanned<DeValue<'_>>) {
        match self.checked(declared, owned(value)) {
            Ok(value) => self.keep(declared, key, named, value),
            Err(text) => {
                self.file.broken.push(declared.flag.clone());
                self.refuse(key, &named, text);
            }
        }
    }

    fn keep(&mut self, declared: &Declared, key: &Key<'_>, named: String, value: Value) {
        let entry = Entry { line: self.line_of(key), named: named.clone(), value };
        if let Some(other) = self.file.options.insert(declared.id.clone(), entry) {
            let text = format!("is also set as {} in line {}; remove one", other.named, other.line);
            self.refuse(key, &named, text);
        }
    }

    /// Reads a top-level key of 0.1: the long name of an option, outside any table.
    fn flat(&mut self, key: &Key<'_>, value: &Spanned<DeValue<'_>>) {
        let name = key.get_ref().to_string();
        let found = declared::all().iter().find_map(|declared| {
            let spelling = declared.flat_spelling(&name)?;
            Some((declared, old::unit_of(spelling)))
        });
        let Some((declared, unit)) = found else {
            let text = self.unknown("", &name);
            return self.refuse(key, &name, text);
        };
        let value = match (owned(value), unit) {
            (Value::Integer(number), Some(unit)) => Value::String(format!("{number}{unit}")),
            (Value::String(text), Some(unit)) => Value::String(old::with_unit(&text, unit)),
            (value, _) => value,
        };
        // 0.1 passed values to the command line as text, so "2" was valid for a number.
        let plain =
            |value: &Value| value.as_str().and_then(|text| text.parse::<i64>().ok()).map(Value::Integer);
        let checked = self.checked(declared, value.clone());
        let checked = checked.or_else(|text| match plain(&value) {
            Some(value) => self.checked(declared, value),
            None => Err(text),
        });
        match checked {
            // In 0.1, `false` was the same as not setting the option.
            Ok(Value::Boolean(false)) => self.warn(key, declared, None),
            Ok(value) => {
                self.warn(key, declared, Some(&value));
                self.keep(declared, key, name, value);
            }
            Err(text) => {
                self.file.broken.push(declared.flag.clone());
                self.refuse(key, &name, text);
            }
        }
    }

    fn warn(&mut self, key: &Key<'_>, declared: &Declared, value: Option<&Value>) {
        let name = key.get_ref();
        let (table, new) = (&declared.table, &declared.key);
        let whole = "a file with one [[listener]] lists them all";
        let place = match (&*declared.id, value) {
            (id, _) if KINDS.iter().any(|kind| kind.off_switch() == Some(id)) => {
                "is now `source = []`, at the top of the file".to_owned()
            }
            ("no_admin", _) => "is now a file that lists [[listener]] without kind = \"admin\"".to_owned(),
            ("tcp", Some(value)) => {
                format!("is now [[listener]] kind = \"native\", address = {value}; {whole}")
            }
            ("http" | "admin", Some(value)) => {
                format!("is now [[listener]] kind = \"{name}\", address = {value}; {whole}")
            }
            (_, Some(value)) if declared.is_of_source() => {
                format!("is now [[source]] kind = \"{table}\", {new} = {value}")
            }
            (_, Some(value)) => format!("is now {table}.{new}; write {new} = {value} below [{table}]"),
            (_, None) => "is no longer needed".to_owned(),
        };
        let (path, line) = (self.file.path.display().to_string(), self.line_of(key));
        self.warnings.push((line, format!("{path}, line {line}: {name} {place}")));
    }

    fn sections(&mut self, name: &str, list: &Spanned<DeValue<'_>>) -> Vec<Section> {
        let mut sections = Vec::new();
        for item in list.get_ref().as_array().into_iter().flatten() {
            let line = self.line_at(item.span().start);
            let Some(table) = item.get_ref().as_table() else {
                self.refuse_at(line, name, format!("must be a list of tables: [[{name}]]"));
                continue;
            };
            match self.section(name, line, table) {
                Some(section) => sections.push(section),
                None => self.file.broken.push(name.to_owned()),
            }
        }
        sections
    }

    fn section(&mut self, name: &str, line: usize, table: &DeTable<'_>) -> Option<Section> {
        let kinds: Vec<&str> = match name {
            LISTENER => Kind::ALL.map(Kind::name).to_vec(),
            SINK => sink::kind::KINDS.iter().map(|kind| kind.name).collect(),
            _ => KINDS.iter().map(|kind| kind.name).collect(),
        };
        let found = table.iter().find(|(key, _)| key.get_ref() == "kind");
        let Some((kind_key, kind)) = found else {
            self.refuse_at(
                line,
                &format!("[[{name}]]"),
                format!("kind is missing: one of {}", kinds.join(", ")),
            );
            return None;
        };
        let Some(kind) = kind.get_ref().as_str().filter(|kind| kinds.contains(kind)) else {
            self.refuse(kind_key, &format!("{name}.kind"), format!("must be one of {}", kinds.join(", ")));
            return None;
        };
        let mut entries = BTreeMap::new();
        let mut is_whole = true;
        for (key, value) in table {
            let named = format!("{name}.{}", key.get_ref());
            match self.checked_in_section(name, kind, key.get_ref(), owned(value)) {
                Ok(value) => {
                    let entry = Entry { line: self.line_of(key), named, value };
                    entries.insert(key.get_ref().to_string(), entry);
                }
                Err(text) => {
                    is_whole = false;
                    self.refuse(key, &named, text);
                }
            }
        }
        let required = match (name, SourceKind::named(kind), SinkKind::named(kind)) {
            (SINK, _, Some(kind)) => kind.required().collect(),
            ("source", Some(kind), _) => kind.required.to_vec(),
            _ => vec!["address"],
        };
        if is_whole {
            for key in required.into_iter().filter(|key| !entries.contains_key(*key)) {
                let text = format!("{key} is missing for kind = \"{kind}\"");
                self.refuse_at(line, &format!("[[{name}]]"), text);
                is_whole = false;
            }
        }
        is_whole.then(|| Section { line, kind: kind.to_owned(), entries })
    }

    fn checked_in_section(&self, name: &str, kind: &str, key: &str, value: Value) -> Result<Value, String> {
        if key == "kind" {
            return Ok(value);
        }
        if name == LISTENER {
            if !ListenerTable::KEYS.contains(&key) {
                return Err(unknown_key(key, ListenerTable::KEYS.into_iter()));
            }
            let any = ListenerTable {
                kind: Kind::Native,
                address: Address::Unix("/".into()),
                transport: None,
                tls: None,
                proxy_protocol: None,
                forwarded_for: None,
                mode: None,
                socket_send_buffer: None,
                notsent_lowat: None,
                publish: None,
                tenant: None,
            };
            return lenient(written(&any), normalized::<ListenerTable>, &[key], value);
        }
        if name == SINK {
            let kind = SinkKind::named(kind).ok_or("no such kind")?;
            return match kind.keys().any(|known| known == key) {
                true => lenient(kind.defaults(), |options| kind.normalized(options), &[key], value),
                false => Err(unknown_key(key, kind.keys())),
            };
        }
        if key == TENANT {
            let is_text = value.is_str();
            return is_text.then_some(value).ok_or_else(|| "must be the name of a tenant, in quotes".into());
        }
        if CommonOptions::keys().contains(&key) {
            return lenient(written(&CommonOptions::default()), normalized::<CommonOptions>, &[key], value);
        }
        let kind = SourceKind::named(kind).ok_or("no such kind")?;
        if kind.keys().contains(&key) {
            return lenient(kind.defaults(), |options| kind.normalized(options), &[key], value);
        }
        let known = kind.keys();
        let all = || known.iter().chain(CommonOptions::keys()).copied();
        if declared::suggestion(key, all()).is_some() {
            return Err(unknown_key(key, all()));
        }
        let others = KINDS.iter().filter(|other| other.keys().contains(&key));
        let others: Vec<String> = others.map(|other| format!("{:?}", other.name)).collect();
        match others.is_empty() {
            true => Err(unknown_key(key, std::iter::empty())),
            false => Err(format!(
                "unknown key: an option of kind = {}; kind = {:?} has {}",
                others.join(", "),
                kind.name,
                known.join(", ")
            )),
        }
    }

    /// The value in normal form, if it is valid for the option.
    fn checked(&self, declared: &Declared, value: Value) -> Result<Value, String> {
        if let Some(kind) = SourceKind::named(&declared.table) {
            return lenient(kind.defaults(), |options| kind.normalized(options), &[&declared.key], value);
        }
        if declared.is_of_table() {
            let path = [&*declared.table, &declared.key];
            return lenient(written(&self.defaults.tables), normalized::<Tables>, &path, value);
        }
        match value {
            Value::Boolean(_) if declared.is_switch => Ok(value),
            other if declared.is_switch => Err(format!("must be true or false, not a {}", other.type_str())),
            other => match other.as_str().map(str::parse::<Address>) {
                Some(Ok(address)) => Ok(Value::String(address.to_string())),
                Some(Err(text)) => Err(text),
                None => Err("must be an address in quotes: \"IP:PORT\" or \"unix:/path\"".into()),
            },
        }
    }

    fn unknown(&self, table: &str, name: &str) -> String {
        let (tables, lists) = (declared::tables(), [LISTENER, "source", SINK, ROUTE, AUTH, TENANT]);
        let known = || declared::of(table).map(|declared| &*declared.key);
        if !table.is_empty() && declared::suggestion(name, known()).is_some() {
            return unknown_key(name, known());
        }
        // The key may be in the wrong table, or a name of 0.1.
        let elsewhere = declared::all().iter().filter(|declared| declared.is_of_table());
        let elsewhere = elsewhere.flat_map(|declared| declared.aliases.iter().chain([&declared.flag]));
        let spellings: Vec<String> = elsewhere.map(|spelling| spelling.replace('-', "_")).collect();
        let candidates = spellings.iter().map(String::as_str).chain(tables.iter().copied()).chain(lists);
        match declared::suggestion(name, candidates) {
            Some(alike) => {
                let home = declared::all().iter().find(|declared| declared.flat_spelling(alike).is_some());
                let place = home.map_or(format!("[{alike}]"), Declared::path);
                format!("unknown key; did you mean {place}?")
            }
            None => unknown_key(name, std::iter::empty()),
        }
    }

    fn refuse(&mut self, key: &Key<'_>, named: &str, text: String) {
        let line = self.line_of(key);
        self.refuse_at(line, named, text);
    }

    fn refuse_at(&mut self, line: usize, named: &str, text: String) {
        let file = Some(self.file.path.clone());
        self.file.problems.push(Problem { file, line: Some(line), named: named.to_owned(), text });
    }

    fn line_of(&self, key: &Key<'_>) -> usize {
        self.line_at(key.span().start)
    }

    fn line_at(&self, at: usize) -> usize {
        1 + self.text.as_bytes().iter().take(at).filter(|&&byte| byte == b'\n').count()
    }
}

fn unknown_key<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    match declared::suggestion(name, known) {
        Some(alike) => format!("unknown key; did you mean {alike}?"),
        None => "unknown key; `tickcast serve --print-config` prints all keys".to_owned(),
    }
}

fn owned(value: &Spanned<DeValue<'_>>) -> Value {
    // Never fails: every TOML value has a `Value`.
    Value::deserialize(ValueDeserializer::from(value.clone())).unwrap_or(Value::Boolean(false))
}

/// [`checked`], but also accepts a number where text is expected: `cores = 2`.
fn lenient(
    defaults: Table,
    normalized: impl Fn(Table) -> Result<Table, toml::de::Error>,
    path: &[&str],
    value: Value,
) -> Result<Value, String> {
    let as_text = match &value {
        Value::Integer(number) => Some(Value::String(number.to_string())),
        _ => None,
    };
    checked(defaults.clone(), &normalized, path, value).or_else(|text| match as_text {
        Some(value) => checked(defaults, &normalized, path, value).map_err(|_| text),
        None => Err(text),
    })
}

/// Checks a value by deserializing a table of defaults that contains it. Returns it in normal form.
fn checked(
    mut tree: Table,
    normalized: impl Fn(Table) -> Result<Table, toml::de::Error>,
    path: &[&str],
    value: Value,
) -> Result<Value, String> {
    *slot(&mut tree, path).ok_or("no such table")? = value;
    let mut tree = normalized(tree).map_err(|error| error.message().replace('\n', " "))?;
    slot(&mut tree, path).map(|value| value.clone()).ok_or_else(|| "no such table".to_owned())
}

/// Deserializes a table as `T` and serializes it again.
fn normalized<T: Serialize + DeserializeOwned>(table: Table) -> Result<Table, toml::de::Error> {
    Table::try_from(T::deserialize(table)?).map_err(toml::de::Error::custom)
}

/// Serializes options as a table.
fn written<T: Serialize>(options: &T) -> Table {
    // Never fails: every option type can be written to a file.
    Table::try_from(options).unwrap_or_default()
}

/// The value at a path, inserted if it is absent; `None` if a table is missing.
fn slot<'a>(tree: &'a mut Table, path: &[&str]) -> Option<&'a mut Value> {
    let (key, tables) = path.split_last()?;
    let mut table = tree;
    for name in tables {
        table = table.get_mut(*name)?.as_table_mut()?;
    }
    Some(table.entry(*key).or_insert(Value::Boolean(false)))
}
