//! `[[sink]]` and `[[route]]` of the configuration file: engines that take what clients publish, and the topics that go to them.
//!
//! ```text
//!  [[sink]]
//!  name = "orders"
//!  kind = "jetstream"
//!  subject = "in.{topic}"
//!
//!  [[route]]
//!  topics = "orders.>"
//!  to = "orders"
//!  tenant = "acme"        optional
//! ```

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::{Checks, auth::AuthSection};
use crate::{
    limits,
    sources::{
        kind::{OptionChecks, SourceBounds},
        sink::kind::{SinkConfig, SinkKind},
    },
};
use tickcast_core::{
    routes::{Route, Routes, SinkConfig as SinkOfShards, SinkId},
    tenants::Tenants,
};
use tickcast_proto::pattern;

/// Name of the list of sinks.
pub const SINK: &str = "sink";
/// Name of the list of routes.
pub const ROUTE: &str = "route";

/// The effective options of a sink.
#[derive(Clone, Debug, PartialEq)]
pub struct SinkTable {
    /// Its kind.
    pub kind: &'static SinkKind,
    /// All of its options, whether set or default.
    pub options: Table,
}

/// A `[[route]]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteTable {
    /// Pattern of the topics.
    pub topics: String,
    /// Name of a sink.
    pub to: String,
    /// Tenant of the topics; none: the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

/// The routes of a file, as its section holds them.
pub fn tables_of(section: &AuthSection) -> Vec<Table> {
    let items = section.values.get(ROUTE).and_then(Value::as_array);
    items.into_iter().flatten().filter_map(Value::as_table).cloned().collect()
}

impl Checks<'_> {
    /// The sinks, in the order of the file.
    pub(super) fn sinks(&mut self, bounds: SourceBounds) -> Vec<SinkConfig> {
        let settings = self.settings;
        let mut sinks: Vec<SinkConfig> = Vec::new();
        for (at, SinkTable { kind, options }) in settings.sinks.iter().enumerate() {
            let path = |key: &str| format!("{SINK}[{at}].{key}");
            let mut checks = OptionChecks::new(bounds);
            let sink = kind.configure(options, &mut checks);
            checks.into_refused().into_iter().for_each(|(key, text)| self.refuse(&path(key), text));
            let Some(sink) = sink else { continue };
            match sinks.iter().any(|other| other.name() == sink.name()) {
                true => {
                    self.refuse(&path("name"), format!("{:?}: another sink has this name", sink.name()));
                }
                false => sinks.push(sink),
            }
        }
        if settings.sinks.len() > limits::SINKS_MAX {
            let text = format!("{} sinks, the limit is {}", settings.sinks.len(), limits::SINKS_MAX);
            self.refuse(&format!("{SINK}[{}].kind", limits::SINKS_MAX), text);
        }
        sinks
    }

    /// The routes to these sinks.
    pub(super) fn routes(&mut self, sinks: &[SinkConfig], tenants: &Tenants) -> Routes {
        let settings = self.settings;
        let mut routes = Vec::new();
        for (at, RouteTable { topics, to, tenant }) in settings.routes.iter().enumerate() {
            let path = |key: &str| format!("{ROUTE}[{at}].{key}");
            if let Err(error) = pattern::check_pattern(topics.as_bytes()) {
                self.refuse(&path("topics"), format!("{topics:?}: {error}"));
            }
            let tenant = self.tenant(&path("tenant"), tenant.as_deref(), tenants);
            let Some(sink) = sinks.iter().position(|sink| sink.name() == to) else {
                // An error in the sink has a message of its own.
                let is_written = settings
                    .sinks
                    .iter()
                    .any(|sink| sink.options.get("name").and_then(Value::as_str) == Some(to));
                if !is_written && !settings.broken.iter().any(|broken| broken == SINK) {
                    self.refuse(&path("to"), format!("{to:?}: there is no [[sink]] of this name"));
                }
                continue;
            };
            routes.push(Route { tenant, topics: topics.as_str().into(), sink: SinkId(sink as u16) });
        }
        if settings.routes.len() > limits::ROUTES_MAX {
            let text = format!("{} routes, the limit is {}", settings.routes.len(), limits::ROUTES_MAX);
            self.refuse(&format!("{ROUTE}[{}].topics", limits::ROUTES_MAX), text);
        }
        let of_shards = |sink: &SinkConfig| SinkOfShards {
            name: sink.name().into(),
            ack_timeout_ns: sink.ack_timeout_ns(),
            takes_message_ids: sink.takes_message_ids(),
        };
        Routes { routes, sinks: sinks.iter().map(of_shards).collect() }
    }
}
