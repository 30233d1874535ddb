//! Pod specs, wherever they stand, and what only a pod or only a template obeys.

use super::check::{child, dns_label, dns_subdomain, forbid_each, invalid_each, non_negative, one_of, supported};
use super::container::{self, Pod};
use super::resources::{amount, is_huge_page, overhead, pod_requirements};
use super::{scheduling, security, volume};
use crate::access::Access;
use crate::metadata::{annotations, label_name, labels};
use isopod_api::names;
use isopod_api::quantity::Quantity;
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;
use std::collections::BTreeSet;

pub const MIRROR: &str = "kubernetes.io/config.mirror";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
pub const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

pub fn create(pod: &Value) -> FieldErrors {
    let spec_path = Path::new("spec");
    let mut errs = metadata_and_spec(pod);
    if !pod.list("spec.ephemeralContainers").is_empty() {
        errs.push(FieldError::forbidden(&spec_path.child("ephemeralContainers"), "cannot be set on create"));
    }
    if !pod.text("spec.nodeName").is_empty() && !pod.list("spec.schedulingGates").is_empty() {
        let m = "cannot be set until all schedulingGates have been cleared";
        errs.push(FieldError::forbidden(&spec_path.child("nodeName"), m));
    }
    errs.extend(profiles_match(pod, &spec_path));
    errs
}

/// What a create and an update both check, `metadata` itself excepted.
pub fn metadata_and_spec(pod: &Value) -> FieldErrors {
    let (spec, path) = (pod.at("spec"), Path::new("spec"));
    let mut errs = pod_annotations(pod.at("metadata"), spec, &child(&Path::new("metadata"), "annotations"));
    errs.extend(pod_spec(spec, Some(pod.at("metadata")), &path));
    if spec.text("serviceAccountName").is_empty() {
        for (i, v) in spec.list("volumes").iter().enumerate() {
            for (j, s) in v.list("projected.sources").iter().enumerate() {
                if s.has("serviceAccountToken") {
                    let p = child(&path.child("volumes").index(i), "projected.sources").index(j);
                    let m = "must not be specified when serviceAccountName is not set";
                    errs.push(FieldError::forbidden(&p.child("serviceAccountToken"), m));
                }
            }
        }
    }
    errs.extend(non_negative(spec, &["terminationGracePeriodSeconds"], &path));
    for list in ["containers", "initContainers"] {
        for (i, c) in spec.list(list).iter().enumerate() {
            errs.extend(container::image_spaces(c, &path.child(list).index(i)));
        }
    }
    errs
}

/// A pod template: in workloads and in PodTemplate.
pub fn template(t: &Value, path: &Path) -> FieldErrors {
    let (meta, spec) = (t.at("metadata"), t.at("spec"));
    let mut errs = labels(meta.at("labels"), &path.child("labels"));
    errs.extend(annotations(meta.at("annotations"), &path.child("annotations")));
    errs.extend(pod_annotations(meta, spec, &path.child("annotations")));
    errs.extend(pod_spec(spec, None, &path.child("spec")));
    errs.extend(profiles_match(t, &path.child("spec")));
    if !spec.list("ephemeralContainers").is_empty() {
        let m = "ephemeral containers not allowed in pod template";
        errs.push(FieldError::forbidden(&child(path, "spec.ephemeralContainers"), m));
    }
    errs
}

/// Every container with its path: init, main and ephemeral ones, in upstream's order.
pub fn all_containers<'a>(spec: &'a Value, path: &'a Path) -> impl Iterator<Item = (&'a Value, Path)> + 'a {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(move |list| spec.list(list).iter().enumerate().map(move |(i, c)| (c, path.child(list).index(i))))
}

/// Annotations that mean something for pods.
pub fn pod_annotations(meta: &Value, spec: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let all = meta.at("annotations");
    if let Some(v) = all.get(MIRROR).and_then(Value::as_str)
        && spec.text("nodeName").is_empty()
    {
        let m = "must set spec.nodeName if mirror pod annotation is set";
        errs.push(FieldError::invalid(&path.key(MIRROR), v, m));
    }
    const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
    if let Some(v) = all.get(COST).and_then(Value::as_str) {
        let padded = v.len() > 1 && v.trim_start_matches('-').starts_with('0');
        let plain = !padded && !v.starts_with('+');
        if !plain || v.parse::<i32>().is_err() {
            errs.push(FieldError::invalid(&path.key(COST), v, "must be a 32bit integer"));
        }
    }
    for (k, v) in all.entries("") {
        let v = v.as_str().unwrap_or("");
        if k == SECCOMP_POD || k.starts_with(SECCOMP_CONTAINER) {
            let known = ["runtime/default", "docker/default", "unconfined"].contains(&v);
            match v.strip_prefix("localhost/") {
                Some(file) => errs.extend(super::check::descending_path(file, &path.child(k))),
                None if known => {}
                None => errs.push(FieldError::invalid(&path.child(k), v, "must be a valid seccomp profile")),
            }
        }
        if let Some(name) = k.strip_prefix(APPARMOR) {
            if !all_containers(spec, path).any(|(c, _)| c.text("name") == name) {
                errs.push(FieldError::invalid(&path.key(k), name, "container not found"));
            }
            if !(matches!(v, "" | "runtime/default" | "unconfined") || v.starts_with("localhost/")) {
                let m = format!("invalid AppArmor profile name: {v:?}");
                errs.push(FieldError::invalid(&path.key(k), v, m));
            }
        }
    }
    errs
}

/// Old annotations and newer fields about seccomp and AppArmor agree.
fn profiles_match(pod: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let (spec, notes) = (pod.at("spec"), pod.at("metadata.annotations"));
    let check = |profile: &Value, note: &Value, noun: &str, p: Path| {
        let (Some(note), false) = (note.as_str(), profile.is_null()) else { return None };
        let ok = match profile.text("type") {
            "Unconfined" => note == "unconfined",
            "RuntimeDefault" => note == "runtime/default" || (noun == "seccomp" && note == "docker/default"),
            "Localhost" => match note.strip_prefix("localhost/") {
                Some(file) if file != profile.text("localhostProfile") => {
                    let m = format!("{noun} profile in annotation and field must match");
                    return Some(FieldError::forbidden(&p.child("localhostProfile"), m));
                }
                file => file.is_some(),
            },
            _ => true,
        };
        let m = format!("{noun} type in annotation and field must match");
        (!ok).then(|| FieldError::forbidden(&p.child("type"), m))
    };
    let none = Value::Null;
    let note = |key: &str| notes.get(key).unwrap_or(&none);
    let pod_seccomp = spec.at("securityContext.seccompProfile");
    errs.extend(check(pod_seccomp, note(SECCOMP_POD), "seccomp", child(path, "securityContext.seccompProfile")));
    for (c, p) in all_containers(spec, path) {
        let key = format!("{SECCOMP_CONTAINER}{}", c.text("name"));
        let p = child(&p, "securityContext.seccompProfile");
        errs.extend(check(c.at("securityContext.seccompProfile"), note(&key), "seccomp", p));
    }
    for (c, p) in all_containers(spec, path) {
        let own = c.at("securityContext.appArmorProfile");
        let profile = if own.is_null() { spec.at("securityContext.appArmorProfile") } else { own };
        let key = format!("{APPARMOR}{}", c.text("name"));
        let p = child(&p, "securityContext.appArmorProfile");
        errs.extend(check(profile, note(&key), "apparmor", p));
    }
    errs
}

/// `meta` is the pod's metadata, `None` for a template.
pub fn pod_spec(spec: &Value, meta: Option<&Value>, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let grace = spec.int("terminationGracePeriodSeconds");
    if grace.is_none() {
        errs.push(FieldError::required(&path.child("terminationGracePeriodSeconds"), ""));
    }
    let pod_name = meta.map_or("", |m| m.text("name"));
    let (volumes, e) = volume::volumes(spec.list("volumes"), pod_name, &path.child("volumes"));
    errs.extend(e);
    let claims = spec.list("resourceClaims");
    let pod = Pod {
        volumes,
        claims: claims.iter().map(|c| c.text("name")).filter(|n| !n.is_empty()).collect(),
        grace,
        restart_policy: spec.text("restartPolicy"),
        os: spec.text("os.name"),
        host_users: spec.at("hostUsers").as_bool().unwrap_or(true),
    };
    errs.extend(resource_claims(claims, meta, &path.child("resourceClaims")));
    let main = spec.list("containers");
    errs.extend(container::containers(main, &pod, &path.child("containers")));
    let init = path.child("initContainers");
    errs.extend(container::init_containers(spec.list("initContainers"), main, &pod, &init));
    let p = path.child("ephemeralContainers");
    errs.extend(container::ephemeral_containers(spec.list("ephemeralContainers"), spec, &pod, &p));
    errs.extend(pod_resources(spec, &pod.claims, path));
    errs.extend(host_network_ports(spec, meta.is_some(), path));
    errs.extend(one_of(spec, "restartPolicy", &["Always", "OnFailure", "Never"], path));
    errs.extend(one_of(spec, "dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], path));
    errs.extend(labels(spec.at("nodeSelector"), &path.child("nodeSelector")));
    errs.extend(security::pod(spec.at("securityContext"), spec, &path.child("securityContext")));
    if spec.flag("shareProcessNamespace") && spec.flag("hostPID") {
        let m = "ShareProcessNamespace and HostPID cannot both be enabled";
        errs.push(FieldError::invalid(&path.child("shareProcessNamespace"), true, m));
    }
    errs.extend(scheduling::affinity(spec.at("affinity"), &path.child("affinity")));
    errs.extend(dns_config(spec, &path.child("dnsConfig")));
    for (i, g) in spec.list("readinessGates").iter().enumerate() {
        let p = path.child("readinessGates").index(i).child("conditionType");
        errs.extend(label_name(g.text("conditionType"), &p));
    }
    errs.extend(scheduling_gates(spec.list("schedulingGates"), &path.child("schedulingGates")));
    let spread = path.child("topologySpreadConstraints");
    errs.extend(scheduling::topology_spread(spec.list("topologySpreadConstraints"), &spread));
    errs.extend(host_process(spec, path));
    errs.extend(host_users(spec, path));
    errs.extend(simple_fields(spec, path));
    errs.extend(file_key_volumes(spec, path));
    errs
}

/// Names, numbers and enums of a pod spec.
fn simple_fields(spec: &Value, path: &Path) -> FieldErrors {
    let mut errs = hostname_override(spec, path);
    let account = spec.text("serviceAccountName");
    if !account.is_empty() {
        errs.extend(dns_subdomain(account, &path.child("serviceAccountName")));
    }
    if !spec.text("nodeName").is_empty() {
        errs.extend(dns_subdomain(spec.text("nodeName"), &path.child("nodeName")));
    }
    errs.extend(super::check::in_range(spec, "activeDeadlineSeconds", 1, i64::from(i32::MAX), path));
    for f in ["hostname", "subdomain"] {
        if !spec.text(f).is_empty() {
            errs.extend(dns_label(spec.text(f), &path.child(f)));
        }
    }
    errs.extend(scheduling::tolerations(spec.list("tolerations"), &path.child("tolerations")));
    for (i, a) in spec.list("hostAliases").iter().enumerate() {
        let p = path.child("hostAliases").index(i);
        errs.extend(names::ip_legacy(&p.child("ip"), a.text("ip"), &[]));
        for (j, h) in a.texts("hostnames").iter().enumerate() {
            errs.extend(dns_subdomain(h, &p.child("hostnames").index(j)));
        }
    }
    for f in ["priorityClassName", "runtimeClassName"] {
        if let Some(name) = spec.at(f).as_str().filter(|n| !n.is_empty() || f == "runtimeClassName") {
            errs.extend(dns_subdomain(name, &path.child(f)));
        }
    }
    if spec.has("preemptionPolicy") {
        errs.extend(one_of(spec, "preemptionPolicy", &["PreemptLowerPriority", "Never"], path));
    }
    if spec.has("overhead") {
        errs.extend(overhead(spec.at("overhead"), &path.child("overhead")));
    }
    if spec.has("os") {
        errs.extend(os(spec, path));
    }
    if spec.has("schedulingGroup") {
        let p = child(path, "schedulingGroup.podGroupName");
        match spec.at("schedulingGroup.podGroupName").as_str() {
            Some(name) => errs.extend(dns_subdomain(name, &p)),
            None => errs.push(FieldError::invalid(&p, Value::Null, "must specify one of: `podGroupName`")),
        }
    }
    errs
}

fn hostname_override(spec: &Value, path: &Path) -> FieldErrors {
    let Some(name) = spec.at("hostnameOverride").as_str() else { return Vec::new() };
    let p = path.child("hostnameOverride");
    let mut errs = Vec::new();
    for (flag, m) in [
        ("setHostnameAsFQDN", "may not be specified when setHostnameAsFQDN is true"),
        ("hostNetwork", "may not be specified when hostNetwork is true"),
    ] {
        if spec.flag(flag) {
            errs.push(FieldError::forbidden(&p, m));
        }
    }
    if name.len() > 64 {
        errs.push(FieldError::too_long(&p, 64));
    }
    errs.extend(dns_subdomain(name, &p));
    errs
}

fn resource_claims(list: &[Value], meta: Option<&Value>, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let mut seen = BTreeSet::new();
    let mirror = meta.is_some_and(|m| m.at("annotations").get(MIRROR).is_some());
    for (i, c) in list.iter().enumerate() {
        if mirror {
            return vec![FieldError::forbidden(&Path::root(), "static pods do not support resource claims")];
        }
        let (p, name) = (path.index(i), c.text("name"));
        if name.is_empty() {
            errs.push(FieldError::required(&p.child("name"), ""));
        } else if !seen.insert(name) {
            errs.push(FieldError::duplicate(&p.child("name"), name));
        } else {
            errs.extend(dns_label(name, &p.child("name")));
        }
        let kinds = ["resourceClaimName", "resourceClaimTemplateName"];
        match kinds.iter().filter(|k| c.has(k)).count() {
            1 => {}
            0 => {
                let m = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                errs.push(FieldError::invalid(&p, c.clone(), m));
            }
            _ => {
                let m = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                errs.push(FieldError::invalid(&p, c.clone(), m));
            }
        }
        for k in kinds.iter().filter(|k| c.has(k)) {
            errs.extend(dns_subdomain(c.text(k), &p.child(k)));
        }
    }
    errs
}

/// Pod-level resources (KEP-2837): no less than the containers ask for, no container above them.
fn pod_resources(spec: &Value, claims: &BTreeSet<&str>, path: &Path) -> FieldErrors {
    let (r, p) = (spec.at("resources"), path.child("resources"));
    if r.is_null() {
        return Vec::new();
    }
    if spec.text("os.name") == "windows" {
        return vec![FieldError::forbidden(&p, "may not be set for a windows pod")];
    }
    let mut errs = Vec::new();
    if r.has("claims") {
        let m = "claims may not be set for Resources at pod-level";
        errs.push(FieldError::forbidden(&p.child("claims"), m));
    }
    errs.extend(pod_requirements(r, claims, &p));
    let sum = |name: &str, list: &str| {
        let mut total = Quantity::default();
        for c in spec
            .list("containers")
            .iter()
            .chain(spec.list("initContainers").iter().filter(|c| c.text("restartPolicy") == "Always"))
        {
            total.add(&amount(c.at("resources").entry(list, name)));
        }
        let init = spec.list("initContainers").iter().map(|c| amount(c.at("resources").entry(list, name)));
        init.fold(total, |a, b| if b > a { b } else { a })
    };
    for (name, v) in r.entries("requests") {
        let total = sum(name, "requests");
        if total > amount(v) {
            let m = format!("must be greater than or equal to aggregate container requests of {total}");
            errs.push(FieldError::invalid(&p.child("requests").key(name), v.clone(), m));
        }
    }
    for (name, v) in r.entries("limits").into_iter().filter(|(n, _)| is_huge_page(n)) {
        let total = sum(name, "limits");
        if total > amount(v) {
            let m = format!("must be greater than or equal to aggregate container limits of {total}");
            errs.push(FieldError::invalid(&p.child("limits").key(name), v.clone(), m));
        }
    }
    for (i, c) in spec.list("containers").iter().enumerate() {
        for (name, v) in c.entries("resources.limits") {
            let limit = r.entry("limits", name);
            if !limit.is_null() && amount(v) > amount(limit) {
                let p = p.child("containers").index(i).key(name).child("limits");
                let m = format!("must be less than or equal to pod limits of {}", amount(limit));
                errs.push(FieldError::invalid(&p, v.clone(), m));
            }
        }
    }
    errs
}

fn host_network_ports(spec: &Value, is_pod: bool, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    if !spec.flag("hostNetwork") {
        return errs;
    }
    for (i, c) in spec.list("containers").iter().enumerate() {
        for (j, port) in c.list("ports").iter().enumerate() {
            let (host, own) = (port.int_or("hostPort", 0), port.int_or("containerPort", 0));
            if (is_pod || host != 0) && host != own {
                let p = path.child("containers").index(i).child("ports").index(j).child("hostPort");
                let m = "must match `containerPort` when `hostNetwork` is true";
                errs.push(FieldError::invalid(&p, host, m));
            }
        }
    }
    errs
}

fn dns_config(spec: &Value, path: &Path) -> FieldErrors {
    let c = spec.at("dnsConfig");
    let servers = c.texts("nameservers");
    if spec.text("dnsPolicy") == "None" {
        if c.is_null() {
            return vec![FieldError::required(path, "must provide `dnsConfig` when `dnsPolicy` is None")];
        }
        if servers.is_empty() {
            let m = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return vec![FieldError::required(&path.child("nameservers"), m)];
        }
    }
    let mut errs = Vec::new();
    if servers.len() > 3 {
        let m = "must not have more than 3 nameservers";
        errs.push(FieldError::invalid(&path.child("nameservers"), c["nameservers"].clone(), m));
    }
    for (i, s) in servers.iter().enumerate() {
        errs.extend(names::ip_legacy(&path.child("nameservers").index(i), s, &[]));
    }
    let (searches, p) = (c.texts("searches"), path.child("searches"));
    if searches.len() > 32 {
        let m = "must not have more than 32 search paths";
        errs.push(FieldError::invalid(&p, c["searches"].clone(), m));
    }
    if searches.join(" ").len() > 2048 {
        let m = "must not have more than 2048 characters (including spaces) in the search list";
        errs.push(FieldError::invalid(&p, c["searches"].clone(), m));
    }
    for (i, s) in searches.iter().enumerate().filter(|(_, s)| **s != ".") {
        let s = s.strip_suffix('.').unwrap_or(s);
        errs.extend(invalid_each(&p.index(i), s, names::dns1123_subdomain_with_underscore(s)));
    }
    for (i, o) in c.list("options").iter().enumerate() {
        if o.text("name").is_empty() {
            errs.push(FieldError::required(&path.child("options").index(i), "must not be empty"));
        }
    }
    errs
}

fn scheduling_gates(list: &[Value], path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, g) in list.iter().enumerate() {
        errs.extend(label_name(g.text("name"), &path.index(i)));
        if !seen.insert(g.text("name")) {
            errs.push(FieldError::duplicate(&path.index(i), g.text("name")));
        }
    }
    errs
}

fn host_users(spec: &Value, path: &Path) -> FieldErrors {
    if spec.at("hostUsers").as_bool().unwrap_or(true) {
        return Vec::new();
    }
    const WHY: &str = "when `hostUsers` is false";
    let flags = [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")];
    let set = flags.iter().filter(|(f, _)| spec.flag(f));
    let mut errs: FieldErrors = set.map(|(_, shown)| FieldError::forbidden(&path.child(shown), WHY)).collect();
    for (c, p) in all_containers(spec, path) {
        if !c.list("volumeDevices").is_empty() {
            errs.push(FieldError::forbidden(&p.child("volumeDevices"), WHY));
        }
    }
    errs
}

/// Windows host-process containers: all or none, and on the host's network.
fn host_process(spec: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let of_pod = spec.at("securityContext.windowsOptions.hostProcess").as_bool();
    let (mut all, mut host) = (0, 0);
    for (c, p) in all_containers(spec, path) {
        all += 1;
        let own = c.at("securityContext.windowsOptions.hostProcess").as_bool();
        if let (Some(a), Some(b)) = (of_pod, own)
            && a != b
        {
            let p = child(&p, "securityContext.windowsOptions.hostProcess");
            let m = format!("pod hostProcess value must be identical if both are specified, was {a}");
            errs.push(FieldError::invalid(&p, b, m));
        }
        host += usize::from(own.or(of_pod).unwrap_or(false));
    }
    if host > 0 {
        if host != all {
            let m = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
            errs.push(FieldError::invalid(path, "", m));
        }
        if !spec.flag("hostNetwork") {
            let m = "hostNetwork must be true if pod contains any hostProcess containers";
            errs.push(FieldError::invalid(&path.child("hostNetwork"), false, m));
        }
    }
    errs
}

fn os(spec: &Value, path: &Path) -> FieldErrors {
    let p = path.child("os");
    let sc = path.child("securityContext");
    match spec.text("os.name") {
        "" => vec![FieldError::required(&p.child("name"), "")],
        "linux" => {
            let m = "windows options cannot be set for a linux pod";
            let mut errs = forbid_each(spec.at("securityContext"), &["windowsOptions"], m, &sc);
            for (c, p) in all_containers(spec, path) {
                let p = p.child("securityContext");
                errs.extend(forbid_each(c.at("securityContext"), &["windowsOptions"], m, &p));
            }
            errs
        }
        "windows" => windows(spec, path, &sc),
        other => supported(other, &["linux", "windows"], &p),
    }
}

fn windows(spec: &Value, path: &Path, sc: &Path) -> FieldErrors {
    const WHY: &str = "cannot be set for a windows pod";
    let of_pod = [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "fsGroup",
        "fsGroupChangePolicy",
        "sysctls",
        "runAsUser",
        "runAsGroup",
        "supplementalGroups",
        "supplementalGroupsPolicy",
        "seLinuxChangePolicy",
    ];
    let of_container = [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ];
    let any = |parent: &Value, fields: &[&str], p: &Path| -> FieldErrors {
        fields.iter().filter(|f| parent.has(f)).map(|f| FieldError::forbidden(&p.child(f), WHY)).collect()
    };
    let mut errs = any(spec.at("securityContext"), &of_pod, sc);
    errs.extend(any(spec, &["hostUsers"], path));
    errs.extend(forbid_each(spec, &["hostPID", "hostIPC"], WHY, path));
    errs.extend(any(spec, &["shareProcessNamespace"], path));
    for (c, p) in all_containers(spec, path) {
        errs.extend(any(c.at("securityContext"), &of_container, &p.child("securityContext")));
    }
    errs
}

/// `fileKeyRef` reads from an emptyDir of the pod.
fn file_key_volumes(spec: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    for (c, p) in all_containers(spec, path) {
        for (i, e) in c.list("env").iter().enumerate().filter(|(_, e)| e.has("valueFrom.fileKeyRef")) {
            let name = e.text("valueFrom.fileKeyRef.volumeName");
            let p = child(&p.child("env").index(i), "valueFrom.fileKeyRef.volumeName");
            match spec.list("volumes").iter().find(|v| v.text("name") == name) {
                None => errs.push(FieldError::not_found(&p, name)),
                Some(v) if !v.has("emptyDir") => {
                    errs.push(FieldError::invalid(&p, name, "referenced volume must be of type emptyDir"));
                }
                _ => {}
            }
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    pub fn pod() -> Value {
        json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30,
                "schedulerName": "default-scheduler", "securityContext": {},
                "containers": [{"name": "c", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}],
            },
        })
    }

    fn changed(path: &str, v: Value) -> Vec<String> {
        let mut p = pod();
        *p.pointer_mut(path.rsplit_once('/').unwrap().0).unwrap() = {
            let (parent, last) = path.rsplit_once('/').unwrap();
            let mut parent = p.pointer(parent).unwrap().clone();
            parent[last] = v;
            parent
        };
        create(&p).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_plain_pod_is_valid() {
        assert_eq!(create(&pod()), []);
    }

    #[test]
    fn pods_say_what_upstream_says() {
        let label = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
        let table: Vec<(&str, Value, Vec<String>)> = vec![
            ("/spec/containers", json!([]), vec!["spec.containers: Required value".into()]),
            ("/spec/containers/0/name", json!("A"), vec![format!("spec.containers[0].name: Invalid value: \"A\": {label}")]),
            ("/spec/containers/0/image", json!(""), vec!["spec.containers[0].image: Required value".into()]),
            (
                "/spec/restartPolicy",
                json!("Sometimes"),
                vec!["spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"".into()],
            ),
            (
                "/spec/containers/0/volumeMounts",
                json!([{"name": "x", "mountPath": "/x"}]),
                vec!["spec.containers[0].volumeMounts[0].name: Not found: \"x\"".into()],
            ),
            (
                "/spec/containers/0/ports",
                json!([{"containerPort": 70000, "protocol": "TCP"}]),
                vec!["spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive".into()],
            ),
            (
                "/spec/containers/0/ports",
                json!([{"containerPort": 1, "hostPort": 5, "protocol": "TCP"}, {"containerPort": 2, "hostPort": 5, "protocol": "TCP"}]),
                vec!["spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//5\"".into()],
            ),
            (
                "/spec/initContainers",
                json!([{"name": "c", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File", "readinessProbe": {}}]),
                vec![
                    "spec.initContainers[0].name: Duplicate value: \"c\"".into(),
                    "spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without restartPolicy=Always".into(),
                ],
            ),
            ("/spec/dnsPolicy", json!("None"), vec!["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None".into()]),
            ("/spec/activeDeadlineSeconds", json!(0), vec!["spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive".into()]),
            (
                "/spec/ephemeralContainers",
                json!([{"name": "e", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}]),
                vec!["spec.ephemeralContainers: Forbidden: cannot be set on create".into()],
            ),
            (
                "/spec/resources",
                json!({"requests": {"cpu": "1"}, "claims": []}),
                vec!["spec.resources.claims: Forbidden: claims may not be set for Resources at pod-level".into()],
            ),
        ];
        for (path, v, want) in table {
            assert_eq!(changed(path, v.clone()), want, "{path} {v}");
        }
    }
}
