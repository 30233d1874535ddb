//! Where a service leads, as this server sees it: one of its ready endpoints, reached through the tunnel of the node on which it
//! runs.

use crate::ApiServer;
use crate::tunnel::Io;
use isopod_api::Status;
use rand::Rng;
use serde_json::Value;
use std::io;

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

/// A ready endpoint of a service's port: any pod of it, else anything else. `None`: there is none.
pub async fn endpoint(server: &ApiServer, namespace: &str, name: &str, port: &str) -> Result<Option<Endpoint>, Status> {
    let slices = server.read_all("discovery.k8s.io", "endpointslices", namespace).await?;
    let mut other = None;
    for slice in slices.iter().filter(|s| s["metadata"]["labels"]["kubernetes.io/service-name"] == name) {
        let mut ports = slice["ports"].as_array().into_iter().flatten();
        let Some(number) = ports.find(|p| p["name"].as_str().unwrap_or_default() == port) else { continue };
        let Some(number) = number["port"].as_u64() else { continue };
        let endpoints = slice["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
        let start = if endpoints.is_empty() { 0 } else { rand::rng().random_range(0..endpoints.len()) };
        for endpoint in endpoints[start..].iter().chain(&endpoints[..start]) {
            if let Some((node, ip)) = ready(server, namespace, endpoint).await? {
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
    endpoint: &Value,
) -> Result<Option<(Option<String>, String)>, Status> {
    let is_ready = endpoint["conditions"]["ready"].as_bool().unwrap_or(true);
    let (target, ip) = (&endpoint["targetRef"], endpoint["addresses"][0].as_str());
    let (Some(ip), true) = (ip, is_ready) else { return Ok(None) };
    if target["kind"] != "Pod" {
        return Ok(Some((None, ip.to_owned())));
    }
    let (Some(name), true) = (target["name"].as_str(), target["namespace"] == namespace) else { return Ok(None) };
    let Some(pod) = server.read("", "pods", namespace, name).await? else { return Ok(None) };
    let its = pod["status"]["podIPs"].as_array().into_iter().flatten().any(|p| p["ip"] == ip);
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
    Ok(its.then(|| (Some(node), ip.to_owned())))
}
