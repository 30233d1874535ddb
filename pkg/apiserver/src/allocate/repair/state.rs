//! What services say that they hold, and what is allocated to them, at one revision of the store.

use crate::ApiServer;
use crate::allocate::cidr::Cidr;
use crate::allocate::service::{ADDRESSES, PORTS};
use crate::cache::store_status;
use bytes::Bytes;
use isopod_api::{Status, time};
use isopod_store::{KeyRange, KeyValue, RangeRequest, RangeResponse, Revision, StoreError, Watch, WatchRequest};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

const SERVICES: &str = "/registry/services/specs/";
const RANGES: &str = "/registry/servicecidrs/";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub creation_timestamp: String,
    pub labels: HashMap<String, String>,
}

impl Meta {
    pub fn made(&self) -> Option<Timestamp> {
        time::parse(&self.creation_timestamp)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    pub metadata: Meta,
    pub spec: ServiceSpec,
    #[serde(skip)]
    pub revision: Revision,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    pub ports: Vec<ServicePort>,
    pub health_check_node_port: u16,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServicePort {
    pub protocol: String,
    pub node_port: u16,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Address {
    pub metadata: Meta,
    pub spec: AddressSpec,
    #[serde(skip)]
    pub revision: Revision,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AddressSpec {
    pub parent_ref: Parent,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Parent {
    pub group: String,
    pub resource: String,
    pub namespace: String,
    pub name: String,
}

/// The key of a port, as it is stored.
#[derive(Clone, Debug, Default)]
pub struct Port {
    /// `namespace/name` of the service.
    pub owner: String,
    pub revision: Revision,
}

#[derive(Clone, Debug)]
pub struct State {
    /// By namespace and name.
    pub services: BTreeMap<(String, String), Service>,
    pub addresses: BTreeMap<String, Address>,
    pub ports: BTreeMap<u16, Port>,
    /// Those of every ServiceCIDR.
    pub ranges: Vec<Cidr>,
    pub node_ports: RangeInclusive<u16>,
}

impl State {
    pub async fn read(server: &ApiServer) -> Result<State, Status> {
        let services = read(server, SERVICES, 0).await?;
        // The rest as it was then.
        let at = |prefix| read(server, prefix, services.revision);
        let (addresses, ports, ranges) = (at(ADDRESSES).await?.kvs, at(PORTS).await?.kvs, at(RANGES).await?.kvs);
        let services = services.kvs;
        let services = services.iter().filter_map(|kv| {
            let service = Service { revision: kv.mod_revision, ..decoded(kv)? };
            Some(((service.metadata.namespace.clone(), service.metadata.name.clone()), service))
        });
        let addresses = addresses.iter().filter_map(|kv| {
            let address = Address { revision: kv.mod_revision, ..decoded(kv)? };
            Some((address.metadata.name.clone(), address))
        });
        let ports = ports.iter().filter_map(|kv| {
            let number = std::str::from_utf8(kv.key.get(PORTS.len()..)?).ok()?.parse().ok()?;
            let owner = String::from_utf8_lossy(&kv.value).into_owned();
            Some((number, Port { owner, revision: kv.mod_revision }))
        });
        Ok(State {
            services: services.collect(),
            addresses: addresses.collect(),
            ports: ports.collect(),
            // The server gives out addresses of its own range, whatever the objects say.
            ranges: ranges.iter().flat_map(cidrs).chain([server.service_cidr]).collect(),
            node_ports: server.config.node_ports.clone(),
        })
    }
}

async fn read(server: &ApiServer, prefix: &str, revision: Revision) -> Result<RangeResponse, Status> {
    let range = KeyRange::prefix(prefix.to_owned());
    server.config.store.range(RangeRequest { revision, ..RangeRequest::new(range) }).await.map_err(store_status)
}

/// An object that cannot be read is left to those who look after the datastore.
fn decoded<'a, T: Deserialize<'a>>(kv: &'a KeyValue) -> Option<T> {
    serde_json::from_slice(&kv.value)
        .inspect_err(|e| tracing::warn!(key = %kv.key.escape_ascii(), error = %e, "cannot read"))
        .ok()
}

fn cidrs(kv: &KeyValue) -> Vec<Cidr> {
    let object: Value = decoded(kv).unwrap_or_default();
    let listed = object["spec"]["cidrs"].as_array().into_iter().flatten();
    listed.filter_map(|cidr| cidr.as_str()?.parse().ok()).collect()
}

/// Watches of all that is in a [`State`], from now on.
pub async fn watches(server: &ApiServer) -> Result<Vec<Watch>, StoreError> {
    let mut all = Vec::new();
    for prefix in [SERVICES, ADDRESSES, PORTS, RANGES] {
        let request = WatchRequest { range: KeyRange::prefix(prefix), start: 0 };
        all.push(server.config.store.watch(request).await?);
    }
    Ok(all)
}

/// The key that claims a port, and its value.
pub fn claim(port: u16, service: &Service) -> (String, Bytes) {
    let Meta { namespace, name, .. } = &service.metadata;
    (format!("{PORTS}{port}"), format!("{namespace}/{name}").into())
}

/// The key of a service.
pub fn service_key(service: &Service) -> String {
    format!("{SERVICES}{}/{}", service.metadata.namespace, service.metadata.name)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Of services, IPAddress objects, and ports with their owners, in a cluster of `10.43.0.0/16`.
    pub fn state(services: &[Value], addresses: &[Value], ports: &[(u16, &str)]) -> State {
        let services = services.iter().map(|s| Service::deserialize(s).unwrap());
        let addresses = addresses.iter().map(|a| Address::deserialize(a).unwrap());
        State {
            services: services.map(|s| ((s.metadata.namespace.clone(), s.metadata.name.clone()), s)).collect(),
            addresses: addresses.map(|a| (a.metadata.name.clone(), a)).collect(),
            ports: ports.iter().map(|(p, owner)| (*p, Port { owner: (*owner).into(), revision: 1 })).collect(),
            ranges: vec!["10.43.0.0/16".parse().unwrap()],
            node_ports: 30000..=32767,
        }
    }
}
