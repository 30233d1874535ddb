//! Keeps the `Endpoints` object of services that select pods: the older, unsliced form of endpoint slices.
//!
//! Watches services, pods and endpoints; writes endpoints. Invariants: an address is ready or not ready, never both; pods
//! that terminate are left out unless the service publishes unready addresses; at most 1000 addresses.

use crate::controller::{Context, Controller, Error, Key};
use crate::op::Op;
use crate::service_pods::{self, HEADLESS_LABEL, Port, feed_pods, matches, selects};
use async_trait::async_trait;
use isopod_client::Informer;
use isopod_client::queue::WorkQueue;
use isopod_client::views::{Endpoints, Labels, Pod, Service};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const MAX_ADDRESSES: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";

struct EndpointsObjects {
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
}

pub async fn run(context: Context) {
    let services = context.informer::<Service>(Service::resource());
    let pods = context.informer::<Pod>(Pod::resource());
    let endpoints = context.informer::<Endpoints>(Endpoints::resource());
    services.synced().await;
    pods.synced().await;
    endpoints.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&services, &queue);
    context.feed_own(&endpoints, &queue);
    feed_pods(&context, &services, &pods, &queue);
    let controller = Arc::new(EndpointsObjects { context: context.clone(), services, pods, endpoints });
    context.work(controller, queue, 5).await;
}

fn address(pod: &Pod, ip: &str, service: &Service) -> Value {
    let m = &pod.metadata;
    let mut a = json!({"ip": ip, "targetRef": {"kind": "Pod", "namespace": m.namespace, "name": m.name, "uid": m.uid}});
    if !pod.spec.node_name.is_empty() {
        a["nodeName"] = json!(pod.spec.node_name);
    }
    if let Some(h) = service_pods::hostname(pod, service) {
        a["hostname"] = json!(h);
    }
    a
}

/// The subsets, one for each set of ports, and whether addresses had to be left out.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Value, bool) {
    let publish = service.spec.publish_not_ready_addresses;
    let family = service_pods::families(service)[0];
    let mut groups: BTreeMap<Vec<Port>, [BTreeMap<String, Value>; 2]> = BTreeMap::new();
    for pod in pods {
        let left_out = pod.is_terminal() || (pod.metadata.is_being_deleted() && !publish);
        let Some(ip) = service_pods::addresses(pod, family).first().copied().filter(|_| !left_out) else { continue };
        let ports = service_pods::ports(service, pod);
        // Only a headless service may do without ports.
        if ports.is_empty() && !(service.spec.ports.is_empty() && service_pods::is_headless(service)) {
            continue;
        }
        let ready = publish || pod.is_ready();
        groups.entry(ports).or_default()[usize::from(!ready)].insert(ip.to_owned(), address(pod, ip, service));
    }
    let total: usize = groups.values().flatten().map(BTreeMap::len).sum();
    let mut room = MAX_ADDRESSES;
    let mut taken: Vec<[Vec<Value>; 2]> = vec![Default::default(); groups.len()];
    // Ready addresses have the first claim on the room.
    for kind in 0..2 {
        for (group, out) in groups.values().zip(&mut taken) {
            out[kind] = group[kind].values().take(room).cloned().collect();
            room -= out[kind].len();
        }
    }
    let mut list = Vec::new();
    for (ports, [ready, unready]) in groups.keys().zip(taken) {
        let mut subset = json!({});
        for (key, addresses) in [("addresses", ready), ("notReadyAddresses", unready)] {
            if !addresses.is_empty() {
                subset[key] = json!(addresses);
            }
        }
        if subset == json!({}) {
            continue;
        }
        if !ports.is_empty() {
            subset["ports"] = ports.iter().map(port_json).collect();
        }
        list.push(subset);
    }
    (Value::Array(list), total > MAX_ADDRESSES)
}

fn port_json(p: &Port) -> Value {
    let mut v = json!({"port": p.port, "protocol": p.protocol});
    if !p.name.is_empty() {
        v["name"] = json!(p.name);
    }
    if let Some(a) = &p.app_protocol {
        v["appProtocol"] = json!(a);
    }
    v
}

fn plan(service: &Service, pods: &[Arc<Pod>], present: Option<&Endpoints>) -> Vec<Op> {
    let (subsets, truncated) = subsets(service, pods);
    let mut labels: Labels = service.metadata.labels.clone();
    labels.insert(MANAGED_BY.into(), "endpoint-controller".into());
    if service_pods::is_headless(service) {
        labels.insert(HEADLESS_LABEL.into(), String::new());
    } else {
        labels.remove(HEADLESS_LABEL);
    }
    let mut annotations = present.map(|p| p.metadata.annotations.clone()).unwrap_or_default();
    annotations.remove(OVER_CAPACITY);
    if truncated {
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    }
    let m = &service.metadata;
    let mut object = json!({
        "apiVersion": "v1", "kind": "Endpoints", "subsets": subsets,
        "metadata": {"name": m.name, "namespace": m.namespace, "labels": labels, "annotations": annotations},
    });
    let Some(present) = present else { return vec![Op::create(Endpoints::resource(), &m.namespace, object)] };
    let before = if present.subsets.is_null() { &json!([]) } else { &present.subsets };
    if *before == object["subsets"] && present.metadata.labels == labels && present.metadata.annotations == annotations
    {
        return Vec::new();
    }
    object["metadata"]["resourceVersion"] = json!(present.metadata.resource_version);
    vec![Op::replace(Endpoints::resource(), &m.namespace, object)]
}

#[async_trait]
impl Controller for EndpointsObjects {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let present = self.endpoints.get(&key.namespace, &key.name);
        let Some(service) = self.services.get(&key.namespace, &key.name) else {
            // Endpoints have no owner reference: who made them takes them away.
            let ours = present.filter(|p| p.metadata.labels.contains_key(MANAGED_BY));
            if let Some(p) = ours {
                let op = Op::delete(Endpoints::resource(), &key.namespace, &key.name).if_uid(&p.metadata.uid);
                self.context.apply(&op).await?;
            }
            return Ok(None);
        };
        if !selects(&service) || service.metadata.is_being_deleted() {
            return Ok(None);
        }
        let selector = service.spec.selector.clone().unwrap_or_default();
        let mut pods = self.pods.list_namespace(&key.namespace);
        pods.retain(|p| matches(&selector, &p.metadata.labels));
        match self.context.apply_all(&plan(&service, &pods, present.as_deref())).await {
            Err(Error::Call { source, .. }) if source.is_namespace_terminating() => Ok(None),
            other => other.map(|()| None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(i: usize, ready: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(
                json!({"metadata": {"name": format!("p{i}"), "namespace": "ns", "uid": format!("u{i}")},
                "spec": {"nodeName": "n1"}, "status": {"podIP": format!("10.42.{}.{}", i / 250, i % 250),
                "conditions": [{"type": "Ready", "status": ready}]}}),
            )
            .unwrap(),
        )
    }

    fn service() -> Service {
        serde_json::from_value(
            json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": {"clusterIP": "10.43.0.1",
            "selector": {"a": "b"}, "ports": [{"port": 80, "targetPort": 8080}]}}),
        )
        .unwrap()
    }

    #[test]
    fn addresses_are_ready_or_not() {
        let ops = plan(&service(), &[pod(1, "True"), pod(2, "False")], None);
        let [Op::Create { object, .. }] = &ops[..] else { panic!() };
        let reference =
            |i: usize| json!({"kind": "Pod", "namespace": "ns", "name": format!("p{i}"), "uid": format!("u{i}")});
        assert_eq!(
            object["subsets"],
            json!([{"addresses": [{"ip": "10.42.0.1", "nodeName": "n1", "targetRef": reference(1)}],
                "notReadyAddresses": [{"ip": "10.42.0.2", "nodeName": "n1", "targetRef": reference(2)}],
                "ports": [{"port": 8080, "protocol": "TCP"}]}])
        );
        let present: Endpoints = serde_json::from_value(object.clone()).unwrap();
        assert_eq!(plan(&service(), &[pod(2, "False"), pod(1, "True")], Some(&present)), []);
        let ops = plan(&service(), &[], Some(&present));
        let [Op::Replace { object, .. }] = &ops[..] else { panic!() };
        assert_eq!(object["subsets"], json!([]));
    }

    #[test]
    fn a_thousand_addresses_are_the_most() {
        let pods: Vec<_> = (0..1100).map(|i| pod(i, if i < 950 { "False" } else { "True" })).collect();
        let (subsets, truncated) = subsets(&service(), &pods);
        assert!(truncated);
        assert_eq!(subsets[0]["addresses"].as_array().unwrap().len(), 150);
        assert_eq!(subsets[0]["notReadyAddresses"].as_array().unwrap().len(), 850);
    }
}
