//! ClusterIPs and node ports of one Service. An address is an `IPAddress` object, a port is a key of its own; both are
//! claimed by a compare on their absence.

use super::Allocation;
use super::cidr::Cidr;
use crate::ApiServer;
use crate::cache::store_status;
use crate::encode::splice;
use crate::metrics::Scope;
use crate::pipeline::Intent;
use bytes::Bytes;
use isopod_api::{FieldError, Path, Status, time};
use isopod_kinds::kinds::service as rules;
use isopod_store::{Compare, KeyRange, Op, RangeRequest};
use rand::Rng;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Instant;

/// So many random places are tried before the whole range is read.
const PROBES: usize = 16;

/// Where the objects of addresses lie, and where the keys that claim ports.
pub(crate) const ADDRESSES: &str = "/registry/ipaddresses/";
pub(crate) const PORTS: &str = "/registry/ranges/servicenodeports/";
/// The labels of addresses' objects, and who makes these.
pub(super) const FAMILY_LABEL: &str = "ipaddress.kubernetes.io/ip-family";
pub(super) const MANAGED_BY_LABEL: &str = "ipaddress.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "ipallocator.k8s.io";

fn address_key(ip: IpAddr) -> String {
    format!("{ADDRESSES}{ip}")
}

fn port_key(port: u16) -> String {
    format!("{PORTS}{port}")
}

pub(super) fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn text<'a>(service: &'a Value, field: &str) -> &'a str {
    service["spec"][field].as_str().unwrap_or_default()
}

/// The addresses that the Service holds.
fn addresses(service: &Value) -> Vec<IpAddr> {
    let list = service["spec"]["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut all: Vec<IpAddr> = list.filter_map(|s| s.parse().ok()).collect();
    if let Some(first) = text(service, "clusterIP").parse().ok().filter(|ip| !all.contains(ip)) {
        all.insert(0, first);
    }
    all
}

/// The node ports that the Service holds, `healthCheckNodePort` among them.
fn node_ports(service: &Value) -> HashSet<u16> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten().map(|p| &p["nodePort"]);
    let all = ports.chain([&service["spec"]["healthCheckNodePort"]]);
    all.filter_map(Value::as_u64).filter_map(|p| u16::try_from(p).ok()).filter(|p| *p != 0).collect()
}

pub async fn create(server: &ApiServer, intent: &Intent, new: &mut Value) -> Result<Allocation, Status> {
    let mut allocation = Allocation::default();
    assign_families(server, intent, new, None)?;
    assign_address(server, intent, new, &mut allocation, &[]).await?;
    assign_ports(server, intent, new, &mut allocation, &HashSet::new()).await?;
    Ok(allocation)
}

pub async fn update(server: &ApiServer, intent: &Intent, new: &mut Value, old: &Value) -> Result<Allocation, Status> {
    let mut allocation = Allocation::default();
    assign_families(server, intent, new, Some(old))?;
    let (held_ips, held_ports) = (addresses(old), node_ports(old));
    assign_address(server, intent, new, &mut allocation, &held_ips).await?;
    assign_ports(server, intent, new, &mut allocation, &held_ports).await?;
    let (ips, ports) = (addresses(new), node_ports(new));
    release(
        &mut allocation,
        held_ips.into_iter().filter(|ip| !ips.contains(ip)),
        held_ports.difference(&ports).copied(),
    );
    Ok(allocation)
}

pub async fn delete(_server: &ApiServer, _intent: &Intent, old: &Value) -> Result<Allocation, Status> {
    let mut allocation = Allocation::default();
    release(&mut allocation, addresses(old).into_iter(), node_ports(old).into_iter());
    Ok(allocation)
}

fn release(allocation: &mut Allocation, ips: impl Iterator<Item = IpAddr>, ports: impl Iterator<Item = u16>) {
    allocation.ops.extend(ips.map(|ip| Op::delete(address_key(ip))));
    allocation.ops.extend(ports.map(|p| Op::delete(port_key(p))));
}

/// `ipFamilies` and `ipFamilyPolicy`; what does not fit the cluster is refused.
fn assign_families(
    server: &ApiServer,
    intent: &Intent,
    service: &mut Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let family = if server.service_cidr.is_ipv4() { "IPv4" } else { "IPv6" };
    let errors = rules::default_ip_families(service, old, &[family]);
    if errors.is_empty() {
        return Ok(());
    }
    let name = service["metadata"]["name"].as_str().unwrap_or_default();
    Err(Status::invalid(&intent.kind.gvk, name, &errors))
}

async fn assign_address(
    server: &ApiServer,
    intent: &Intent,
    service: &mut Value,
    allocation: &mut Allocation,
    held: &[IpAddr],
) -> Result<(), Status> {
    if !rules::needs_cluster_ip(service) {
        return Ok(());
    }
    let asked = match text(service, "clusterIP") {
        "" => service["spec"]["clusterIPs"][0].as_str().unwrap_or_default().to_owned(),
        given => given.to_owned(),
    };
    if asked == "None" {
        service["spec"]["clusterIP"] = "None".into();
        service["spec"]["clusterIPs"] = json!(["None"]);
        return Ok(());
    }
    let began = Instant::now();
    let count = |scope: Scope, found: bool| {
        if !intent.dry_run {
            server.metrics.allocations.address(&server.service_cidr.to_string(), scope, found, began.elapsed());
        }
    };
    let ip = if asked.is_empty() {
        free_address(server)
            .await
            .inspect(|_| count(Scope::Dynamic, true))
            .inspect_err(|_| count(Scope::Dynamic, false))?
    } else {
        // What is not an address is validation's to say.
        let Ok(ip) = asked.parse::<IpAddr>() else { return Ok(()) };
        if !held.contains(&ip) {
            let checked = check_address(server, intent, service, ip).await;
            count(Scope::Static, checked.is_ok());
            checked?;
        }
        ip
    };
    if !intent.dry_run && service["metadata"]["name"].as_str().unwrap_or_default().is_empty() {
        // The object of the address names its service, so that comes before anything that is wrong with the service.
        let why = "is invalid: spec.parentRef.name: Required value";
        let why = format!("failed to allocate IP: IPAddress.networking.k8s.io \"{ip}\" {why}");
        let error = FieldError::invalid(&Path::new("spec").child("clusterIPs"), json!([asked]), why);
        return Err(Status::invalid(&intent.kind.gvk, "", &[error]));
    }
    service["spec"]["clusterIP"] = ip.to_string().into();
    service["spec"]["clusterIPs"] = json!([ip.to_string()]);
    if !held.contains(&ip) {
        allocation.compare.push(Compare::mod_revision(address_key(ip), 0));
        let object = address_object(&intent.namespace, service, ip, intent.now);
        allocation.ops.push(Op::put(address_key(ip), splice::stored(&object)));
    }
    Ok(())
}

/// An address that a client asked for must be free and in the range.
async fn check_address(server: &ApiServer, intent: &Intent, service: &Value, ip: IpAddr) -> Result<(), Status> {
    let refuse = |why: String| {
        let path = Path::new("spec").child("clusterIPs");
        let error = FieldError::invalid(&path, json!([ip.to_string()]), format!("failed to allocate IP {ip}: {why}"));
        let name = service["metadata"]["name"].as_str().unwrap_or_default();
        Err(Status::invalid(&intent.kind.gvk, name, &[error]))
    };
    let cidr = &server.service_cidr;
    if !cidr.is_usable(ip) {
        return refuse(format!("the provided IP ({ip}) is not in the valid range. The range of valid IPs is {cidr}"));
    }
    if exists(server, address_key(ip)).await? {
        return refuse("provided IP is already allocated".into());
    }
    Ok(())
}

/// How many keys there are under a prefix.
pub(crate) async fn allocated(server: &ApiServer, prefix: &str) -> Result<u64, Status> {
    let mut request = RangeRequest::new(KeyRange::prefix(prefix.to_owned()));
    request.count_only = true;
    Ok(server.config.store.range(request).await.map_err(store_status)?.count)
}

async fn exists(server: &ApiServer, key: String) -> Result<bool, Status> {
    let mut request = RangeRequest::new(KeyRange::key(key));
    request.count_only = true;
    Ok(server.config.store.range(request).await.map_err(store_status)?.count > 0)
}

/// A free address, from the upper part of the range first: the lower part is for addresses that people choose (KEP-3070).
async fn free_address(server: &ApiServer) -> Result<IpAddr, Status> {
    let cidr = &server.service_cidr;
    let offset = static_part(cidr);
    for _ in 0..PROBES {
        let n = rand::rng().random_range(offset.min(cidr.usable() - 1)..cidr.usable());
        let Some(ip) = cidr.nth(n) else { continue };
        if !exists(server, address_key(ip)).await? {
            return Ok(ip);
        }
    }
    let taken = names(server, ADDRESSES).await?;
    let free = |n: &u128| cidr.nth(*n).is_some_and(|ip| !taken.contains(&ip.to_string()));
    let limit = cidr.usable().min(1 << 20);
    let found = (offset..limit).find(free).or_else(|| (0..offset.min(limit)).find(free));
    found.and_then(|n| cidr.nth(n)).ok_or_else(|| Status::internal("failed to allocate a serviceIP: range is full"))
}

fn static_part(cidr: &Cidr) -> u128 {
    let size = cidr.usable();
    if size < 16 { 0 } else { (size / 16).clamp(16, 256).min(size - 1) }
}

/// The last parts of all keys under a prefix.
async fn names(server: &ApiServer, prefix: &str) -> Result<HashSet<String>, Status> {
    let mut request = RangeRequest::new(KeyRange::prefix(prefix.to_owned()));
    request.keys_only = true;
    let read = server.config.store.range(request).await.map_err(store_status)?;
    let name = |key: &[u8]| String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
    Ok(read.kvs.iter().map(|kv| name(&kv.key)).collect())
}

/// The keys, and their values, with which a Service that was not created here holds its addresses and ports.
pub(crate) fn held(service: &Value) -> Vec<(String, Bytes)> {
    let text = |field: &str| service["metadata"][field].as_str().unwrap_or_default();
    let owner = Bytes::from(format!("{}/{}", text("namespace"), text("name")));
    let now = jiff::Timestamp::now();
    let object = |ip: IpAddr| splice::stored(&address_object(text("namespace"), service, ip, now));
    let ips = addresses(service).into_iter().map(|ip| (address_key(ip), object(ip)));
    let ports = node_ports(service).into_iter().map(|p| (port_key(p), owner.clone()));
    ips.chain(ports).collect()
}

/// The object of an address of a service, of which only the name is asked.
pub(super) fn address_object(namespace: &str, service: &Value, ip: IpAddr, now: jiff::Timestamp) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {
            "name": ip.to_string(), "uid": uuid::Uuid::new_v4().to_string(), "creationTimestamp": time::format(now),
            "labels": {FAMILY_LABEL: family(ip), MANAGED_BY_LABEL: MANAGER}},
        "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": service["metadata"]["name"]}}})
}

async fn assign_ports(
    server: &ApiServer,
    intent: &Intent,
    service: &mut Value,
    allocation: &mut Allocation,
    held: &HashSet<u16>,
) -> Result<(), Status> {
    let owner = format!("{}/{}", intent.namespace, service["metadata"]["name"].as_str().unwrap_or_default());
    let mut claimed: HashSet<u16> = HashSet::new();
    // Ports of one number share a node port; where they have one protocol too, that is validation's to say.
    let mut by_port: Vec<(Value, u16)> = Vec::new();
    let assign = rules::needs_node_port(service);
    let count = service["spec"]["ports"].as_array().map_or(0, Vec::len);
    for i in 0..count {
        let port = service["spec"]["ports"][i].clone();
        let given = port["nodePort"].as_u64().unwrap_or(0) as u16;
        if given != 0 {
            if !held.contains(&given) && !claimed.contains(&given) {
                check_port(
                    server,
                    intent,
                    service,
                    &Path::new("spec").child("ports").index(i).child("nodePort"),
                    given,
                )
                .await?;
            }
            claimed.insert(given);
            by_port.push((port["port"].clone(), given));
        }
    }
    if assign {
        for i in 0..count {
            let port = service["spec"]["ports"][i].clone();
            if port["nodePort"].as_u64().unwrap_or(0) != 0 {
                continue;
            }
            let shared = by_port.iter().find(|(n, _)| *n == port["port"]).map(|(_, np)| *np);
            let number = match shared {
                Some(number) => number,
                None => free_port(server, intent, &claimed).await?,
            };
            service["spec"]["ports"][i]["nodePort"] = number.into();
            claimed.insert(number);
            by_port.push((port["port"].clone(), number));
        }
    } else if text(service, "type") == "ClusterIP" {
        // A service that was a NodePort gives its ports back.
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            port.remove("nodePort");
        }
        claimed.clear();
    }
    if rules::needs_health_check_node_port(service) {
        let given = service["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0) as u16;
        let number = if given == 0 { free_port(server, intent, &claimed).await? } else { given };
        if given != 0 && !held.contains(&given) {
            check_port(server, intent, service, &Path::new("spec").child("healthCheckNodePort"), given).await?;
        }
        service["spec"]["healthCheckNodePort"] = number.into();
        claimed.insert(number);
    }
    for port in claimed.into_iter().filter(|p| !held.contains(p)) {
        allocation.compare.push(Compare::mod_revision(port_key(port), 0));
        allocation.ops.push(Op::put(port_key(port), owner.clone()));
    }
    Ok(())
}

async fn check_port(
    server: &ApiServer,
    intent: &Intent,
    service: &Value,
    path: &Path,
    port: u16,
) -> Result<(), Status> {
    let range = &server.config.node_ports;
    let count = |found: bool| {
        if !intent.dry_run {
            server.metrics.allocations.port(Scope::Static, found);
        }
    };
    let why = if !range.contains(&port) {
        let (from, to) = (range.start(), range.end());
        format!("provided port is not in the valid range. The range of valid ports is {from}-{to}")
    } else if exists(server, port_key(port)).await? {
        "provided port is already allocated".to_owned()
    } else {
        count(true);
        return Ok(());
    };
    count(false);
    let name = service["metadata"]["name"].as_str().unwrap_or_default();
    Err(Status::invalid(&intent.kind.gvk, name, &[FieldError::invalid(path, port, why)]))
}

/// What a dry run's ports are counted on from, beyond any range.
const DRY_RUN_PORT: u16 = 32768;

async fn free_port(server: &ApiServer, intent: &Intent, claimed: &HashSet<u16>) -> Result<u16, Status> {
    // A dry run shows that there will be a port, not which one.
    if intent.dry_run {
        return Ok(claimed.iter().max().copied().unwrap_or(DRY_RUN_PORT).saturating_add(1));
    }
    let found = choose_port(server, claimed).await;
    server.metrics.allocations.port(Scope::Dynamic, found.is_ok());
    found
}

async fn choose_port(server: &ApiServer, claimed: &HashSet<u16>) -> Result<u16, Status> {
    let range = server.config.node_ports.clone();
    for _ in 0..PROBES {
        let port = rand::rng().random_range(range.clone());
        if !claimed.contains(&port) && !exists(server, port_key(port)).await? {
            return Ok(port);
        }
    }
    let taken = names(server, PORTS).await?;
    let free = |p: &u16| !claimed.contains(p) && !taken.contains(&p.to_string());
    range.into_iter().find(free).ok_or_else(|| Status::internal("failed to allocate a nodePort: range is full"))
}
