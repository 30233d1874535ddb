//! Mirrors `Endpoints` that users write into endpoint slices, which is what proxies read.
//!
//! Watches endpoints, services and slices; writes slices with the label
//! `endpointslice.kubernetes.io/managed-by: endpointslicemirroring-controller.k8s.io`. Invariants: only endpoints of a
//! service without a selector are mirrored; each family of each set of ports has one slice, of at most
//! [`MAX_ENDPOINTS`]; a slice carries the labels and annotations of its endpoints.

use crate::controller::{Context, Controller, Error, Key};
use crate::endpoint_slice::plan::{MANAGED_BY, SERVICE_NAME, delete, ports_of};
use crate::expectations::Expectations;
use crate::op::Op;
use crate::ownership;
use crate::service_pods::Port;
use async_trait::async_trait;
use isopod_client::events::{Kind, ObjectRef};
use isopod_client::queue::WorkQueue;
use isopod_client::views::{Endpoint, EndpointSlice, Endpoints, Labels, Meta, Service};
use isopod_client::{Change, Informer, decode};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Endpoints that are mirrored of one set of ports and one family.
const MAX_ENDPOINTS: usize = 1000;
/// Annotations that say something about the endpoints object itself.
const NOT_MIRRORED: [&str; 2] =
    ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];
/// Index of our slices by `namespace/service`.
const BY_SERVICE: &str = "mirrored service";

struct Mirrors {
    context: Context,
    endpoints: Informer<Endpoints>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    expectations: Arc<Expectations>,
}

pub async fn run(context: Context) {
    let endpoints = context.informer::<Endpoints>(Endpoints::resource());
    let services = context.informer::<Service>(Service::resource());
    let slices = context.informer::<EndpointSlice>(EndpointSlice::resource());
    slices.add_index(BY_SERVICE, |s| mirrored(s).map(|k| k.to_string()).into_iter().collect());
    endpoints.synced().await;
    services.synced().await;
    slices.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    let expectations = Arc::new(Expectations::new(context.clock.clone()));
    context.feed_own(&endpoints, &queue);
    context.feed_own(&services, &queue);
    let (again, expected) = (queue.clone(), expectations.clone());
    context.feed(&slices, move |change| {
        let (old, new) = match &change {
            Change::Applied { old, new } => (old.as_ref(), Some(new)),
            Change::Deleted(old) => (Some(old), None),
            Change::Resync => return,
        };
        for key in old.into_iter().chain(new).filter_map(|s| mirrored(s)) {
            if old.is_none() {
                expected.created(&key, 1);
            }
            again.add(key);
        }
    });
    let controller = Arc::new(Mirrors { context: context.clone(), endpoints, services, slices, expectations });
    context.work(controller, queue, 5).await;
}

/// The endpoints that a slice of this controller mirrors.
fn mirrored(slice: &EndpointSlice) -> Option<Key> {
    let labels = &slice.metadata.labels;
    let ours = labels.get(MANAGED_BY).is_some_and(|m| m == MANAGER);
    ours.then(|| Some(Key::new(&slice.metadata.namespace, labels.get(SERVICE_NAME)?))).flatten()
}

fn is_mirrored(endpoints: &Endpoints, service: &Service) -> bool {
    let m = &endpoints.metadata;
    service.spec.selector.is_none()
        && m.labels.get(SKIP_MIRROR).is_none_or(|v| v != "true")
        && !m.annotations.contains_key(LEADER)
}

/// Family and ports of a slice.
type GroupKey = (&'static str, Vec<Port>);

/// The endpoints of each slice, by address and pod. An address that is not ready in one subset is not ready in any with the
/// same ports.
fn wanted(subsets: &Value) -> BTreeMap<GroupKey, BTreeMap<String, Value>> {
    let mut groups: BTreeMap<GroupKey, BTreeMap<String, Value>> = BTreeMap::new();
    for subset in subsets.as_array().into_iter().flatten() {
        let mut ports: Vec<Port> = subset["ports"].as_array().into_iter().flatten().map(port).collect();
        ports.sort();
        ports.dedup();
        for (list, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            for address in subset[list].as_array().into_iter().flatten() {
                let Some(ip) = address["ip"].as_str().and_then(|ip| ip.parse::<IpAddr>().ok()) else { continue };
                let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
                let identity = format!("{ip} {}", address["targetRef"]["uid"].as_str().unwrap_or_default());
                let group = groups.entry((family, ports.clone())).or_default();
                let new = group.entry(identity).or_insert_with(|| endpoint(address, ip, ready));
                if !ready {
                    new["conditions"]["ready"] = json!(false);
                }
            }
        }
    }
    groups
}

fn port(port: &Value) -> Port {
    Port {
        name: port["name"].as_str().unwrap_or_default().to_owned(),
        port: port["port"].as_i64().unwrap_or_default() as i32,
        protocol: port["protocol"].as_str().unwrap_or("TCP").to_owned(),
        app_protocol: port["appProtocol"].as_str().map(ToOwned::to_owned),
    }
}

fn endpoint(address: &Value, ip: IpAddr, ready: bool) -> Value {
    let mut e = json!({"addresses": [ip.to_string()], "conditions": {"ready": ready}});
    for field in ["targetRef", "nodeName", "hostname"] {
        if let Some(v) = address.get(field).filter(|v| !v.is_null() && v.as_str() != Some("")) {
            e[field] = v.clone();
        }
    }
    e
}

fn labels(endpoints: &Meta) -> Labels {
    let mut labels = endpoints.labels.clone();
    labels.insert(SERVICE_NAME.into(), endpoints.name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

fn annotations(endpoints: &Meta) -> Labels {
    let mut annotations = endpoints.annotations.clone();
    annotations.retain(|k, _| !NOT_MIRRORED.contains(&k.as_str()));
    annotations
}

/// The slice as it should be, without a name.
fn slice(endpoints: &Meta, (family, ports): &GroupKey, addresses: &[Value]) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|p| {
            let mut v = json!({"name": p.name, "port": p.port, "protocol": p.protocol});
            if let Some(a) = &p.app_protocol {
                v["appProtocol"] = json!(a);
            }
            v
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": endpoints.namespace, "labels": labels(endpoints), "annotations": annotations(endpoints),
            "ownerReferences": [ownership::controller_reference("v1", "Endpoints", endpoints)],
        },
        "addressType": family, "endpoints": addresses, "ports": ports,
    })
}

fn is_as_wanted(endpoints: &Meta, present: &EndpointSlice, addresses: &[Value]) -> bool {
    let views = addresses.iter().filter_map(|e| decode::from_value::<Endpoint>(e).ok());
    let by_address = |e: &Endpoint| (e.addresses.clone(), e.target_ref.as_ref().map(|t| t.uid.clone()));
    let (mut new, mut old): (Vec<Endpoint>, Vec<Endpoint>) = (views.collect(), present.endpoints.clone());
    new.sort_by_key(by_address);
    old.sort_by_key(by_address);
    let m = &present.metadata;
    let owned = m.controller().is_some_and(|c| c.uid == endpoints.uid);
    owned && new == old && m.labels == labels(endpoints) && m.annotations == annotations(endpoints)
}

/// The changes, and how many endpoints are left out.
fn plan(endpoints: &Endpoints, slices: &[Arc<EndpointSlice>]) -> (Vec<Op>, usize) {
    let meta = &endpoints.metadata;
    let mut present: BTreeMap<(&str, Vec<Port>), Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
    for s in slices {
        present.entry((s.address_type.as_str(), ports_of(s))).or_default().push(s);
    }
    let (mut new, mut ops, mut left_out) = (Vec::new(), Vec::new(), 0);
    for (key, group) in wanted(&endpoints.subsets) {
        let mut addresses: Vec<Value> = group.into_values().collect();
        left_out += addresses.len().saturating_sub(MAX_ENDPOINTS);
        addresses.truncate(MAX_ENDPOINTS);
        let kept = present.get_mut(&key).filter(|list| !list.is_empty()).map(|list| list.remove(0));
        match kept {
            Some(kept) if is_as_wanted(meta, kept, &addresses) => {}
            Some(kept) => ops.push(replace(slice(meta, &key, &addresses), kept)),
            None => new.push((key.0, slice(meta, &key, &addresses))),
        }
    }
    // A slice that is not needed for its ports any more is written anew rather than deleted beside a new one.
    let mut unneeded: Vec<&Arc<EndpointSlice>> = present.into_values().flatten().collect();
    for (family, object) in new {
        match unneeded.iter().position(|s| s.address_type == family) {
            Some(at) => ops.push(replace(object, unneeded.remove(at))),
            None if meta.is_being_deleted() => {}
            None => ops.push(create(meta, object)),
        }
    }
    ops.extend(unneeded.into_iter().map(|s| delete(s)));
    (ops, left_out)
}

fn create(endpoints: &Meta, mut object: Value) -> Op {
    object["metadata"]["generateName"] = json!(format!("{}-", endpoints.name));
    Op::create(EndpointSlice::resource(), &endpoints.namespace, object)
}

fn replace(mut object: Value, slice: &EndpointSlice) -> Op {
    let m = &slice.metadata;
    object["metadata"]["name"] = json!(m.name);
    object["metadata"]["uid"] = json!(m.uid);
    object["metadata"]["resourceVersion"] = json!(m.resource_version);
    Op::replace(EndpointSlice::resource(), &m.namespace, object)
}

#[async_trait]
impl Controller for Mirrors {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let slices = self.slices.by_index(BY_SERVICE, &key.to_string());
        let endpoints = self.endpoints.get(&key.namespace, &key.name);
        let service = self.services.get(&key.namespace, &key.name);
        let (Some(endpoints), Some(_)) =
            (&endpoints, service.filter(|s| endpoints.as_ref().is_some_and(|e| is_mirrored(e, s))))
        else {
            self.expectations.forget(key);
            let ops: Vec<Op> = slices.iter().map(|s| delete(s)).collect();
            self.context.apply_all(&ops).await?;
            return Ok(None);
        };
        if !self.expectations.are_met(key) {
            return Ok(self.expectations.expire_in(key));
        }
        let (ops, left_out) = plan(endpoints, &slices);
        if left_out > 0 {
            let about = ObjectRef::new("v1", "Endpoints", &endpoints.metadata);
            let text = format!(
                "A max of {MAX_ENDPOINTS} addresses can be mirrored to EndpointSlices per Endpoints subset. {left_out} addresses were skipped"
            );
            self.context.recorder.event(&about, Kind::Warning, "TooManyAddressesToMirror", text);
        }
        self.carry_out(key, &ops).await
    }
}

impl Mirrors {
    async fn carry_out(&self, key: &Key, ops: &[Op]) -> Result<Option<Duration>, Error> {
        let is_creation = |op: &Op| matches!(op, Op::Create { .. });
        let mut creations = ops.iter().filter(|op| is_creation(op)).count();
        if creations > 0 {
            self.expectations.expect_creations(key, creations);
        }
        for op in ops {
            match self.context.apply(op).await {
                Ok(_) => creations -= usize::from(is_creation(op)),
                Err(e) => {
                    self.expectations.created(key, creations);
                    if e.api().is_some_and(isopod_client::Error::is_namespace_terminating) {
                        return Ok(None);
                    }
                    return Err(e);
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(subsets: Value) -> Endpoints {
        let metadata = json!({"name": "db", "namespace": "ns", "uid": "e", "labels": {"team": "a"},
            "annotations": {"note": "x", NOT_MIRRORED[1]: "{}"}});
        serde_json::from_value(json!({"metadata": metadata, "subsets": subsets})).unwrap()
    }

    fn carry_out(ops: &[Op]) -> Vec<Arc<EndpointSlice>> {
        let made = ops.iter().enumerate().filter_map(|(i, op)| match op {
            Op::Create { object, .. } | Op::Replace { object, .. } => {
                let mut object = object.clone();
                object["metadata"]["name"] = json!(format!("db-{i}"));
                Some(Arc::new(serde_json::from_value(object).unwrap()))
            }
            _ => None,
        });
        made.collect()
    }

    #[test]
    fn each_family_and_each_set_of_ports_has_a_slice() {
        let http = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
        let subsets = json!([
            {"addresses": [{"ip": "10.0.0.1", "nodeName": "n1"}, {"ip": "fd00::1"}],
             "notReadyAddresses": [{"ip": "10.0.0.2"}], "ports": http},
            {"notReadyAddresses": [{"ip": "10.0.0.1"}], "ports": http},
        ]);
        let (ops, _) = plan(&endpoints(subsets.clone()), &[]);
        let slices = carry_out(&ops);
        let shown: Vec<_> = slices.iter().map(|s| (s.address_type.as_str(), s.endpoints.len())).collect();
        assert_eq!(shown, [("IPv4", 2), ("IPv6", 1)]);
        assert!(slices[0].endpoints.iter().all(|e| !e.conditions.is_ready()), "not ready counts");
        assert_eq!(slices[0].endpoints[0].node_name.as_deref(), Some("n1"));
        assert_eq!(slices[0].metadata.annotations.keys().collect::<Vec<_>>(), ["note"]);
        assert_eq!(slices[0].metadata.labels["team"], "a");
        assert_eq!(plan(&endpoints(subsets), &slices).0, [], "nothing to change");
        // Other ports: the slices are written anew. None: they go.
        let (ops, _) = plan(&endpoints(json!([{"addresses": [{"ip": "10.0.0.1"}], "ports": []}])), &slices);
        let kinds: Vec<_> = ops.iter().map(|o| matches!(o, Op::Delete { .. })).collect();
        assert_eq!(kinds, [false, true], "{ops:?}");
        assert!(matches!(ops[0], Op::Replace { .. }));
        assert_eq!(plan(&endpoints(Value::Null), &slices).0.len(), 2);
    }

    #[test]
    fn what_is_not_mirrored() {
        let with = |metadata: Value| -> Endpoints { serde_json::from_value(json!({"metadata": metadata})).unwrap() };
        let service = |spec: Value| -> Service { serde_json::from_value(json!({"spec": spec})).unwrap() };
        for (metadata, spec, want) in [
            (json!({}), json!({}), true),
            (json!({}), json!({"selector": {"a": "b"}}), false),
            (json!({"labels": {SKIP_MIRROR: "true"}}), json!({}), false),
            (json!({"annotations": {LEADER: "{}"}}), json!({}), false),
        ] {
            assert_eq!(is_mirrored(&with(metadata.clone()), &service(spec)), want, "{metadata}");
        }
    }

    #[test]
    fn too_many_are_left_out() {
        let addresses: Vec<Value> = (0..1002).map(|i| json!({"ip": format!("10.0.{}.{}", i / 256, i % 256)})).collect();
        let (ops, left_out) = plan(&endpoints(json!([{"addresses": addresses}])), &[]);
        assert_eq!((carry_out(&ops)[0].endpoints.len(), left_out), (MAX_ENDPOINTS, 2));
    }
}
