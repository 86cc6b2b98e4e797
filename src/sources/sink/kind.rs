//! Kinds of sinks, and a `[[sink]]` of the configuration file.
//!
//! ```text
//!  kind's module: Options (serde: keys of [[sink]]), checks, Writer
//!                      |  SinkKind::of::<Options>()
//!                      v
//!  KINDS --> config: keys, defaults, required keys, checks -> SinkConfig
//! ```

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize, de::DeserializeOwned, de::Error as _};
use toml::{Table, Value};

use super::{Sink, Writer};
use crate::{
    kind::{OptionChecks, field_names},
    limits::SINK_NAME_BYTES_MAX,
};
use tickcast_common::values::Time;
use tickcast_core::limits::{
    SINK_ACK_TIMEOUT_MS_DEFAULT, SINK_ACK_TIMEOUT_MS_HIGHEST, SINK_ACK_TIMEOUT_MS_LOWEST,
};

/// The kinds of sinks. Only this table names all of them.
pub static KINDS: &[SinkKind] = &[
    #[cfg(feature = "nats")]
    SinkKind::of::<super::nats::Options>(),
    #[cfg(feature = "nats")]
    SinkKind::of::<super::jetstream::Options>(),
    #[cfg(feature = "kafka")]
    SinkKind::of::<super::kafka::Options>(),
    #[cfg(feature = "redis")]
    SinkKind::of::<super::redis_pubsub::Options>(),
    #[cfg(feature = "redis")]
    SinkKind::of::<super::redis_stream::Options>(),
];

/// Keys that every kind has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Common {
    /// Its name in routes.
    name: String,
    /// Time from a publish to its answer.
    ack_timeout: Time,
}

impl Default for Common {
    fn default() -> Common {
        Common { name: String::new(), ack_timeout: Time::from_ms(SINK_ACK_TIMEOUT_MS_DEFAULT) }
    }
}

/// Options of one kind of sink: the keys of its `[[sink]]` besides `name` and `ack_timeout`. Like
/// [`SourceOptions`](crate::kind::SourceOptions), in short.
pub trait SinkOptions: Serialize + DeserializeOwned + Default {
    /// The kind, as in `[[sink]] kind = "..."`.
    const KIND: &'static str;
    /// Keys that every `[[sink]]` of the kind must set, besides `name`.
    const REQUIRED: &'static [&'static str] = &[];
    /// What passes ticks on.
    type Writer: Writer + Clone + Sync + 'static;

    /// Whether publishes with message ids are passed on. They are refused if the engine does not recognise the ids (it stores one tick of
    /// those with the same id), unless the operator wants them passed on all the same.
    fn takes_message_ids(&self) -> bool {
        false
    }

    /// Checks the options and creates the writer, which connects only when it runs. Reports all errors. `None` if it cannot be
    /// created.
    fn configure(self, checks: &mut OptionChecks) -> Option<Self::Writer>;
}

/// A kind of sink. The table of all is [`KINDS`].
pub struct SinkKind {
    /// [`SinkOptions::KIND`].
    pub name: &'static str,
    required: &'static [&'static str],
    keys: fn() -> &'static [&'static str],
    defaults: fn() -> Table,
    normalized: fn(Table) -> Result<Table, toml::de::Error>,
    configure: fn(Table, &mut OptionChecks) -> Result<Option<Made>, toml::de::Error>,
}

/// What options make: the sink, and [`SinkOptions::takes_message_ids`].
type Made = (Build, bool);
/// Creates a sink that runs once.
type Build = Arc<dyn Fn() -> Box<dyn Sink> + Send + Sync>;

impl SinkKind {
    /// The kind that has these options.
    pub const fn of<T: SinkOptions>() -> SinkKind {
        SinkKind {
            name: T::KIND,
            required: T::REQUIRED,
            keys: field_names::<T>,
            // Every option type can be written to a file; a test checks this for every kind.
            defaults: || Table::try_from(T::default()).unwrap_or_default(),
            normalized: normalized::<T>,
            configure: |table, checks| {
                let options = T::deserialize(table)?;
                let takes_message_ids = options.takes_message_ids();
                let writer = options.configure(checks);
                Ok(writer.map(|writer| -> Made {
                    (Arc::new(move || Box::new(writer.clone())), takes_message_ids)
                }))
            },
        }
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<&'static SinkKind> {
        KINDS.iter().find(|kind| kind.name == name)
    }

    /// Keys of a `[[sink]]` besides `kind`.
    pub fn keys(&self) -> impl Iterator<Item = &'static str> + Clone {
        field_names::<Common>().iter().chain((self.keys)()).copied()
    }

    /// Keys that it must set.
    pub fn required(&self) -> impl Iterator<Item = &'static str> {
        ["name"].into_iter().chain(self.required.iter().copied())
    }

    /// The values of keys that are not set. Those without a default are left out.
    pub fn defaults(&self) -> Table {
        let mut all = Table::try_from(Common::default()).unwrap_or_default();
        all.extend((self.defaults)());
        all
    }

    /// The same options, each value in the form that `--print-config` writes.
    ///
    /// # Errors
    /// A value that does not fit its option.
    pub fn normalized(&self, options: Table) -> Result<Table, toml::de::Error> {
        let (common, own) = split(options);
        let mut all = normalized::<Common>(common)?;
        all.extend((self.normalized)(own)?);
        Ok(all)
    }

    /// Creates a sink from these options, or adds to `checks` why it cannot.
    pub fn configure(&'static self, options: &Table, checks: &mut OptionChecks) -> Option<SinkConfig> {
        let (common, own) = split(options.clone());
        let made = Common::deserialize(Value::Table(common))
            .and_then(|common| Ok((common, (self.configure)(own, checks)?)));
        let (Common { name, ack_timeout }, made) = match made {
            Ok(made) => made,
            Err(error) => {
                checks.refuse("kind", error.message().replace('\n', " "));
                return None;
            }
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if !(1..=SINK_NAME_BYTES_MAX).contains(&name.len()) || !name.chars().all(is_plain) {
            checks.refuse(
                "name",
                format!("{name:?}: must be 1 to {SINK_NAME_BYTES_MAX} letters, digits, - or _"),
            );
        }
        checks.within(
            "ack_timeout",
            ack_timeout,
            Time::from_ms(SINK_ACK_TIMEOUT_MS_LOWEST),
            Time::from_ms(SINK_ACK_TIMEOUT_MS_HIGHEST),
        );
        let (build, takes_message_ids) = made?;
        Some(SinkConfig {
            kind: self,
            name: name.into(),
            ack_timeout_ns: ack_timeout.ns,
            takes_message_ids,
            options: options.clone(),
            build,
        })
    }
}

fn normalized<T: Serialize + DeserializeOwned>(table: Table) -> Result<Table, toml::de::Error> {
    Table::try_from(T::deserialize(Value::Table(table))?)
        .map_err(|error| toml::de::Error::custom(error.to_string()))
}

/// The keys that every kind has, and the others.
fn split(options: Table) -> (Table, Table) {
    options.into_iter().partition(|(key, _)| field_names::<Common>().contains(&&**key))
}

impl PartialEq for SinkKind {
    fn eq(&self, other: &SinkKind) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for SinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A configured sink. Equal to another of the same kind and options.
#[derive(Clone)]
pub struct SinkConfig {
    kind: &'static SinkKind,
    name: Box<str>,
    ack_timeout_ns: u64,
    takes_message_ids: bool,
    options: Table,
    build: Build,
}

impl SinkConfig {
    /// The kind.
    pub fn kind(&self) -> &'static SinkKind {
        self.kind
    }

    /// Its name in routes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Time from a publish to its answer, nanoseconds.
    pub fn ack_timeout_ns(&self) -> u64 {
        self.ack_timeout_ns
    }

    /// Whether publishes with message ids are passed on.
    pub fn takes_message_ids(&self) -> bool {
        self.takes_message_ids
    }

    /// Creates the sink, to run once.
    pub fn build(&self) -> Box<dyn Sink> {
        (self.build)()
    }
}

impl PartialEq for SinkConfig {
    fn eq(&self, other: &SinkConfig) -> bool {
        self.kind == other.kind && self.options == other.options
    }
}

impl fmt::Debug for SinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SinkConfig").field(&self.kind).field(&self.options).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::SourceBounds;

    fn configured(kind: &'static SinkKind, text: &str) -> (Option<SinkConfig>, Vec<(&'static str, String)>) {
        let bounds = SourceBounds { payload_bytes_max: 1 << 10, topics_max: 10, reads_files: true };
        let mut checks = OptionChecks::new(bounds);
        let mut options = kind.defaults();
        options.extend(text.parse::<Table>().unwrap());
        (kind.configure(&options, &mut checks), checks.into_refused())
    }

    #[test]
    fn every_kind_has_a_name_of_its_own_and_defaults_that_are_read_as_written() {
        for (at, kind) in KINDS.iter().enumerate() {
            assert!(KINDS[..at].iter().all(|other| other != kind), "{kind:?} is listed twice");
            assert_eq!(SinkKind::named(kind.name), Some(kind));
            assert!(kind.required().all(|key| kind.keys().any(|known| known == key)), "{kind:?}");
            assert!(kind.keys().all(|key| key != "kind"), "{kind:?}");
            assert_eq!(kind.normalized(kind.defaults()).unwrap(), kind.defaults(), "{kind:?}");
        }
    }

    #[test]
    fn a_sink_has_a_name_and_a_time_within_which_it_answers() {
        for kind in KINDS {
            let needed: String = kind.required.iter().map(|key| format!("{key} = 'orders'\n")).collect();
            let (sink, refused) = configured(kind, &format!("name = 'engine'\nack_timeout = '2s'\n{needed}"));
            assert!(refused.is_empty(), "{kind:?}: {refused:?}");
            let sink = sink.unwrap();
            assert_eq!((sink.name(), sink.ack_timeout_ns()), ("engine", 2_000_000_000));
            let (_, refused) = configured(kind, &format!("name = 'a b'\nack_timeout = '1ms'\n{needed}"));
            assert_eq!(refused.iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["name", "ack_timeout"]);
        }
    }
}
