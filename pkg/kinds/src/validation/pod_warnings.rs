//! Warnings about pods and pod templates.
//!
//! Invariant: texts and their order are upstream's (`pkg/api/pod/warnings.go`).

use super::pod::all_containers;
use super::warnings::{claim_spec, fraction, hostname, ip, item_ips, node_label, node_selector_term};
use crate::access::{Access, same};
use isopod_api::Path;
use serde_json::Value;
use std::collections::BTreeSet;

const OLD_ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        r#"non-functional in v1.16+; use the "priorityClassName" field instead"#,
    ),
    ("security.alpha.kubernetes.io/sysctls", r#"non-functional in v1.11+; use the "sysctls" field instead"#),
    ("security.alpha.kubernetes.io/unsafe-sysctls", r#"non-functional in v1.11+; use the "sysctls" field instead"#),
];

/// Field in JSON, as upstream writes it, and why not to use it.
const OLD_VOLUMES: [(&str, &str, &str); 9] = [
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

const SECCOMP: &str = r#"non-functional in v1.27+; use the "seccompProfile" field instead"#;
const APPARMOR: &str = r#"deprecated since v1.30; use the "appArmorProfile" field instead"#;
const NULL_SELECTOR: &str = "a null labelSelector results in matching no pod";

pub fn pod(new: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some() {
        return Vec::new();
    }
    let mut all: Vec<String> = hostname(new, "the Pod's hostname").into_iter().collect();
    all.extend(spec_and_meta(new, &Path::root()));
    all
}

/// A PodTemplate object.
pub fn pod_template(new: &Value, old: Option<&Value>) -> Vec<String> {
    template_of(new, old, "template")
}

/// Workloads whose pods carry their name.
pub fn named_workload(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut all = workload_name(new, old);
    all.extend(template_of(new, old, "spec.template"));
    all
}

pub fn workload(new: &Value, old: Option<&Value>) -> Vec<String> {
    template_of(new, old, "spec.template")
}

fn workload_name(new: &Value, old: Option<&Value>) -> Vec<String> {
    hostname(new, "Pod names and hostnames").filter(|_| old.is_none()).into_iter().collect()
}

pub fn stateful_set(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut all = workload(new, old);
    for (i, c) in new.list("spec.volumeClaimTemplates").iter().enumerate() {
        let path = Path::new("spec.volumeClaimTemplates").index(i);
        let path = if old.is_some() { path.child("Spec") } else { path };
        all.extend(claim_spec(c.at("spec"), &path));
    }
    if new.int_or("spec.revisionHistoryLimit", 0) < 0 {
        all.push(
            "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended"
                .to_owned(),
        );
    }
    all
}

pub fn job(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut all = workload_name(new, old);
    all.extend(job_spec(new, old, "spec"));
    all
}

pub fn cron_job(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut all = workload_name(new, old);
    all.extend(job_spec(new, old, "spec.jobTemplate.spec"));
    if old.is_some() && new.text("spec.schedule").contains("TZ") {
        all.push("cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details".to_owned());
    }
    all
}

fn job_spec(new: &Value, old: Option<&Value>, at: &str) -> Vec<String> {
    if unchanged(new, old) {
        return Vec::new();
    }
    let spec = new.at(at);
    let mut all = Vec::new();
    let big = spec.int_or("completions", 0) > 100_000 && spec.int_or("parallelism", 0) > 10_000;
    if spec.text("completionMode") == "Indexed" && big {
        all.push(format!("{at}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"));
    }
    all.extend(spec_and_meta(spec.at("template"), &Path::new(at).child("template")));
    all
}

/// Updates that make no new generation are not looked at.
fn unchanged(new: &Value, old: Option<&Value>) -> bool {
    old.is_some_and(|o| same(o.at("spec"), new.at("spec")) && same(o.at("template"), new.at("template")))
}

fn template_of(new: &Value, old: Option<&Value>, at: &str) -> Vec<String> {
    if unchanged(new, old) || !new.has(at) {
        return Vec::new();
    }
    spec_and_meta(new.at(at), &Path::new(at))
}

fn spec_and_meta(pod: &Value, path: &Path) -> Vec<String> {
    let spec = pod.at("spec");
    let p = path.child("spec");
    let mut all = node_choice(spec, &p);
    let annotations = path.child("metadata").child("annotations");
    for (key, why) in OLD_ANNOTATIONS {
        if !pod.entry("metadata.annotations", key).is_null() {
            all.push(format!("{}: {why}", annotations.key(key)));
        }
    }
    all.extend(volumes(spec, &p));
    all.extend(overlaps(spec));
    all.extend(repeated(spec, "hostAliases", "ip", &p));
    all.extend(repeated(spec, "imagePullSecrets", "name", &p));
    for (i, s) in spec.list("imagePullSecrets").iter().enumerate().filter(|(_, s)| s.is_empty_at("name")) {
        let _ = s;
        all.push(format!("{}: invalid empty name \"\"", p.child("imagePullSecrets").index(i).child("name")));
    }
    for name in ["memory", "ephemeral-storage"] {
        all.extend(fraction(spec.at("overhead"), name, &p.child("overhead")));
    }
    const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
    if !spec.has("securityContext.seccompProfile") && !pod.entry("metadata.annotations", SECCOMP_POD).is_null() {
        all.push(format!("{}: {SECCOMP}", annotations.key(SECCOMP_POD)));
    }
    for (c, cp) in all_containers(spec, &p) {
        all.extend(security_annotations(pod, c, path));
        for list in ["memory", "ephemeral-storage"].into_iter().flat_map(|n| [("limits", n), ("requests", n)]) {
            let (field, name) = list;
            let quantities = c.at("resources").at(field);
            all.extend(fraction(quantities, name, &cp.child("resources").child(field)));
        }
        all.extend(hidden_env(c, &cp));
    }
    all.extend(ports(spec, &p));
    all.extend(port_names(spec, &p));
    if spec.int_or("terminationGracePeriodSeconds", 0) < 0 {
        let at = p.child("terminationGracePeriodSeconds");
        all.push(format!("{at}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    all.extend(pod_affinity(spec, &p));
    let servers = p.child("dnsConfig").child("nameservers");
    let given = spec.texts("dnsConfig.nameservers");
    all.extend(given.iter().enumerate().filter_map(|(i, s)| ip(&servers.index(i), s)));
    all.extend(item_ips(spec, "hostAliases", "ip", &p.child("hostAliases")));
    all
}

fn node_choice(spec: &Value, p: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for (k, _) in spec.entries("nodeSelector") {
        all.extend(node_label(k).map(|why| format!("{}: {why}", p.child("nodeSelector").key(k))));
    }
    let affinity = p.child("affinity").child("nodeAffinity");
    let required = affinity.child("requiredDuringSchedulingIgnoredDuringExecution").child("nodeSelectorTerms");
    let terms = spec.list("affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
    for (i, t) in terms.iter().enumerate() {
        all.extend(node_selector_term(t, false, &required.index(i)));
    }
    let preferred = affinity.child("preferredDuringSchedulingIgnoredDuringExecution");
    let terms = spec.list("affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution");
    for (i, t) in terms.iter().enumerate() {
        all.extend(node_selector_term(t.at("preference"), true, &preferred.index(i).child("preference")));
    }
    for (i, t) in spec.list("topologySpreadConstraints").iter().enumerate() {
        let at = p.child("topologySpreadConstraints").index(i);
        let key = t.text("topologyKey");
        all.extend(node_label(key).map(|why| format!("{}: {key} is {why}", at.child("topologyKey"))));
        if !t.has("labelSelector") {
            all.push(format!("{}: {NULL_SELECTOR}", at.child("labelSelector")));
        }
    }
    all
}

fn volumes(spec: &Value, p: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for (i, v) in spec.list("volumes").iter().enumerate() {
        let at = p.child("volumes").index(i);
        for (field, shown, why) in OLD_VOLUMES {
            if field == "cephfs" && v.has("ephemeral.volumeClaimTemplate") {
                let path = at.child("ephemeral").child("volumeClaimTemplate").child("spec");
                all.extend(claim_spec(v.at("ephemeral.volumeClaimTemplate.spec"), &path));
            }
            if v.has(field) {
                all.push(format!("{}: {why}", at.child(shown)));
            }
        }
    }
    all
}

fn repeated(spec: &Value, list: &str, key: &str, p: &Path) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let items = spec.list(list).iter().enumerate();
    items
        .filter(|(_, item)| !seen.insert(item.text(key)))
        .map(|(i, item)| format!("{}: duplicate {key} {:?}", p.child(list).index(i).child(key), item.text(key)))
        .collect()
}

/// Annotations where a field of the container should be.
fn security_annotations(pod: &Value, c: &Value, path: &Path) -> Vec<String> {
    let annotations = path.child("metadata").child("annotations");
    let mut all = Vec::new();
    let key = format!("container.seccomp.security.alpha.kubernetes.io/{}", c.text("name"));
    if !c.has("securityContext.seccompProfile") && !pod.entry("metadata.annotations", &key).is_null() {
        all.push(format!("{}: {SECCOMP}", annotations.key(&key)));
    }
    let key = format!("container.apparmor.security.beta.kubernetes.io/{}", c.text("name"));
    let template = !path.as_str().is_empty();
    if !template || c.has("securityContext.appArmorProfile") {
        return all;
    }
    if let Some(annotation) = pod.entry("metadata.annotations", &key).as_str() {
        let profile = pod.at("spec.securityContext.appArmorProfile");
        let as_annotation = match profile.text("type") {
            "RuntimeDefault" => "runtime/default".to_owned(),
            "Unconfined" => "unconfined".to_owned(),
            _ => format!("localhost/{}", profile.text("localhostProfile")),
        };
        if profile.is_null() || as_annotation != annotation {
            all.push(format!("{}: {APPARMOR}", annotations.key(&key)));
        }
    }
    all
}

/// A later variable of the same name that does not build on the earlier one.
fn hidden_env(c: &Value, p: &Path) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for (i, e) in c.list("env").iter().enumerate() {
        let name = e.text("name");
        if seen.insert(name) {
            continue;
        }
        let own = format!("$({name})");
        let builds_on = !e.has("valueFrom") && e.text("value") != own && e.text("value").contains(&own);
        if !builds_on {
            let at = p.child("env").index(i);
            all.push(format!("{at}: hides previous definition of {name:?}, which may be dropped when using apply"));
        }
    }
    all
}

fn ports(spec: &Value, p: &Path) -> Vec<String> {
    let mut seen: Vec<(&Value, Path)> = Vec::new();
    let mut all = Vec::new();
    for (c, cp) in all_containers(spec, p) {
        for (i, port) in c.list("ports").iter().enumerate() {
            let at = cp.child("ports").index(i);
            let (host, host_port) = (port.text("hostIP"), port.int_or("hostPort", 0));
            let (number, protocol) = (port.int_or("containerPort", 0), port.text("protocol"));
            if !host.is_empty() && host_port == 0 {
                let name = port.text("name");
                all.push(format!("{at}: hostIP set without hostPort: {{Name:{name} HostPort:0 ContainerPort:{number} Protocol:{protocol} HostIP:{host}}}"));
            }
            for (other, place) in &seen {
                if other.int_or("containerPort", 0) != number || other.text("protocol") != protocol {
                    continue;
                }
                let (other_host, other_port) = (other.text("hostIP"), other.int_or("hostPort", 0));
                if host == other_host && host_port == other_port {
                    all.push(format!("{at}: duplicate port definition with {place}"));
                } else if host_port == 0 || other_port == 0 {
                    all.push(format!("{at}: overlapping port definition with {place}"));
                } else if host_port == other_port && host.is_empty() != other_host.is_empty() {
                    all.push(format!("{at}: dangerously ambiguous port definition with {place}"));
                }
            }
            seen.push((port, at));
        }
    }
    all
}

fn port_names(spec: &Value, p: &Path) -> Vec<String> {
    let mut seen: Vec<(&str, Path)> = Vec::new();
    let mut all = Vec::new();
    for (c, cp) in all_containers(spec, p) {
        for (i, port) in c.list("ports").iter().enumerate().filter(|(_, port)| !port.is_empty_at("name")) {
            let (name, at) = (port.text("name"), cp.child("ports").index(i));
            match seen.iter().find(|(n, _)| *n == name) {
                Some((_, first)) => all.push(format!("{at}: duplicate port name {name:?} with {first}, services and probes that select ports by name will use {first}")),
                None => seen.push((name, at)),
            }
        }
    }
    all
}

fn pod_affinity(spec: &Value, p: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for kind in ["podAffinity", "podAntiAffinity"] {
        let affinity = spec.at("affinity").at(kind);
        let at = p.child("affinity").child(kind);
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        for (i, _) in affinity.list(required).iter().enumerate().filter(|(_, t)| !t.has("labelSelector")) {
            all.push(format!("{}: {NULL_SELECTOR}", at.child(required).index(i).child("labelSelector")));
        }
        let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
        let terms = affinity.list(preferred).iter().enumerate();
        for (i, _) in terms.filter(|(_, t)| !t.has("podAffinityTerm.labelSelector")) {
            let at = at.child(preferred).index(i).child("podAffinityTerm").child("labelSelector");
            all.push(format!("{at}: {NULL_SELECTOR}"));
        }
    }
    all
}

/// A file that a volume makes, and what makes it.
#[derive(PartialEq)]
struct File {
    path: String,
    source: String,
}

impl std::fmt::Display for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.source.as_str() {
            "" => write!(f, "{:?}", self.path),
            source => write!(f, "{:?} ({source})", self.path),
        }
    }
}

fn file(path: &str, source: &str) -> File {
    File { path: path.trim_end_matches('/').to_owned(), source: source.to_owned() }
}

fn items(v: &Value, source: &str) -> Vec<File> {
    v.list("items").iter().map(|i| file(i.text("path"), source)).collect()
}

/// Files of one volume that hide each other.
fn overlaps(spec: &Value) -> Vec<String> {
    let mut all = Vec::new();
    for v in spec.list("volumes") {
        let name = v.text("name");
        let named = |kind: &str, at: &str| format!("{kind} {:?}", v.text(at));
        let plain: [(&str, &dyn Fn() -> String); 3] = [
            ("configMap", &|| named("ConfigMap", "configMap.name")),
            ("secret", &|| named("Secret", "secret.secretName")),
            ("downwardAPI", &|| "DownwardAPI".to_owned()),
        ];
        for (field, what) in plain {
            let told = |c| format!("volume {name:?} ({}): overlapping paths: {c}", what());
            all.extend(collisions(items(v.at(field), "")).map(told));
        }
        let mut files = Vec::new();
        for s in v.list("projected.sources") {
            if s.as_object().is_none_or(|m| m.values().all(Value::is_null)) {
                all.push(format!("volume {name:?} (Projected) has no sources provided"));
            }
            files.extend(projected_files(s));
        }
        all.extend(collisions(files).map(|c| format!("volume {name:?} (Projected): overlapping paths: {c}")));
    }
    all
}

fn projected_files(s: &Value) -> Vec<File> {
    if s.has("configMap.items") {
        return items(s.at("configMap"), &format!("ConfigMap {:?}", s.text("configMap.name")));
    }
    if s.has("secret.items") {
        return items(s.at("secret"), &format!("Secret {:?}", s.text("secret.name")));
    }
    if s.has("downwardAPI.items") {
        return items(s.at("downwardAPI"), "DownwardAPI");
    }
    if s.has("serviceAccountToken") {
        return vec![file(s.text("serviceAccountToken.path"), "ServiceAccountToken")];
    }
    if s.has("clusterTrustBundle") {
        let bundle = s.at("clusterTrustBundle");
        let name = if bundle.has("name") { bundle.text("name") } else { bundle.text("signerName") };
        return vec![file(bundle.text("path"), &format!("ClusterTrustBundle {name:?}"))];
    }
    let parts = [
        ("certificateChainPath", "PodCertificate chain"),
        ("keyPath", "PodCertificate key"),
        ("credentialBundlePath", "PodCertificate credential bundle"),
    ];
    let given = parts.iter().map(|(f, what)| (s.at("podCertificate").text(f), what));
    given.filter(|(path, _)| !path.is_empty()).map(|(path, what)| file(path, what)).collect()
}

fn collisions(files: Vec<File>) -> impl Iterator<Item = String> {
    let under = |a: &File, b: &File| {
        a.path.strip_prefix(&b.path).is_some_and(|below| below.is_empty() || below.starts_with('/'))
    };
    let mut all = Vec::new();
    for (i, f) in files.iter().enumerate().filter(|(_, f)| !f.path.is_empty()) {
        for other in files[..i].iter().filter(|o| !o.path.is_empty()) {
            if under(f, other) || under(other, f) {
                all.push(format!("{f} with {other}"));
            }
        }
    }
    all.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn warned(spec: Value) -> Vec<String> {
        spec_and_meta(&json!({"metadata": {}, "spec": spec}), &Path::root())
    }

    #[test]
    fn a_plain_pod_is_silent() {
        let spec = json!({"containers": [{"name": "a", "image": "b", "ports": [{"containerPort": 80, "protocol": "TCP"}],
            "resources": {"limits": {"memory": "1Gi"}}}], "terminationGracePeriodSeconds": 30});
        assert_eq!(warned(spec), Vec::<String>::new());
    }

    #[test]
    fn what_surprises_in_containers() {
        let spec = json!({"containers": [{"name": "a", "resources": {"requests": {"memory": "100m"}},
            "env": [{"name": "X", "value": "1"}, {"name": "X", "value": "$(X)2"}, {"name": "X", "value": "3"}],
            "ports": [{"name": "h", "containerPort": 80, "protocol": "TCP"},
                      {"name": "h", "containerPort": 80, "protocol": "TCP"},
                      {"containerPort": 80, "protocol": "TCP", "hostPort": 8080},
                      {"containerPort": 81, "protocol": "TCP", "hostIP": "1.2.3.4"}]}]});
        assert_eq!(
            warned(spec),
            [
                "spec.containers[0].resources.requests[memory]: fractional byte value \"100m\" is invalid, must be an integer",
                "spec.containers[0].env[2]: hides previous definition of \"X\", which may be dropped when using apply",
                "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
                "spec.containers[0].ports[2]: overlapping port definition with spec.containers[0].ports[0]",
                "spec.containers[0].ports[2]: overlapping port definition with spec.containers[0].ports[1]",
                "spec.containers[0].ports[3]: hostIP set without hostPort: {Name: HostPort:0 ContainerPort:81 Protocol:TCP HostIP:1.2.3.4}",
                "spec.containers[0].ports[1]: duplicate port name \"h\" with spec.containers[0].ports[0], services and probes that select ports by name will use spec.containers[0].ports[0]",
            ]
        );
    }

    #[test]
    fn volumes_and_placement() {
        let spec = json!({
            "nodeSelector": {"beta.kubernetes.io/os": "linux"},
            "topologySpreadConstraints": [{"topologyKey": "zone"}],
            "hostAliases": [{"ip": "1.1.1.1"}, {"ip": "1.1.1.1"}],
            "imagePullSecrets": [{}],
            "volumes": [{"name": "v", "gitRepo": {}}, {"name": "c", "configMap": {"name": "m",
                "items": [{"key": "a", "path": "p"}, {"key": "b", "path": "p/q"}]}},
                {"name": "p", "projected": {"sources": [{"configMap": {"name": "m", "items": [{"key": "a", "path": "t"}]}},
                    {"serviceAccountToken": {"path": "t"}}]}}],
        });
        assert_eq!(
            warned(spec),
            [
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod",
                "spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+",
                "volume \"c\" (ConfigMap \"m\"): overlapping paths: \"p/q\" with \"p\"",
                "volume \"p\" (Projected): overlapping paths: \"t\" (ServiceAccountToken) with \"t\" (ConfigMap \"m\")",
                "spec.hostAliases[1].ip: duplicate ip \"1.1.1.1\"",
                "spec.imagePullSecrets[0].name: invalid empty name \"\"",
            ]
        );
    }

    #[test]
    fn templates_are_looked_at_when_they_change() {
        let old = json!({"metadata": {"name": "a.b"}, "spec": {"template": {"spec": {"hostAliases": [{"ip": "1.1.1.1"}, {"ip": "1.1.1.1"}]}}}});
        let mut new = old.clone();
        assert_eq!(named_workload(&old, None).len(), 2);
        assert!(named_workload(&new, Some(&old)).is_empty());
        new["spec"]["replicas"] = json!(2);
        assert_eq!(
            named_workload(&new, Some(&old)),
            ["spec.template.spec.hostAliases[1].ip: duplicate ip \"1.1.1.1\""]
        );
    }
}
