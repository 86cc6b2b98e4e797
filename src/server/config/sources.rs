//! The sources: options of their kinds, and what every kind has.

use super::{Checks, settings::SourceTable, tenant::TENANT};
use crate::{
    limits,
    sources::{
        common::Common,
        kind::{OptionChecks, SourceBounds, SourceConfig},
    },
};
use tickcast_core::{demand::DemandConfig, log_reads::LogReaderConfig, tenants::Tenants};
use tickcast_proto::{
    frame, pattern,
    records::{TickTimes, WireRecord},
};

/// Refuses subscriptions on demand where others feed the same topics: a topic's life ends when its ticks come from elsewhere.
fn check_on_demand(source: &SourceConfig, before: &[SourceConfig], checks: &mut OptionChecks) {
    let own = source.on_demand_topics();
    if own.is_empty() {
        return;
    }
    if source.common().group.is_some() {
        checks
            .refuse("on_demand", "not in a group, whose standbys read everything; remove on_demand or group");
    }
    for other in before.iter().filter(|other| other.tenant() == source.tenant()) {
        let others = other.on_demand_topics();
        let same = own.iter().find(|own| others.iter().any(|other| pattern::overlaps(own, other)));
        if let Some(same) = same {
            checks.refuse(
                "on_demand",
                format!(
                    "topics {same:?} are those of the source {:?} too; set another map.prefix for one of them",
                    other.common().name
                ),
            );
        }
    }
}

/// What shards must know about the readers of the sources' logs. Sources are numbered from 1.
pub(super) fn log_readers(sources: &[SourceConfig]) -> Vec<LogReaderConfig> {
    let reader = |(source, number): (&SourceConfig, u32)| {
        source.log_reader_timeout_ns().map(|timeout_ns| LogReaderConfig { source: number, timeout_ns })
    };
    sources.iter().zip(1..).filter_map(reader).collect()
}

/// What shards must know about the sources that subscribe on demand. Sources are numbered from 1.
pub(super) fn on_demand(sources: &[SourceConfig]) -> Vec<DemandConfig> {
    let on_demand = sources.iter().zip(1..).filter(|(source, _)| !source.on_demand_topics().is_empty());
    let config = |(source, number): (&SourceConfig, u32)| DemandConfig {
        source: number,
        tenant: source.tenant(),
        topics: source.on_demand_topics().to_vec(),
    };
    on_demand.map(config).collect()
}

impl Checks<'_> {
    pub(super) fn source_bounds(&self, reads_files: bool) -> SourceBounds {
        let limits = &self.settings.tables.limits;
        let frame_max = limits.frame_max.bytes.max(limits::FRAME_BYTES_MAX_LOWEST);
        SourceBounds {
            payload_bytes_max: frame_max - frame::encoded_len(TickTimes::STRIDE, 0) - limits::FRAME_ALIGN,
            topics_max: limits.topics_max,
            reads_files,
        }
    }

    pub(super) fn sources(&mut self, bounds: SourceBounds, tenants: &Tenants) -> Vec<SourceConfig> {
        let settings = self.settings;
        let commons = self.commons();
        let mut sources = Vec::new();
        for ((at, table), common) in settings.sources.iter().enumerate().zip(commons) {
            let path = |key: &str| format!("source[{at}].{key}");
            let is_same = |other: &SourceTable| (other.kind, &other.tenant) == (table.kind, &table.tenant);
            if table.kind.is_single && settings.sources[..at].iter().any(is_same) {
                let text = "there is such a source already, and two would publish on the same topics";
                self.refuse(&path("kind"), text.into());
                continue;
            }
            let mut checks = OptionChecks::new(bounds);
            let tenant = self.tenant(&path(TENANT), table.tenant.as_deref(), tenants);
            let source = table.kind.configure(&table.options, &mut checks);
            if common.group.is_some() && source.as_ref().is_some_and(SourceConfig::reads_back) {
                checks.refuse(
                    "position",
                    "\"log\": not in a group, because its sources have logs of their own",
                );
            }
            let source = source.map(|source| source.of_tenant(tenant).with_common(common));
            if let Some(source) = &source {
                check_on_demand(source, &sources, &mut checks);
            }
            sources.extend(source);
            checks.into_refused().into_iter().for_each(|(key, text)| self.refuse(&path(key), text));
        }
        sources
    }

    /// What every kind has, for each source in order: names that differ, and groups of one tenant.
    fn commons(&mut self) -> Vec<Common> {
        let tables = &self.settings.sources;
        let given = |name: &str| tables.iter().any(|table| table.common.name.as_deref() == Some(name));
        let mut names: Vec<String> = Vec::new();
        for (at, table) in tables.iter().enumerate() {
            let path = |key: &str| format!("source[{at}].{key}");
            let mut refused = Vec::new();
            table.common.check(|key, text| refused.push((key, text)));
            if let Some(name) = &table.common.name
                && names.contains(name)
            {
                refused.push(("name", format!("{name:?}: there is such a source already")));
            }
            let kind = table.kind.name;
            if table.common.group.is_some() && !table.kind.keys().contains(&"map") {
                refused.push(("group", format!("a source of kind {kind:?} cannot be in a group")));
            }
            let of_group = tables[..at]
                .iter()
                .find(|other| table.common.group.is_some() && other.common.group == table.common.group);
            if of_group.is_some_and(|other| other.tenant != table.tenant) {
                refused.push(("group", "its sources have different tenants".into()));
            }
            refused.into_iter().for_each(|(key, text)| self.refuse(&path(key), text));
            let mut free = std::iter::once(kind.to_owned()).chain((2..).map(|n| format!("{kind}-{n}")));
            let default = free.find(|name| !names.contains(name) && !given(name));
            names.push(table.common.name.clone().or(default).unwrap_or_default());
        }
        tables.iter().zip(&names).map(|(table, name)| table.common.resolved(name)).collect()
    }
}
