//! Kinds of sources: what a kind's module declares, and how configuration and command line see it.
//!
//! ```text
//!  kind's module: Options (serde: keys of [[source]]; clap: flags, if it has any), checks, Source
//!                      |  SourceKind::of::<Options>()
//!                      v
//!  sources::KINDS -----+--> SourceFlags: flags of `tickcast serve`
//!                      +--> config: keys, defaults, required keys, checks  -> SourceConfig
//!                      +--> metrics: a label for each kind
//! ```

use std::{borrow::Cow, collections::BTreeMap, fmt, fs, io, path::Path, sync::Arc};

use clap::{ArgMatches, Args, Command, FromArgMatches, error::ErrorKind};
use serde::{
    Deserializer, Serialize,
    de::{DeserializeOwned, Error, Visitor, value},
    forward_to_deserialize_any,
};
use toml::Table;

use super::{
    KINDS, Source,
    common::Common,
    log_reader::{LogReader, ReadBack},
};
use tickcast_core::ids::TenantId;

/// Options of one kind of source: the keys of its `[[source]]` in the file.
/// Each field is a key. Its type checks the value on its own, and must serialize to what it deserializes from. `Default` has
/// the values of keys that are not set. A field may hold a list or a table, but must not be `#[serde(flatten)]`, because the
/// field names are the known keys. `--print-config` prints values and SIGHUP logs changed ones, so an option for a secret must
/// name a file or an environment variable.
pub trait SourceOptions: Serialize + DeserializeOwned + Default {
    /// The kind, as in `[[source]] kind = "..."`: the name in logs, and the label of its metrics.
    const KIND: &'static str;
    /// Keys that every `[[source]]` of the kind must set. The flag of the first one asks for a source.
    const REQUIRED: &'static [&'static str] = &[];
    /// Whether a server runs at most one, because two would publish on the same topics.
    const IS_SINGLE: bool = false;
    /// Flags of `tickcast serve` for the first source of the kind; `None`: only a file configures it.
    const FLAGS: Option<Flags> = None;
    /// A hint for the user's next step, and the arguments of `tickcast` for it.
    const NEXT: Option<(&'static str, &'static str)> = None;

    /// Checks the options against each other and the server's bounds, and creates the source. Called at the start and by a
    /// reload. Reports all errors, not only the first. `None` if the source cannot be created.
    fn configure(self, checks: &mut OptionChecks) -> Option<Configured>;
}

/// When the command line alone starts a source of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Starts {
    /// If the file lists no sources and no flag replaces it with another; never with the switch `unless`.
    ByDefault {
        /// The switch's id.
        unless: &'static str,
    },
    /// If the flag of its required key is given, instead of the default source.
    Instead,
    /// If the flag of its required key is given, in addition to the default source.
    Beside,
}

/// Flags of `tickcast serve` for one kind.
#[derive(Clone, Copy, Debug)]
pub struct Flags {
    /// When they start a source.
    pub starts: Starts,
    /// The prefix of their arguments' ids, before the key. Ids are unique among all options of the server.
    pub prefix: &'static str,
    augment: fn(Command) -> Command,
    read: fn(&ArgMatches) -> Result<Table, clap::Error>,
}

impl Flags {
    /// The flags that the options' own clap arguments declare, in a group named after the kind.
    pub const fn of<T: SourceOptions + Args>(starts: Starts, prefix: &'static str) -> Flags {
        Flags { starts, prefix, augment: T::augment_args, read: read::<T> }
    }

    /// The same with arguments that are not options of a source, such as [`Starts::ByDefault`]'s switch: `T` flattens the options.
    pub const fn with<T: Args>(self) -> Flags {
        Flags { augment: T::augment_args, ..self }
    }
}

fn read<T: SourceOptions + Args>(matches: &ArgMatches) -> Result<Table, clap::Error> {
    let options = T::from_arg_matches(matches)?;
    Table::try_from(options).map_err(|error| clap::Error::raw(ErrorKind::Io, format!("{error}\n")))
}

/// A kind of source. The table of all is [`KINDS`].
pub struct SourceKind {
    /// [`SourceOptions::KIND`].
    pub name: &'static str,
    /// [`SourceOptions::REQUIRED`].
    pub required: &'static [&'static str],
    /// [`SourceOptions::IS_SINGLE`].
    pub is_single: bool,
    /// [`SourceOptions::FLAGS`].
    pub flags: Option<Flags>,
    /// [`SourceOptions::NEXT`].
    pub next: Option<(&'static str, &'static str)>,
    keys: fn() -> &'static [&'static str],
    defaults: fn() -> Table,
    normalized: fn(Table) -> Result<Table, toml::de::Error>,
    configure: fn(Table, &mut OptionChecks) -> Result<Option<Configured>, toml::de::Error>,
}

impl SourceKind {
    /// The kind that has these options.
    pub const fn of<T: SourceOptions>() -> SourceKind {
        SourceKind {
            name: T::KIND,
            required: T::REQUIRED,
            is_single: T::IS_SINGLE,
            flags: T::FLAGS,
            next: T::NEXT,
            keys: field_names::<T>,
            // Every option type can be written to a file; a test checks this for every kind.
            defaults: || Table::try_from(T::default()).unwrap_or_default(),
            normalized: |table| {
                Table::try_from(T::deserialize(table)?).map_err(|error| Error::custom(error.to_string()))
            },
            configure: |table, checks| Ok(T::deserialize(table)?.configure(checks)),
        }
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<&'static SourceKind> {
        KINDS.iter().find(|kind| kind.name == name)
    }

    /// Keys of a `[[source]]` besides `kind`, in the order of the fields.
    pub fn keys(&self) -> &'static [&'static str] {
        (self.keys)()
    }

    /// The values of keys that are not set. Those without a default are left out.
    pub fn defaults(&self) -> Table {
        (self.defaults)()
    }

    /// The same options, each value in the form that `--print-config` writes.
    ///
    /// # Errors
    /// A value that does not fit its option.
    pub fn normalized(&self, options: Table) -> Result<Table, toml::de::Error> {
        (self.normalized)(options)
    }

    /// Creates a source from these options, or adds to `checks` why it cannot.
    pub fn configure(&'static self, options: &Table, checks: &mut OptionChecks) -> Option<SourceConfig> {
        match (self.configure)(options.clone(), checks) {
            Ok(configured) => configured.map(|configured| SourceConfig {
                kind: self,
                options: options.clone(),
                configured,
                tenant: TenantId::DEFAULT,
                common: Common::named(self.name),
            }),
            Err(error) => {
                checks.refuse("kind", error.message().replace('\n', " "));
                None
            }
        }
    }

    /// The switch that turns off the source that starts by default.
    pub fn off_switch(&self) -> Option<&'static str> {
        match self.flags?.starts {
            Starts::ByDefault { unless } => Some(unless),
            Starts::Instead | Starts::Beside => None,
        }
    }
}

impl PartialEq for SourceKind {
    fn eq(&self, other: &SourceKind) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A source with checked options.
#[derive(Clone)]
pub struct Configured {
    pattern: Cow<'static, str>,
    reads_back: bool,
    build: Arc<dyn Fn() -> Box<dyn Source> + Send + Sync>,
    log_reader: Option<ConfiguredLogReader>,
    on_demand: Vec<Box<str>>,
}

/// A configured reader of a source's log.
#[derive(Clone)]
struct ConfiguredLogReader {
    timeout_ns: u64,
    build: Arc<dyn Fn() -> Box<dyn LogReader> + Send + Sync>,
}

impl Configured {
    /// Holds a source whose topics match `pattern`. A clone of it runs, and connects and opens what it needs only then.
    pub fn new(
        pattern: impl Into<Cow<'static, str>>,
        source: impl Source + Clone + Sync + 'static,
    ) -> Configured {
        let build = Arc::new(move || Box::new(source.clone()) as Box<dyn Source>);
        Configured {
            pattern: pattern.into(),
            reads_back: false,
            build,
            log_reader: None,
            on_demand: Vec::new(),
        }
    }

    /// The same with a reader of the log's past, of which a clone runs, unless the options turn it off.
    pub fn with_log_reader(
        self,
        options: ReadBack,
        reader: impl LogReader + Clone + Sync + 'static,
    ) -> Configured {
        let build = Arc::new(move || Box::new(reader.clone()) as Box<dyn LogReader>);
        let log_reader = ConfiguredLogReader { timeout_ns: options.timeout.ns, build };
        Configured { log_reader: options.is_on.then_some(log_reader), ..self }
    }

    /// The same, but if `reads_back`, it reads back a part of its log before the server is ready.
    pub fn reading_back(self, reads_back: bool) -> Configured {
        Configured { reads_back, ..self }
    }

    /// The same, but it subscribes to topics that match these patterns only while clients ask for them.
    pub fn on_demand(self, topics: &[Box<str>]) -> Configured {
        Configured { on_demand: topics.to_vec(), ..self }
    }

    /// Creates the source.
    pub fn build(&self) -> Box<dyn Source> {
        (self.build)()
    }
}

/// A configured source. Equal to another of the same kind and options.
#[derive(Clone)]
pub struct SourceConfig {
    kind: &'static SourceKind,
    options: Table,
    configured: Configured,
    tenant: TenantId,
    common: Common,
}

impl SourceConfig {
    /// The same with these settings, which every kind has.
    pub fn with_common(self, common: Common) -> SourceConfig {
        SourceConfig { common, ..self }
    }

    /// The settings that every kind has.
    pub fn common(&self) -> &Common {
        &self.common
    }

    /// The same for the topics of a tenant.
    pub fn of_tenant(self, tenant: TenantId) -> SourceConfig {
        SourceConfig { tenant, ..self }
    }

    /// The tenant of its topics.
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// The kind.
    pub fn kind(&self) -> &'static SourceKind {
        self.kind
    }

    /// A pattern that matches the source's topics.
    pub fn pattern(&self) -> &str {
        &self.configured.pattern
    }

    /// Whether the server is ready only once the source has read back a part of its log.
    pub fn reads_back(&self) -> bool {
        self.configured.reads_back
    }

    /// Patterns of the topics that it subscribes to only while clients ask for them.
    pub fn on_demand_topics(&self) -> &[Box<str>] {
        &self.configured.on_demand
    }

    /// Maximum time from a request to the reader of its log to the answer, nanoseconds; `None`: there is no reader.
    pub fn log_reader_timeout_ns(&self) -> Option<u64> {
        self.configured.log_reader.as_ref().map(|reader| reader.timeout_ns)
    }

    /// Creates the reader of its log, if it has one.
    pub fn build_log_reader(&self) -> Option<Box<dyn LogReader>> {
        self.configured.log_reader.as_ref().map(|reader| (reader.build)())
    }

    /// Creates the source.
    pub fn build(&self) -> Box<dyn Source> {
        self.configured.build()
    }
}

impl PartialEq for SourceConfig {
    fn eq(&self, other: &SourceConfig) -> bool {
        (self.kind, &self.options, self.tenant, &self.common)
            == (other.kind, &other.options, other.tenant, &other.common)
    }
}

impl fmt::Debug for SourceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SourceConfig").field(&self.kind).field(&self.options).finish()
    }
}

/// The server's bounds that a source is checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceBounds {
    /// Largest payload, in bytes, so that a tick fits into a frame.
    pub payload_bytes_max: usize,
    /// Topics of the server.
    pub topics_max: usize,
    /// Whether to read a file that a source loads as a whole; if not, only its existence is checked. A reload does not read
    /// it: a record may be a day long, and no source changes while the server runs.
    pub reads_files: bool,
}

/// Collects what is wrong with one source's options.
#[derive(Debug)]
pub struct OptionChecks {
    /// The server's bounds to check against.
    pub bounds: SourceBounds,
    refused: Vec<(&'static str, String)>,
}

impl OptionChecks {
    /// Starts without any refusal.
    pub fn new(bounds: SourceBounds) -> OptionChecks {
        OptionChecks { bounds, refused: Vec::new() }
    }

    /// Refuses the value of a key. The text says what is wrong and what to do; the key and its line are added.
    pub fn refuse(&mut self, key: &'static str, text: impl Into<String>) {
        self.refused.push((key, text.into()));
    }

    /// Refuses a value outside of a range.
    pub fn within<T: PartialOrd + fmt::Display>(
        &mut self,
        key: &'static str,
        value: T,
        lowest: T,
        highest: T,
    ) {
        if value < lowest || value > highest {
            self.refuse(key, format!("{value}: must be {lowest} to {highest}"));
        }
    }

    /// Refuses a file that is missing, cannot be read or is not a regular one.
    pub fn regular_file(&mut self, key: &'static str, file: &Path) {
        match fs::metadata(file) {
            Ok(found) if !found.is_file() => {
                self.refuse(key, format!("{}: not a regular file", file.display()));
            }
            Ok(_) => self.readable(key, file),
            Err(error) => self.file_error(key, file, &error),
        }
    }

    /// Refuses a file that cannot be opened for reading. Not for a FIFO: opening waits for its writer.
    pub fn readable(&mut self, key: &'static str, file: &Path) {
        if let Err(error) = fs::File::open(file) {
            self.file_error(key, file, &error);
        }
    }

    /// Refuses a file with this error as the reason.
    pub fn file_error(&mut self, key: &'static str, file: &Path, error: &io::Error) {
        let text = match error.kind() {
            io::ErrorKind::NotFound => "no such file".to_owned(),
            _ => error.to_string(),
        };
        self.refuse(key, format!("{}: {text}", file.display()));
    }

    /// Everything that was refused, by key.
    pub fn into_refused(self) -> Vec<(&'static str, String)> {
        self.refused
    }
}

/// The flags of all kinds: values by kind and key.
#[derive(Clone, Debug)]
pub struct SourceFlags(BTreeMap<&'static str, Table>);

impl SourceFlags {
    /// The values of one kind's flags, given or default.
    pub fn of(&self, kind: &SourceKind) -> Option<&Table> {
        self.0.get(kind.name)
    }
}

impl FromArgMatches for SourceFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<SourceFlags, clap::Error> {
        let with_flags = KINDS.iter().filter_map(|kind| Some((kind.name, kind.flags?)));
        with_flags
            .map(|(name, flags)| Ok((name, (flags.read)(matches)?)))
            .collect::<Result<_, _>>()
            .map(SourceFlags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = SourceFlags::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for SourceFlags {
    fn augment_args(command: Command) -> Command {
        KINDS.iter().filter_map(|kind| kind.flags).fold(command, |command, flags| (flags.augment)(command))
    }

    fn augment_args_for_update(command: Command) -> Command {
        SourceFlags::augment_args(command)
    }
}

/// The names of a struct's fields, which its derived `Deserialize` passes to the deserializer.
pub fn field_names<T: DeserializeOwned>() -> &'static [&'static str] {
    struct FieldNames<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for FieldNames<'_> {
        type Error = value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, value::Error> {
            Err(value::Error::custom("not a struct"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, value::Error> {
            *self.0 = fields;
            Err(value::Error::custom("only the names are wanted"))
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut names: &[&str] = &[];
    // Always an error: there are no values.
    let _ = T::deserialize(FieldNames(&mut names));
    names
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::{SourceContext, SourceError};

    /// What a client of another engine needs: addresses, a secret's file, a list of tables, and no flags.
    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default)]
    struct Engine {
        servers: Vec<String>,
        credentials_file: Option<String>,
        #[serde(rename = "map")]
        maps: Vec<Map>,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Map {
        subject: String,
        topic: String,
    }

    impl Source for Engine {
        fn run(&mut self, _: &mut SourceContext) -> Result<(), SourceError> {
            Ok(())
        }
    }

    impl SourceOptions for Engine {
        const KIND: &'static str = "engine";
        const REQUIRED: &'static [&'static str] = &["servers", "map"];

        fn configure(self, checks: &mut OptionChecks) -> Option<Configured> {
            checks.within("servers", self.servers.len(), 1, 8);
            checks.within("map", self.maps.len(), 1, 64);
            Some(Configured::new(self.maps.first()?.topic.clone(), self))
        }
    }

    static ENGINE: SourceKind = SourceKind::of::<Engine>();

    fn configured(text: &str) -> (Option<SourceConfig>, Vec<(&'static str, String)>) {
        let bounds = SourceBounds { payload_bytes_max: 1 << 10, topics_max: 10, reads_files: true };
        let mut checks = OptionChecks::new(bounds);
        let config = ENGINE.configure(&text.parse().unwrap(), &mut checks);
        (config, checks.into_refused())
    }

    #[test]
    fn a_kind_without_flags_has_lists_and_tables_as_options() {
        assert!(ENGINE.flags.is_none() && !ENGINE.is_single);
        assert_eq!(ENGINE.keys(), ["servers", "credentials_file", "map"]);
        let text = "servers = [\"a:4222\", \"b:4222\"]\nmap = [{ subject = \"a/*\", topic = \"a.*\" }]\n";
        let (config, refused) = configured(text);
        assert!(refused.is_empty(), "{refused:?}");
        assert_eq!(config.map(|config| config.pattern().to_owned()), Some("a.*".into()));
        let options: Table = text.parse().unwrap();
        assert_eq!(ENGINE.normalized(options.clone()).unwrap(), options);
    }

    #[test]
    fn everything_wrong_with_a_source_is_refused_by_key() {
        let (config, refused) = configured("");
        let keys: Vec<&str> = refused.iter().map(|(key, _)| *key).collect();
        assert!(config.is_none());
        assert_eq!((keys, &*refused[0].1), (vec!["servers", "map"], "0: must be 1 to 8"));
        let (config, refused) = configured("map = [{ subject = \"a\" }]");
        assert!(config.is_none() && refused[0].1.contains("missing field `topic`"), "{refused:?}");
    }

    #[test]
    fn every_kind_has_a_name_of_its_own_keys_and_defaults_that_are_read_as_written() {
        for (at, kind) in KINDS.iter().enumerate() {
            assert!(KINDS[..at].iter().all(|other| other != kind), "{kind:?} is listed twice");
            assert_eq!(SourceKind::named(kind.name), Some(kind));
            assert!(!kind.keys().is_empty(), "{kind:?}");
            assert!(!kind.keys().contains(&"kind"), "{kind:?}");
            assert!(kind.required.iter().all(|key| kind.keys().contains(key)), "{kind:?}");
            assert_eq!(kind.normalized(kind.defaults()).unwrap(), kind.defaults(), "{kind:?}");
        }
        assert!(KINDS.iter().filter(|kind| kind.off_switch().is_some()).count() <= 1, "one default source");
    }
}
