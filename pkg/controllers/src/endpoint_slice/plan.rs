//! From a service and its pods to the changes of its slices.

use crate::controller::Key;
use crate::op::Op;
use crate::ownership;
use crate::service_pods::{self, HEADLESS_LABEL, Port};
use isopod_client::views::{EndpointSlice, Labels, Node, Pod, Service};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Endpoints of one slice.
const MAX_ENDPOINTS: usize = 100;
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";

/// The service of a slice that this controller keeps.
pub fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let labels = &slice.metadata.labels;
    if labels.get(MANAGED_BY).map(String::as_str) != Some(MANAGER) {
        return None;
    }
    Some(Key::new(&slice.metadata.namespace, labels.get(SERVICE_NAME)?))
}

pub fn zone(node: &Node) -> Option<&String> {
    node.metadata.labels.get(ZONE)
}

/// The slices of one set of ports, as JSON.
#[derive(Default)]
struct Group {
    wanted: Vec<Value>,
    present: Vec<Arc<EndpointSlice>>,
}

pub fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    slices: &[Arc<EndpointSlice>],
    node: &dyn Fn(&str) -> Option<Arc<Node>>,
) -> Vec<Op> {
    let families = service_pods::families(service);
    let mut ops = Vec::new();
    for family in &families {
        let present: Vec<_> = slices.iter().filter(|s| s.address_type == *family).cloned().collect();
        ops.extend(plan_family(service, family, pods, &present, node));
    }
    let unwanted = slices.iter().filter(|s| !families.contains(&s.address_type.as_str()));
    ops.extend(unwanted.map(|s| delete(s)));
    ops
}

fn plan_family(
    service: &Service,
    family: &str,
    pods: &[Arc<Pod>],
    present: &[Arc<EndpointSlice>],
    node: &dyn Fn(&str) -> Option<Arc<Node>>,
) -> Vec<Op> {
    let mut groups: BTreeMap<Vec<Port>, Group> = BTreeMap::new();
    for slice in present.iter().filter(|s| !s.metadata.is_being_deleted()) {
        groups.entry(ports_of(slice)).or_default().present.push(slice.clone());
    }
    for pod in pods {
        if let Some(endpoint) = endpoint(service, family, pod, node) {
            groups.entry(service_pods::ports(service, pod)).or_default().wanted.push(endpoint);
        }
    }
    let none_wanted = groups.values().all(|g| g.wanted.is_empty());
    let mut ops = Vec::new();
    if none_wanted {
        // One empty slice stays, with no ports.
        let placeholder = groups.entry(Vec::new()).or_default();
        let mut kept = placeholder.present.drain(..);
        match kept.next() {
            None => ops.push(create(service, family, &[], &[])),
            Some(slice) => {
                let change = replace(service, &slice, &[], Vec::new());
                ops.extend(change);
                ops.extend(kept.map(|s| delete(&s)));
            }
        }
    }
    for (ports, group) in groups {
        ops.extend(plan_group(service, family, &ports, group));
    }
    // What is created stands before what is deleted: no moment without endpoints.
    ops.sort_by_key(|op| matches!(op, Op::Delete { .. }));
    ops
}

/// Keeps endpoints where they are, puts new ones where room is, and makes as few slices as that leaves.
fn plan_group(service: &Service, family: &str, ports: &[Port], group: Group) -> Vec<Op> {
    let mut wanted: BTreeMap<String, Value> = group.wanted.into_iter().map(|e| (identity(&e), e)).collect();
    let mut kept: Vec<(Arc<EndpointSlice>, Vec<Value>, bool)> = Vec::new();
    for slice in group.present {
        let before: Vec<Value> = slice.endpoints.iter().map(endpoint_json).collect();
        let after: Vec<Value> = before.iter().filter_map(|e| wanted.remove(&identity(e))).collect();
        let changed = after != before;
        kept.push((slice, after, changed));
    }
    let mut new: Vec<Value> = wanted.into_values().collect();
    // Slices that are written anyway take new endpoints first, then the fullest of the others.
    kept.sort_by_key(|(_, endpoints, changed)| (!changed, std::cmp::Reverse(endpoints.len())));
    for (_, endpoints, changed) in &mut kept {
        let room = MAX_ENDPOINTS.saturating_sub(endpoints.len()).min(new.len());
        if (*changed || !endpoints.is_empty()) && room > 0 {
            endpoints.extend(new.drain(..room));
            *changed = true;
        }
    }
    let mut ops = Vec::new();
    for (slice, endpoints, _) in kept {
        if endpoints.is_empty() {
            ops.push(delete(&slice));
        } else {
            ops.extend(replace(service, &slice, ports, endpoints));
        }
    }
    for chunk in new.chunks(MAX_ENDPOINTS) {
        ops.push(create(service, family, ports, chunk));
    }
    ops
}

/// What makes an endpoint the same one: its pod and its addresses.
fn identity(endpoint: &Value) -> String {
    format!("{} {}", endpoint["targetRef"]["uid"], endpoint["addresses"])
}

fn endpoint(service: &Service, family: &str, pod: &Pod, node: &dyn Fn(&str) -> Option<Arc<Node>>) -> Option<Value> {
    let addresses = service_pods::addresses(pod, family);
    if addresses.is_empty() || pod.is_terminal() {
        return None;
    }
    let on = node(&pod.spec.node_name);
    let publish = service.spec.publish_not_ready_addresses;
    // A pod of a node that is gone (or not yet known) cannot be reached.
    if on.is_none() && !publish {
        return None;
    }
    let serving = pod.is_ready();
    let terminating = pod.metadata.is_being_deleted();
    let ready = publish || (serving && !terminating);
    let m = &pod.metadata;
    let mut e = json!({
        "addresses": addresses,
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "targetRef": {"kind": "Pod", "namespace": m.namespace, "name": m.name, "uid": m.uid},
    });
    if !pod.spec.node_name.is_empty() {
        e["nodeName"] = json!(pod.spec.node_name);
    }
    let zone = on.as_ref().and_then(|n| zone(n)).cloned();
    if let Some(zone) = &zone {
        e["zone"] = json!(zone);
    }
    if let Some(hostname) = service_pods::hostname(pod, service) {
        e["hostname"] = json!(hostname);
    }
    if let Some(hints) = hints(service, zone.as_deref(), &pod.spec.node_name, ready) {
        e["hints"] = hints;
    }
    Some(e)
}

/// Which consumers should prefer the endpoint (KEP-3015).
fn hints(service: &Service, zone: Option<&str>, node: &str, ready: bool) -> Option<Value> {
    let zones = json!([{"name": zone?}]);
    match service.spec.traffic_distribution.as_str() {
        _ if !ready => None,
        "PreferClose" | "PreferSameZone" => Some(json!({"forZones": zones})),
        "PreferSameNode" => Some(json!({"forZones": zones, "forNodes": [{"name": node}]})),
        _ => None,
    }
}

fn endpoint_json(e: &isopod_client::views::Endpoint) -> Value {
    let mut v = json!({
        "addresses": e.addresses,
        "conditions": {"ready": e.conditions.is_ready(), "serving": e.conditions.is_serving(),
                       "terminating": e.conditions.is_terminating()},
    });
    if let Some(t) = &e.target_ref {
        v["targetRef"] = json!({"kind": t.kind, "namespace": t.namespace, "name": t.name, "uid": t.uid});
    }
    for (key, value) in [("nodeName", &e.node_name), ("zone", &e.zone), ("hostname", &e.hostname)] {
        if let Some(value) = value {
            v[key] = json!(value);
        }
    }
    if let Some(h) = &e.hints {
        let names = |l: &[isopod_client::views::NamedRef]| l.iter().map(|n| json!({"name": n.name})).collect::<Value>();
        v["hints"] = json!({"forZones": names(&h.for_zones)});
        if !h.for_nodes.is_empty() {
            v["hints"]["forNodes"] = names(&h.for_nodes);
        }
    }
    v
}

pub fn ports_of(slice: &EndpointSlice) -> Vec<Port> {
    let mut ports: Vec<Port> = slice
        .ports
        .iter()
        .map(|p| Port {
            name: p.name.clone().unwrap_or_default(),
            port: p.port.unwrap_or_default(),
            protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
            app_protocol: p.app_protocol.clone(),
        })
        .collect();
    ports.sort();
    ports
}

fn labels(service: &Service) -> Labels {
    let reserved = |k: &str| matches!(k, SERVICE_NAME | MANAGED_BY | HEADLESS_LABEL);
    let mut labels: Labels =
        service.metadata.labels.iter().filter(|(k, _)| !reserved(k)).map(|(k, v)| (k.clone(), v.clone())).collect();
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if service_pods::is_headless(service) {
        labels.insert(HEADLESS_LABEL.into(), String::new());
    }
    labels
}

fn body(service: &Service, family: &str, metadata: Value, ports: &[Port], endpoints: &[Value]) -> Value {
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
    let mut v = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
        "addressType": family, "endpoints": endpoints, "ports": ports,
    });
    v["metadata"]["labels"] = json!(labels(service));
    v["metadata"]["namespace"] = json!(service.metadata.namespace);
    v["metadata"]["ownerReferences"] = json!([ownership::controller_reference("v1", "Service", &service.metadata)]);
    v
}

fn create(service: &Service, family: &str, ports: &[Port], endpoints: &[Value]) -> Op {
    let metadata = json!({"generateName": format!("{}-", service.metadata.name)});
    let object = body(service, family, metadata, ports, endpoints);
    Op::create(EndpointSlice::resource(), &service.metadata.namespace, object)
}

/// Nothing, when the slice is as it should be.
fn replace(service: &Service, slice: &EndpointSlice, ports: &[Port], endpoints: Vec<Value>) -> Option<Op> {
    let m = &slice.metadata;
    let owned = m.controller().is_some_and(|c| c.uid == service.metadata.uid);
    let same = slice.endpoints.iter().map(endpoint_json).eq(endpoints.iter().cloned());
    if same && owned && m.labels == labels(service) && ports_of(slice) == ports {
        return None;
    }
    let metadata = json!({"name": m.name, "resourceVersion": m.resource_version, "uid": m.uid,
        "generateName": format!("{}-", service.metadata.name), "annotations": m.annotations});
    let object = body(service, &slice.address_type, metadata, ports, &endpoints);
    Some(Op::replace(EndpointSlice::resource(), &service.metadata.namespace, object))
}

pub fn delete(slice: &EndpointSlice) -> Op {
    Op::delete(EndpointSlice::resource(), &slice.metadata.namespace, &slice.metadata.name).if_uid(&slice.metadata.uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(extra: Value) -> Service {
        let mut v = json!({"metadata": {"name": "web", "namespace": "ns", "uid": "s", "labels": {"team": "a"}},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.43.0.5", "ipFamilies": ["IPv4"],
                "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]}});
        isopod_client::calls::merge(&mut v, &extra);
        serde_json::from_value(v).unwrap()
    }

    fn pod(i: usize, extra: Value) -> Arc<Pod> {
        let mut v = json!({"metadata": {"name": format!("p{i}"), "namespace": "ns", "uid": format!("u{i:03}")},
            "spec": {"nodeName": "n1"}, "status": {"podIP": format!("10.42.0.{i}"), "podIPs": [{"ip": format!("10.42.0.{i}")}],
                "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        isopod_client::calls::merge(&mut v, &extra);
        Arc::new(serde_json::from_value(v).unwrap())
    }

    fn node(name: &str) -> Option<Arc<Node>> {
        let v = json!({"metadata": {"name": name, "labels": {ZONE: "z1"}}});
        (name == "n1").then(|| Arc::new(serde_json::from_value(v).unwrap()))
    }

    /// The slices after a plan is carried out on the present ones.
    fn carry_out(present: &[Arc<EndpointSlice>], ops: &[Op]) -> Vec<Arc<EndpointSlice>> {
        let mut after = present.to_vec();
        for (i, op) in ops.iter().enumerate() {
            match op {
                Op::Create { object, .. } => {
                    let mut object = object.clone();
                    object["metadata"]["name"] = json!(format!("web-{}{i}", after.len()));
                    after.push(Arc::new(serde_json::from_value(object).unwrap()));
                }
                Op::Replace { object, .. } => {
                    let new: EndpointSlice = serde_json::from_value(object.clone()).unwrap();
                    let at = after.iter().position(|s| s.metadata.name == new.metadata.name).unwrap();
                    after[at] = Arc::new(new);
                }
                Op::Delete { name, .. } => after.retain(|s| s.metadata.name != *name),
                other => panic!("{other}"),
            }
        }
        after
    }

    fn sizes(slices: &[Arc<EndpointSlice>]) -> Vec<usize> {
        slices.iter().map(|s| s.endpoints.len()).collect()
    }

    #[test]
    fn the_first_slice() {
        let ops = plan(&service(json!({})), &[pod(1, json!({}))], &[], &node);
        let [Op::Create { object, .. }] = &ops[..] else { panic!("{ops:?}") };
        assert_eq!(object["metadata"]["labels"], json!({"team": "a", SERVICE_NAME: "web", MANAGED_BY: MANAGER}));
        assert_eq!(object["ports"], json!([{"name": "http", "port": 8080, "protocol": "TCP"}]));
        assert_eq!(
            object["endpoints"],
            json!([{"addresses": ["10.42.0.1"], "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": "n1", "zone": "z1", "targetRef": {"kind": "Pod", "namespace": "ns", "name": "p1", "uid": "u001"}}])
        );
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "s");
    }

    #[test]
    fn conditions_follow_the_pod() {
        let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let publish = json!({"spec": {"publishNotReadyAddresses": true}});
        for (service_extra, pod_extra, want) in [
            (json!({}), json!({}), Some((true, true, false))),
            (json!({}), unready.clone(), Some((false, false, false))),
            (json!({}), going.clone(), Some((false, true, true))),
            (publish.clone(), going, Some((true, true, true))),
            (publish, unready, Some((true, false, false))),
            (json!({}), json!({"status": {"phase": "Failed"}}), None),
            (json!({}), json!({"status": {"podIP": null, "podIPs": null}}), None),
            (json!({}), json!({"spec": {"nodeName": "gone"}}), None),
        ] {
            let got = endpoint(&service(service_extra), "IPv4", &pod(1, pod_extra.clone()), &node).map(|e| {
                let c = |k: &str| e["conditions"][k].as_bool().unwrap();
                (c("ready"), c("serving"), c("terminating"))
            });
            assert_eq!(got, want, "{pod_extra}");
        }
    }

    #[test]
    fn slices_fill_to_a_hundred_and_change_little() {
        let s = service(json!({}));
        let pods: Vec<_> = (1..=230).map(|i| pod(i, json!({}))).collect();
        let slices = carry_out(&[], &plan(&s, &pods, &[], &node));
        assert_eq!(sizes(&slices), [100, 100, 30]);
        assert_eq!(plan(&s, &pods, &slices, &node), [], "nothing to change");
        // One pod goes, one comes: one slice is written.
        let mut others = pods[1..].to_vec();
        others.push(pod(240, json!({})));
        let ops = plan(&s, &others, &slices, &node);
        assert_eq!(ops.len(), 1, "{ops:?}");
        // All go: one empty slice stays.
        let slices = carry_out(&slices, &plan(&s, &[], &slices, &node));
        assert_eq!(sizes(&slices), [0]);
        assert!(slices[0].ports.is_empty());
        assert_eq!(plan(&s, &[], &slices, &node), []);
        // And its place is taken when pods come back.
        let slices = carry_out(&slices, &plan(&s, &pods[..1], &slices, &node));
        assert_eq!(sizes(&slices), [1]);
    }

    #[test]
    fn both_families_and_headless() {
        let s = service(json!({"spec": {"clusterIP": "None", "ipFamilies": ["IPv4", "IPv6"]}}));
        let p = pod(
            1,
            json!({"spec": {"hostname": "h", "subdomain": "web"},
            "status": {"podIPs": [{"ip": "10.42.0.1"}, {"ip": "fd00::1"}]}}),
        );
        let slices = carry_out(&[], &plan(&s, &[p], &[], &node));
        let shown: Vec<_> =
            slices.iter().map(|s| (s.address_type.as_str(), s.endpoints[0].addresses[0].as_str())).collect();
        assert_eq!(shown, [("IPv4", "10.42.0.1"), ("IPv6", "fd00::1")]);
        assert_eq!(slices[0].endpoints[0].hostname.as_deref(), Some("h"));
        assert!(slices[0].metadata.labels.contains_key(HEADLESS_LABEL));
    }
}
