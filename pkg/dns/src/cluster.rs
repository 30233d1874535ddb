//! What the answers are made of: services, endpoint slices and namespaces, by name and by address.

use isopod_client::views::{EndpointSlice, Namespace, Service};
use isopod_client::{Informer, Informers, ListScope};
use std::net::IpAddr;
use std::sync::Arc;

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
const BY_SERVICE: &str = "service";
const BY_ADDRESS: &str = "address";
const BY_CLUSTER_IP: &str = "cluster-ip";

/// The cluster as the server looks at it.
pub trait Cluster: Send + Sync {
    /// The lists are complete.
    fn is_synced(&self) -> bool;
    fn has_namespace(&self, name: &str) -> bool;
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>>;
    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>>;
    fn services_at(&self, ip: IpAddr) -> Vec<Arc<Service>>;
    fn slices_at(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>>;
}

/// The name of the slice's service.
pub fn service_of(slice: &EndpointSlice) -> Option<&str> {
    slice.metadata.labels.get(SERVICE_NAME_LABEL).map(String::as_str)
}

/// The cluster as informers know it.
pub struct Informed {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    namespaces: Informer<Namespace>,
}

impl Informed {
    pub fn new(informers: &Informers) -> Self {
        let services = informers.get::<Service>(Service::resource(), ListScope::all());
        services.add_index(BY_CLUSTER_IP, |s| s.spec.cluster_ips.iter().filter_map(|ip| canonical(ip)).collect());
        let slices = informers.get::<EndpointSlice>(EndpointSlice::resource(), ListScope::all());
        slices.add_index(BY_SERVICE, |s| {
            service_of(s).map(|name| format!("{}/{name}", s.metadata.namespace)).into_iter().collect()
        });
        slices.add_index(BY_ADDRESS, |s| {
            s.endpoints.iter().flat_map(|e| &e.addresses).filter_map(|ip| canonical(ip)).collect()
        });
        let namespaces = informers.get::<Namespace>(Namespace::resource(), ListScope::all());
        Informed { services, slices, namespaces }
    }
}

/// One spelling for each address; `None` for what is none (`None` of headless services, names).
fn canonical(ip: &str) -> Option<String> {
    ip.parse::<IpAddr>().ok().map(|ip| ip.to_string())
}

impl Cluster for Informed {
    fn is_synced(&self) -> bool {
        self.services.has_synced() && self.slices.has_synced() && self.namespaces.has_synced()
    }

    fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.get("", name).is_some()
    }

    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.get(namespace, name)
    }

    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        self.slices.by_index(BY_SERVICE, &format!("{namespace}/{service}"))
    }

    fn services_at(&self, ip: IpAddr) -> Vec<Arc<Service>> {
        self.services.by_index(BY_CLUSTER_IP, &ip.to_string())
    }

    fn slices_at(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>> {
        self.slices.by_index(BY_ADDRESS, &ip.to_string())
    }
}
