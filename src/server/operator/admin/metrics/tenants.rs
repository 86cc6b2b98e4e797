//! Metrics of tenants. None if no tenant is configured.

use super::{Scrape, Writer, escaped};
use crate::operator::tenants::quotas;
use tickcast_core::tenants::Figure;

/// Writes a family for each figure, and one for the quotas, with the tenant as label. Bound: [`TENANTS_MAX`] samples each.
///
/// [`TENANTS_MAX`]: tickcast_core::limits::TENANTS_MAX
pub(super) fn tenants(scrape: &Scrape<'_>, writer: &mut Writer) {
    if scrape.tenants.is_empty() {
        return;
    }
    let names: Vec<_> =
        scrape.tenants.iter().map(|(_, tenant)| (escaped(&tenant.config.name), tenant)).collect();
    for figure in Figure::ALL {
        let (kind, end) = if figure.is_gauge() { ("gauge", "") } else { ("counter", "_total") };
        let family = format!("tickcast_tenant_{}{end}", figure.label());
        writer.family(&family, kind, figure.help());
        for (name, tenant) in &names {
            writer.sample(&family, &[("tenant", name)], tenant.account.total(figure));
        }
    }
    const QUOTA: &str = "tickcast_tenant_quota";
    writer.family(
        QUOTA,
        "gauge",
        "What a tenant may use: units, or units per second; missing if there is no limit.",
    );
    for (name, tenant) in &names {
        for (resource, value) in quotas(&tenant.config.quota).into_iter().filter(|(_, value)| *value > 0) {
            writer.sample(QUOTA, &[("tenant", name), ("resource", &resource)], value);
        }
    }
}
