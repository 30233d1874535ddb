//! `/metrics`: a few of etcd's figures, under etcd's names, so that its dashboards and alerts go on working.

use crate::service::Service;
use isopod_store::Alarm;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Requests by service and method.
#[derive(Default)]
pub(crate) struct Metrics(Mutex<BTreeMap<(String, String), u64>>);

impl Metrics {
    /// `path`: `/package.Service/Method`, of a method that is served.
    pub fn started(&self, path: &str) {
        if let Some((service, method)) = path.trim_start_matches('/').split_once('/') {
            *self.0.lock().entry((service.to_owned(), method.to_owned())).or_default() += 1;
        }
    }

    /// The Prometheus text format, version 0.0.4.
    pub async fn text(&self, service: &Service) -> isopod_store::Result<String> {
        let usage = service.store.usage().await?;
        let (newest, oldest) = service.store.revisions().await?;
        let leases = service.store.leases().await?.len();
        let alarms = service.quota.alarms();
        let mut out = String::new();
        let mut gauge = |name: &str, help: &str, value: i64| {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
        };
        gauge("etcd_server_has_leader", "1: there is a leader.", 1);
        gauge("etcd_server_is_leader", "1: it is this member.", 1);
        gauge("etcd_server_quota_backend_bytes", "The space quota.", service.quota.limit());
        gauge("etcd_mvcc_db_total_size_in_bytes", "Size of the database.", usage.size as i64);
        gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Part of it that holds data.", usage.in_use as i64);
        gauge("etcd_debugging_mvcc_current_revision", "The newest revision.", newest);
        gauge("etcd_debugging_mvcc_compact_revision", "The oldest revision that is kept.", oldest);
        gauge("isopod_datastore_leases", "Leases that live.", leases as i64);
        let raised = i64::from(alarms.contains(&Alarm::NoSpace));
        gauge("isopod_datastore_alarm_no_space", "1: the space quota was reached.", raised);
        let name = "grpc_server_started_total";
        let _ = write!(out, "# HELP {name} Requests that were begun.\n# TYPE {name} counter\n");
        for ((service, method), n) in self.0.lock().iter() {
            let _ = writeln!(out, "{name}{{grpc_service=\"{service}\",grpc_method=\"{method}\"}} {n}");
        }
        Ok(out)
    }
}
