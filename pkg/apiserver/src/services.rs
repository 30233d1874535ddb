//! Where a service leads, as this server sees it: one of its ready endpoints, reached through the tunnel of the node on which it
//! runs.

use crate::ApiServer;
use crate::cache::entry::Entry;
use crate::tunnel::Io;
use isopod_api::Status;
use rand::Rng;
use serde::Deserialize;
use serde_json::Value;
use std::borrow::Cow;
use std::io;
use std::sync::Arc;

/// One endpoint. Without a node it is no pod, and this server reaches it by itself or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub node: Option<String>,
    pub ip: String,
    pub port: u64,
}

impl Endpoint {
    pub async fn dial(&self, server: &ApiServer) -> io::Result<Box<dyn Io>> {
        let ip = if self.ip.contains(':') { format!("[{}]", self.ip) } else { self.ip.clone() };
        let address = format!("{ip}:{}", self.port);
        match &self.node {
            Some(node) => server.dialer().dial(node, &address).await,
            None => Ok(Box::new(tokio::net::TcpStream::connect(address).await?)),
        }
    }
}

/// The name of a service's port that has this number.
pub fn port_name(service: &Value, number: i64) -> Option<String> {
    let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let found = ports.find(|p| p["port"].as_i64() == Some(number))?;
    Some(found["name"].as_str().unwrap_or_default().to_owned())
}

/// The slices of a service.
pub async fn slices(server: &ApiServer, namespace: &str, name: &str) -> Result<Vec<Arc<Entry>>, Status> {
    server.labelled("discovery.k8s.io", "endpointslices", namespace, name).await
}

/// What of a slice leads to an endpoint. It is read for every request that goes there.
#[derive(Deserialize)]
struct Slice<'a> {
    #[serde(borrow, default)]
    endpoints: Option<Vec<Member<'a>>>,
    #[serde(borrow, default)]
    ports: Option<Vec<Port<'a>>>,
}

#[derive(Deserialize)]
struct Port<'a> {
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
    port: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Member<'a> {
    #[serde(borrow, default)]
    addresses: Option<Vec<Cow<'a, str>>>,
    #[serde(default)]
    conditions: Conditions,
    #[serde(borrow, default)]
    target_ref: Option<Target<'a>>,
}

#[derive(Deserialize, Default)]
struct Conditions {
    ready: Option<bool>,
}

#[derive(Deserialize)]
struct Target<'a> {
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    namespace: Cow<'a, str>,
    #[serde(borrow, default)]
    name: Cow<'a, str>,
}

/// Where a pod is.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Pod {
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    node_name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PodStatus {
    #[serde(rename = "podIPs")]
    ips: Vec<PodIp>,
}

#[derive(Deserialize)]
struct PodIp {
    ip: String,
}

impl Slice<'_> {
    fn port(&self, name: &str) -> Option<u64> {
        let named = |p: &&Port| p.name.as_deref().unwrap_or_default() == name;
        self.ports.iter().flatten().find(named)?.port
    }
}

/// A ready endpoint of a service's port: any pod of it, else anything else. `None`: there is none.
pub async fn endpoint(server: &ApiServer, namespace: &str, name: &str, port: &str) -> Result<Option<Endpoint>, Status> {
    let mut other = None;
    for entry in slices(server, namespace, name).await? {
        let Ok(slice) = serde_json::from_slice::<Slice>(&entry.body) else { continue };
        let Some(number) = slice.port(port) else { continue };
        let members = slice.endpoints.as_deref().unwrap_or_default();
        let start = if members.is_empty() { 0 } else { rand::rng().random_range(0..members.len()) };
        for member in members[start..].iter().chain(&members[..start]) {
            if let Some((node, ip)) = ready(server, namespace, member).await? {
                let found = Endpoint { node, ip, port: number };
                if found.node.is_some() {
                    return Ok(Some(found));
                }
                other = other.or(Some(found));
            }
        }
    }
    Ok(other)
}

/// Node and address of an endpoint that is ready. One that says it is a pod must be that pod.
async fn ready(
    server: &ApiServer,
    namespace: &str,
    member: &Member<'_>,
) -> Result<Option<(Option<String>, String)>, Status> {
    let ip = member.addresses.iter().flatten().next();
    let (Some(ip), true) = (ip, member.conditions.ready.unwrap_or(true)) else { return Ok(None) };
    let Some(target) = member.target_ref.as_ref().filter(|t| t.kind == "Pod") else {
        return Ok(Some((None, ip.to_string())));
    };
    if target.namespace != namespace {
        return Ok(None);
    }
    let Some(kind) = server.registry.load().resource("", "pods").cloned() else { return Ok(None) };
    let Some(entry) = server.get_entry(&kind, namespace, &target.name).await? else { return Ok(None) };
    let pod: Pod = serde_json::from_slice(&entry.body).unwrap_or_default();
    let its = pod.status.ips.iter().any(|p| p.ip == **ip);
    Ok(its.then(|| (Some(pod.spec.node_name), ip.to_string())))
}
