//! What services were given, and what was found wrong with it, under upstream's names
//! (`pkg/registry/core/service/{ipallocator,portallocator}`).
//!
//! A duration is that of the choice alone: the claim is part of the transaction that writes the service.

use crate::ApiServer;
use crate::allocate::service;
use crate::exposition::Page;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CidrLabels {
    cidr: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AddressLabels {
    cidr: String,
    scope: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PortLabels {
    scope: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FaultLabels {
    r#type: &'static str,
}

/// Who has chosen an address or a port.
#[derive(Clone, Copy, Debug)]
pub enum Scope {
    /// The client.
    Static,
    /// The server.
    Dynamic,
}

impl Scope {
    fn name(self) -> &'static str {
        match self {
            Scope::Static => "static",
            Scope::Dynamic => "dynamic",
        }
    }
}

pub struct AllocationMetrics {
    addresses: Family<AddressLabels, Counter>,
    refused_addresses: Family<AddressLabels, Counter>,
    durations: Family<CidrLabels, Histogram, fn() -> Histogram>,
    ports: Family<PortLabels, Counter>,
    refused_ports: Family<PortLabels, Counter>,
    port_faults: Family<FaultLabels, Counter>,
    failed_looks: Counter,
}

/// Upstream's default buckets.
fn seconds() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
}

impl AllocationMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let made = AllocationMetrics {
            addresses: Family::default(),
            refused_addresses: Family::default(),
            durations: Family::new_with_constructor(seconds),
            ports: Family::default(),
            refused_ports: Family::default(),
            port_faults: Family::default(),
            failed_looks: Counter::default(),
        };
        let addresses = registry.sub_registry_with_prefix("kube_apiserver_clusterip_allocator");
        addresses.register("allocation", "[ALPHA] Number of Cluster IPs allocations", made.addresses.clone());
        let help = "[ALPHA] Number of errors trying to allocate Cluster IPs";
        addresses.register("allocation_errors", help, made.refused_addresses.clone());
        let help = "[ALPHA] Duration in seconds to allocate a Cluster IP by ServiceCIDR";
        addresses.register("allocation_duration_seconds", help, made.durations.clone());
        let ports = registry.sub_registry_with_prefix("kube_apiserver_nodeport_allocator");
        ports.register("allocation", "[ALPHA] Number of NodePort allocations", made.ports.clone());
        let help = "[ALPHA] Number of errors trying to allocate NodePort";
        ports.register("allocation_errors", help, made.refused_ports.clone());
        let repair = registry.sub_registry_with_prefix("apiserver_nodeport_repair");
        let help = "[ALPHA] Number of errors detected on ports by the repair loop broken down by type of error: leak, repair, \
                    full, outOfRange, duplicate, unknown";
        repair.register("port_errors", help, made.port_faults.clone());
        let help = "[ALPHA] Number of reconciliation failures on the nodeport repair reconcile loop";
        repair.register("reconcile_errors", help, made.failed_looks.clone());
        made
    }

    /// An address was looked for in a range, and found or not.
    pub fn address(&self, cidr: &str, scope: Scope, found: bool, took: Duration) {
        let labels = AddressLabels { cidr: cidr.to_owned(), scope: scope.name() };
        if found {
            self.addresses.get_or_create(&labels).inc();
            self.durations.get_or_create(&CidrLabels { cidr: cidr.to_owned() }).observe(took.as_secs_f64());
        } else {
            self.refused_addresses.get_or_create(&labels).inc();
        }
    }

    pub fn port(&self, scope: Scope, found: bool) {
        let family = if found { &self.ports } else { &self.refused_ports };
        family.get_or_create(&PortLabels { scope: scope.name() }).inc();
    }

    /// `kind`: `leak`, `repair`, `outOfRange` or `duplicate`.
    pub fn port_fault(&self, kind: &'static str) {
        self.port_faults.get_or_create(&FaultLabels { r#type: kind }).inc();
    }

    pub fn look_failed(&self) {
        self.failed_looks.inc();
    }
}

/// How much is given out, and how much is left.
pub async fn write(server: &ApiServer, page: &mut Page) {
    let cidr = server.service_cidr.to_string();
    if let Ok(used) = service::allocated(server, service::ADDRESSES).await {
        let free = server.service_cidr.usable().saturating_sub(used.into());
        let help = "[ALPHA] Gauge measuring the number of allocated IPs for Services";
        let labels = [("cidr", cidr.as_str())];
        page.family("kube_apiserver_clusterip_allocator_allocated_ips", help, "gauge").value(&labels, used as f64);
        let help = "[ALPHA] Gauge measuring the number of available IPs for Services";
        page.family("kube_apiserver_clusterip_allocator_available_ips", help, "gauge").value(&labels, free as f64);
    }
    if let Ok(used) = service::allocated(server, service::PORTS).await {
        let free = (server.config.node_ports.len() as u64).saturating_sub(used);
        let help = "[ALPHA] Gauge measuring the number of allocated NodePorts for Services";
        page.family("kube_apiserver_nodeport_allocator_allocated_ports", help, "gauge").value(&[], used as f64);
        let help = "[ALPHA] Gauge measuring the number of available NodePorts for Services";
        page.family("kube_apiserver_nodeport_allocator_available_ports", help, "gauge").value(&[], free as f64);
    }
}
