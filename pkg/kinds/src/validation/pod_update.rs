//! What may change in a pod: by an update, and through `status`, `ephemeralcontainers` and `resize`.

use super::check::{child, dns_subdomain, non_negative};
use super::pod::{APPARMOR, MIRROR, metadata_and_spec, pod_annotations};
use super::resources::amount;
use super::scheduling;
use crate::access::{self, Access, list_mut, same};
use crate::kinds::pod::qos_class;
use crate::metadata::{immutable, label_name};
use isopod_api::names;
use isopod_api::{Difference, FieldError, FieldErrors, Path};
use serde_json::Value;
use std::collections::BTreeMap;

const UPDATABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

const POD_SPEC: &str = "io.k8s.api.core.v1.PodSpec";

pub fn update(new: &Value, old: &Value) -> FieldErrors {
    let mut errs = metadata_and_spec(new);
    errs.extend(annotation_changes(new, old));
    let (n, o, path) = (new.at("spec"), old.at("spec"), Path::new("spec"));
    for list in ["containers", "initContainers"] {
        if n.list(list).len() != o.list(list).len() {
            errs.push(FieldError::forbidden(&path.child(list), "pod updates may not add or remove containers"));
            return errs;
        }
        for (i, c) in n.list(list).iter().enumerate() {
            let p = path.child(list).index(i);
            errs.extend(super::check::required(c, "image", &p));
            errs.extend(super::container::image_spaces(c, &p));
        }
    }
    let p = path.child("activeDeadlineSeconds");
    match (n.int("activeDeadlineSeconds"), o.int("activeDeadlineSeconds")) {
        (Some(a), _) if !(0..=i64::from(i32::MAX)).contains(&a) => {
            errs.push(FieldError::invalid(&p, a, names::range_error(0, i64::from(i32::MAX))));
            return errs;
        }
        (Some(a), Some(b)) if b < a => {
            errs.push(FieldError::invalid(&p, a, "must be less than or equal to previous value"));
            return errs;
        }
        (None, Some(_)) => {
            let m = "must not update from a positive integer to nil value";
            errs.push(FieldError::invalid(&p, Value::Null, m));
        }
        _ => {}
    }
    errs.extend(added_tolerations(n, o, &path.child("tolerations")));
    errs.extend(removed_gates(n, o, &path.child("schedulingGates")));
    if same(n, o) {
        return errs;
    }
    let mut munged = n.clone();
    for list in ["containers", "initContainers"] {
        for (c, before) in list_mut(&mut munged, list).iter_mut().zip(o.list(list)) {
            access::keep(c, before, "image");
        }
    }
    for f in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        access::keep(&mut munged, o, f);
    }
    if o.int_or("terminationGracePeriodSeconds", 0) < 0 && n.int("terminationGracePeriodSeconds") == Some(1) {
        access::keep(&mut munged, o, "terminationGracePeriodSeconds");
    }
    if !o.list("schedulingGates").is_empty() {
        errs.extend(narrowed(&mut munged, o, &path));
    }
    if !same(&munged, o) {
        let change = Difference { old: o.clone(), new: munged, definition: POD_SPEC, inlined: "" };
        errs.push(FieldError::forbidden(&path, format!("{UPDATABLE}\n")).about(change));
    }
    errs
}

/// A gated pod's placement may be narrowed; what it narrowed is taken back in `munged`.
fn narrowed(munged: &mut Value, old: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let now = munged.at("nodeSelector").clone();
    let kept = |(k, v): (&str, &Value)| now.get(k) == Some(v);
    if !old.entries("nodeSelector").into_iter().all(kept) {
        let m = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errs.push(FieldError::invalid(&path.child("nodeSelector"), now, m));
    }
    access::keep(munged, old, "nodeSelector");
    let (n, o) = (munged.at("affinity.nodeAffinity").clone(), old.at("affinity.nodeAffinity"));
    if !same(&n, o) {
        errs.extend(scheduling::node_affinity_only_narrows(&n, o, &child(path, "affinity.nodeAffinity")));
        access::keep(munged, old, "affinity.nodeAffinity");
    }
    errs
}

fn annotation_changes(new: &Value, old: &Value) -> FieldErrors {
    let path = child(&Path::new("metadata"), "annotations");
    let (n, o) = (new.at("metadata.annotations"), old.at("metadata.annotations"));
    let mut errs = Vec::new();
    for (k, v) in o.entries("") {
        if n.get(k) == Some(v) {
            continue;
        }
        if k.starts_with(APPARMOR) {
            errs.push(FieldError::forbidden(&path.key(k), "may not remove or update AppArmor annotations"));
        }
        if k == MIRROR {
            errs.push(FieldError::forbidden(&path.key(k), "may not remove or update mirror pod annotation"));
        }
    }
    for (k, _) in n.entries("").into_iter().filter(|(k, _)| o.get(*k).is_none()) {
        if k.starts_with(APPARMOR) {
            errs.push(FieldError::forbidden(&path.key(k), "may not add AppArmor annotations"));
        }
        if k == MIRROR {
            errs.push(FieldError::forbidden(&path.key(k), "may not add mirror pod annotation"));
        }
    }
    errs
}

fn added_tolerations(new: &Value, old: &Value, path: &Path) -> FieldErrors {
    let bare = |t: &Value| {
        let mut t = t.clone();
        access::unset(&mut t, "tolerationSeconds");
        t
    };
    let now: Vec<Value> = new.list("tolerations").iter().map(bare).collect();
    if old.list("tolerations").iter().map(bare).any(|t| !now.iter().any(|n| same(n, &t))) {
        let m = "existing toleration can not be modified except its tolerationSeconds";
        return vec![FieldError::forbidden(path, m)];
    }
    scheduling::tolerations(new.list("tolerations"), path)
}

fn removed_gates(new: &Value, old: &Value, path: &Path) -> FieldErrors {
    let before: Vec<&str> = old.list("schedulingGates").iter().map(|g| g.text("name")).collect();
    let added = new.list("schedulingGates").iter().enumerate().filter(|(_, g)| !before.contains(&g.text("name")));
    let say = |(i, g): (usize, &Value)| {
        let m = format!("only deletion is allowed, but found new scheduling gate '{}'", g.text("name"));
        FieldError::forbidden(&path.index(i).child("name"), m)
    };
    added.map(say).collect()
}

pub fn status(new: &Value, old: &Value) -> FieldErrors {
    let mut errs = annotation_changes(new, old);
    errs.extend(pod_annotations(new.at("metadata"), new.at("spec"), &child(&Path::new("metadata"), "annotations")));
    let (n, o, path) = (new.at("status"), old.at("status"), Path::new("status"));
    for (i, c) in n.list("conditions").iter().enumerate() {
        let p = path.child("conditions").index(i);
        if let Some(g) = c.int("observedGeneration").filter(|g| *g < 0) {
            errs.push(FieldError::invalid(&p.child("observedGeneration"), g, "must be a non-negative integer"));
        }
        if !matches!(c.text("type"), "PodScheduled" | "Ready" | "Initialized") {
            errs.extend(label_name(c.text("type"), &p.child("Type")));
        }
    }
    let (nominated, p) = (n.text("nominatedNodeName"), path.child("nominatedNodeName"));
    if !nominated.is_empty() && nominated != o.text("nominatedNodeName") {
        errs.extend(dns_subdomain(nominated, &p));
        if !old.text("spec.nodeName").is_empty() {
            errs.push(FieldError::forbidden(&p, "may not be set on pods that are already bound to a node"));
        }
    }
    if let Some(g) = n.int("observedGeneration").filter(|g| *g < 0) {
        errs.push(FieldError::invalid(&path.child("observedGeneration"), g, "must be a non-negative integer"));
    }
    errs.extend(immutable(n, o, "qosClass", &path));
    for list in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        errs.extend(no_resurrection(n, o, list, old.at("spec"), &path.child(list)));
    }
    errs.extend(addresses(n, o, "podIP", "podIPs", &path));
    errs.extend(addresses(n, o, "hostIP", "hostIPs", &path));
    errs
}

/// A container that ended for good does not come back.
fn no_resurrection(new: &Value, old: &Value, list: &str, spec: &Value, path: &Path) -> FieldErrors {
    let containers = match list {
        "containerStatuses" => spec.list("containers"),
        "initContainerStatuses" => spec.list("initContainers"),
        _ => &[],
    };
    let restart_all =
        |c: &Value| c.list("restartPolicyRules").iter().any(|r| r.text("action") == "RestartAllContainers");
    if list != "ephemeralContainerStatuses"
        && spec.list("containers").iter().chain(spec.list("initContainers")).any(restart_all)
    {
        return Vec::new();
    }
    let mut errs = Vec::new();
    for (i, before) in old.list(list).iter().enumerate().filter(|(_, s)| s.has("state.terminated")) {
        let name = before.text("name");
        let lives = new.list(list).iter().any(|s| s.text("name") == name && !s.has("state.terminated"));
        let code = before.int_or("state.terminated.exitCode", 0);
        let container = containers.iter().find(|c| c.text("name") == name);
        if lives && !container.is_some_and(|c| may_restart(c, spec, code)) {
            let m = "may not be transitioned to non-terminated state";
            errs.push(FieldError::forbidden(&path.index(i).child("state"), m));
        }
    }
    errs
}

/// Whether a container's policies restart it after this exit code.
fn may_restart(container: &Value, spec: &Value, code: i64) -> bool {
    for rule in container.list("restartPolicyRules") {
        let listed = rule.list("exitCodes.values").iter().any(|v| v.as_i64() == Some(code));
        let matches = if rule.text("exitCodes.operator") == "NotIn" { !listed } else { listed };
        if matches && rule.text("action").starts_with("Restart") {
            return true;
        }
    }
    let own = container.text("restartPolicy");
    match if own.is_empty() { spec.text("restartPolicy") } else { own } {
        "Always" => true,
        "OnFailure" => code != 0,
        _ => false,
    }
}

/// `podIP` and `podIPs`, `hostIP` and `hostIPs`: the first of the many is the one.
fn addresses(new: &Value, old: &Value, one: &str, many: &str, path: &Path) -> FieldErrors {
    let of = |s: &Value| -> Vec<String> { s.list(many).iter().map(|i| i.text("ip").to_owned()).collect() };
    let (now, before) = (of(new), of(old));
    let before: Vec<&str> = before.iter().map(String::as_str).collect();
    let (p, ip) = (path.child(many), new.text(one));
    let mut errs = Vec::new();
    for (i, ip) in now.iter().enumerate() {
        errs.extend(names::ip_legacy(&p.index(i), ip, &before));
    }
    let refs: Vec<&str> = now.iter().map(String::as_str).collect();
    if !super::check::at_most_one_of_each_family(&refs) {
        let m = "may specify no more than one IP for each IP family";
        errs.push(FieldError::invalid(&p, new.at(many).clone(), m));
    }
    match now.first() {
        Some(first) if first != ip && (one == "hostIP" || !ip.is_empty()) => {
            let m = format!("must be equal to `{one}`");
            errs.push(FieldError::invalid(&p.index(0).child("ip"), first.as_str(), m));
        }
        first if one == "podIP" && first.is_some() == ip.is_empty() => {
            let m = "podIP and podIPs must either both be set or both be unset";
            errs.push(FieldError::invalid(&p, new.at(many).clone(), m));
        }
        _ => {}
    }
    errs
}

/// An update through `ephemeralcontainers`, `resize` …
pub fn other(subresource: &str, new: &Value, old: &Value) -> FieldErrors {
    match subresource {
        "ephemeralcontainers" => ephemeral(new, old),
        "resize" => resize(new, old),
        _ => Vec::new(),
    }
}

fn ephemeral(new: &Value, old: &Value) -> FieldErrors {
    if old.at("metadata.annotations").get(MIRROR).is_some() {
        return vec![FieldError::forbidden(&Path::root(), "static pods do not support ephemeral containers")];
    }
    let mut errs = metadata_and_spec(new);
    errs.extend(annotation_changes(new, old));
    let p = child(&Path::new("spec"), "ephemeralContainers");
    let now: BTreeMap<&str, &Value> =
        new.list("spec.ephemeralContainers").iter().map(|c| (c.text("name"), c)).collect();
    for before in old.list("spec.ephemeralContainers") {
        let name = before.text("name");
        match now.get(name) {
            None => {
                let m = format!("existing ephemeral containers {name:?} may not be removed\n");
                errs.push(FieldError::forbidden(&p, m));
            }
            Some(c) if !same(c, before) => {
                let m = format!("existing ephemeral containers {name:?} may not be changed\n");
                let (old, new) = (before.clone(), Value::clone(c));
                let definition = "io.k8s.api.core.v1.EphemeralContainer";
                let change = Difference { old, new, definition, inlined: "" };
                errs.push(FieldError::forbidden(&p, m).about(change));
            }
            _ => {}
        }
    }
    errs
}

fn resize(new: &Value, old: &Value) -> FieldErrors {
    if old.at("metadata.annotations").get(MIRROR).is_some() {
        return vec![FieldError::forbidden(&Path::root(), "static pods cannot be resized")];
    }
    if old.text("spec.os.name") == "windows" {
        return vec![FieldError::forbidden(&Path::root(), "windows pods cannot be resized")];
    }
    let path = Path::new("spec");
    let mut errs = metadata_and_spec(new);
    if qos_class(new) != old.text("status.qosClass") && !old.text("status.qosClass").is_empty() {
        let m = "Pod QOS Class may not change as a result of resizing";
        errs.push(FieldError::invalid(&path, new.text("status.qosClass"), m));
    }
    for list in ["containers", "initContainers"] {
        let (now, before, p) = (new.at("spec").list(list), old.at("spec").list(list), path.child(list));
        if now.len() != before.len() {
            let m = format!("{list} may not be added or removed on resize");
            errs.push(FieldError::forbidden(&p, m));
            return errs;
        }
        for (i, (n, o)) in now.iter().zip(before).enumerate() {
            if n.text("name") != o.text("name") {
                let m = format!("{list} may not be renamed or reordered on resize");
                errs.push(FieldError::forbidden(&p.index(i).child("name"), m));
                return errs;
            }
            errs.extend(resized_container(n, o, list, &p.index(i)));
        }
    }
    errs
}

fn resized_container(new: &Value, old: &Value, list: &str, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    for kind in ["requests", "limits"] {
        for (name, _) in old.entries(&format!("resources.{kind}")) {
            if new.at("resources").entry(kind, name).is_null() {
                let m = format!("resource {kind} cannot be removed");
                errs.push(FieldError::forbidden(&child(path, &format!("resources.{kind}")), m));
                break;
            }
        }
    }
    let mut munged = new.clone();
    for kind in ["requests", "limits"] {
        for name in ["cpu", "memory"] {
            access::keep(&mut munged, old, &format!("resources.{kind}.{name}"));
        }
    }
    let quantities_only = {
        let (a, b) = (munged.at("resources"), old.at("resources"));
        ["requests", "limits"].iter().all(|k| {
            let (x, y) = (a.entries(k), b.entries(k));
            x.len() == y.len() && x.iter().all(|(n, v)| amount(v) == amount(b.entry(k, n)))
        })
    };
    if !same(&munged, old) && !quantities_only {
        let m = match list {
            "containers" => "only cpu and memory resources are mutable",
            _ => "only cpu and memory resources for init or sidecar containers are mutable",
        };
        let p = if list == "containers" { Path::new("spec") } else { path.clone() };
        errs.push(FieldError::forbidden(&p, m));
    }
    errs
}

/// The body of `pods/binding`.
pub fn binding(b: &Value) -> FieldErrors {
    let (kind, name, p) = (b.text("target.kind"), b.text("target.name"), Path::new("target"));
    let mut errs = Vec::new();
    if !matches!(kind, "" | "Node") {
        errs.push(FieldError::not_supported(&p.child("kind"), kind, &["Node", "<empty>"]));
    }
    if name.is_empty() {
        errs.push(FieldError::required(&p.child("name"), ""));
    } else if matches!(kind, "" | "Node") {
        errs.extend(dns_subdomain(name, &p.child("name")));
    }
    errs
}

/// Options of `pods/log`, as an object.
pub fn log_options(o: &Value) -> FieldErrors {
    let mut errs = non_negative(o, &["tailLines"], &Path::root());
    if let Some(n) = o.int("limitBytes").filter(|n| *n < 1) {
        errs.push(FieldError::invalid(&Path::new("limitBytes"), n, "must be greater than 0"));
    }
    if o.has("sinceSeconds") && o.has("sinceTime") {
        let m = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        errs.push(FieldError::forbidden(&Path::root().key(""), m));
    } else if let Some(n) = o.int("sinceSeconds").filter(|n| *n < 1) {
        errs.push(FieldError::invalid(&Path::new("sinceSeconds"), n, "must be greater than 0"));
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Value {
        json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {
                "restartPolicy": "Never", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30, "nodeName": "a",
                "containers": [{"name": "c", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}],
                "tolerations": [{"key": "a", "operator": "Exists"}],
            },
            "status": {"qosClass": "BestEffort", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                "containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 1}}}]},
        })
    }

    fn say(errs: FieldErrors) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_may_change() {
        let old = pod();
        let with = |f: &dyn Fn(&mut Value)| {
            let mut p = pod();
            f(&mut p);
            say(update(&p, &old))
        };
        assert_eq!(with(&|p| p["spec"]["containers"][0]["image"] = "j".into()), [""; 0]);
        assert_eq!(with(&|p| p["spec"]["activeDeadlineSeconds"] = 5.into()), [""; 0]);
        assert_eq!(
            with(&|p| p["spec"]["tolerations"].as_array_mut().unwrap().push(json!({"key": "b", "operator": "Exists"}))),
            [""; 0]
        );
        let errs = with(&|p| p["spec"]["nodeName"] = "b".into());
        assert!(
            errs[0].starts_with(
                "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
            ),
            "{errs:?}"
        );
        assert_eq!(
            with(&|p| p["spec"]["tolerations"] = json!([])),
            ["spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"]
        );
        let errs = with(&|p| p["spec"]["containers"] = json!([]));
        assert_eq!(errs.last().unwrap(), "spec.containers: Forbidden: pod updates may not add or remove containers");
    }

    #[test]
    fn statuses() {
        let old = pod();
        let with = |f: &dyn Fn(&mut Value)| {
            let mut p = pod();
            f(&mut p);
            say(status(&p, &old))
        };
        assert_eq!(with(&|_| {}), [""; 0]);
        assert_eq!(
            with(&|p| p["status"]["containerStatuses"][0]["state"] = json!({"running": {}})),
            ["status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"]
        );
        assert_eq!(
            with(&|p| p["status"]["qosClass"] = "Burstable".into()),
            ["status.qosClass: Invalid value: \"Burstable\": field is immutable"]
        );
        assert_eq!(
            with(&|p| p["status"]["podIP"] = "10.0.0.2".into()),
            ["status.podIPs[0].ip: Invalid value: \"10.0.0.1\": must be equal to `podIP`"]
        );
        assert_eq!(say(binding(&json!({"target": {"kind": "Pod"}}))).len(), 2);
    }
}
