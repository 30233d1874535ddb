//! Containers of a pod: main, init and ephemeral ones; ports, mounts, devices, restart rules.

use super::check::{
    descending_path, dns_label, invalid_each, no_backsteps, one_of, one_of_if_set, port_number, required, supported,
};
use super::volume::Volumes;
use super::{env, probe, resources, security};
use crate::access::{Access, is_empty};
use isopod_api::names;
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What a container's rules need to know about its pod.
pub struct Pod<'a> {
    pub volumes: Volumes<'a>,
    pub claims: BTreeSet<&'a str>,
    pub grace: Option<i64>,
    pub restart_policy: &'a str,
    pub os: &'a str,
    pub host_users: bool,
}

pub fn containers(list: &[Value], pod: &Pod, path: &Path) -> FieldErrors {
    if list.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let mut errs = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, c) in list.iter().enumerate() {
        let p = path.index(i);
        errs.extend(common(c, pod, &p));
        if !seen.insert(c.text("name")) {
            errs.push(FieldError::duplicate(&p.child("name"), c.text("name")));
        }
        errs.extend(lifecycle_and_probes(c, pod, &p));
        errs.extend(restart_rules(c, &p));
    }
    errs.extend(host_ports(list, path));
    errs
}

fn lifecycle_and_probes(c: &Value, pod: &Pod, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    if c.has("lifecycle") {
        errs.extend(probe::lifecycle(c.at("lifecycle"), pod.grace, pod.os, &path.child("lifecycle")));
    }
    errs.extend(probe::probes(c, pod.grace, path));
    errs
}

pub fn init_containers(list: &[Value], main: &[Value], pod: &Pod, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let mut seen: BTreeSet<&str> = main.iter().map(|c| c.text("name")).collect();
    for (i, c) in list.iter().enumerate() {
        let p = path.index(i);
        errs.extend(common(c, pod, &p));
        errs.extend(restart_rules(c, &p));
        let name = c.text("name");
        if seen.contains(name) {
            errs.push(FieldError::duplicate(&p.child("name"), name));
        } else if !name.is_empty() {
            seen.insert(name);
        }
        errs.extend(host_ports(std::slice::from_ref(c), path));
        if c.text("restartPolicy") == "Always" {
            errs.extend(lifecycle_and_probes(c, pod, &p));
            continue;
        }
        for f in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if c.has(f) {
                let m = "may not be set for init containers without restartPolicy=Always";
                errs.push(FieldError::forbidden(&p.child(f), m));
            }
        }
        for (j, r) in c.list("resizePolicy").iter().enumerate() {
            if r.text("restartPolicy") == "RestartContainer" {
                let p = p.child("resizePolicy").index(j).child("restartPolicy");
                let m = "must not be set to 'RestartContainer' for non-sidecar initContainers";
                errs.push(FieldError::invalid(&p, "RestartContainer", m));
            }
        }
    }
    errs
}

const EPHEMERAL_FIELDS: [&str; 19] = [
    "name",
    "image",
    "command",
    "args",
    "workingDir",
    "envFrom",
    "env",
    "volumeMounts",
    "volumeDevices",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "imagePullPolicy",
    "securityContext",
    "stdin",
    "stdinOnce",
    "tty",
    "targetContainerName",
    "restartPolicy",
    "resizePolicy",
];

pub fn ephemeral_containers(list: &[Value], spec: &Value, pod: &Pod, path: &Path) -> FieldErrors {
    let others: BTreeSet<&str> =
        spec.list("containers").iter().chain(spec.list("initContainers")).map(|c| c.text("name")).collect();
    let mut seen = others.clone();
    let mut errs = Vec::new();
    let why = "cannot be set for an Ephemeral Container";
    for (i, c) in list.iter().enumerate() {
        let p = path.index(i);
        errs.extend(common(c, pod, &p));
        errs.extend(image_spaces(c, &p));
        if !seen.insert(c.text("name")) {
            errs.push(FieldError::duplicate(&p.child("name"), c.text("name")));
        }
        let target = c.text("targetContainerName");
        if !target.is_empty() && !others.contains(target) {
            errs.push(FieldError::not_found(&p.child("targetContainerName"), target));
        }
        for (k, v) in c.entries("") {
            let kept = EPHEMERAL_FIELDS[..17].contains(&k);
            if !kept && !is_empty(v) {
                errs.push(FieldError::forbidden(&p.child(k), why));
            }
        }
        for (j, m) in c.list("volumeMounts").iter().enumerate() {
            for f in ["subPath", "subPathExpr"] {
                if !m.text(f).is_empty() {
                    errs.push(FieldError::forbidden(&p.child("volumeMounts").index(j).child(f), why));
                }
            }
        }
    }
    errs
}

/// The image of a pod (not of a template) has no spaces around it.
pub fn image_spaces(c: &Value, path: &Path) -> FieldErrors {
    let image = c.text("image");
    if image.trim() == image {
        return Vec::new();
    }
    vec![FieldError::invalid(&path.child("image"), image, "must not have leading or trailing whitespace")]
}

fn common(c: &Value, pod: &Pod, path: &Path) -> FieldErrors {
    let mut errs = match c.text("name") {
        "" => required(c, "name", path),
        name => dns_label(name, &path.child("name")),
    };
    errs.extend(required(c, "image", path));
    errs.extend(one_of(c, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"], path));
    errs.extend(ports(c.list("ports"), &path.child("ports")));
    errs.extend(env::env(c.list("env"), &path.child("env")));
    errs.extend(env::env_from(c.list("envFrom"), &path.child("envFrom")));
    errs.extend(mounts(c, pod, &path.child("volumeMounts")));
    errs.extend(devices(c, pod, &path.child("volumeDevices")));
    errs.extend(pull_policy(c.text("imagePullPolicy"), &path.child("imagePullPolicy")));
    errs.extend(resources::container_requirements(c.at("resources"), &pod.claims, &path.child("resources")));
    errs.extend(resize_policy(c.list("resizePolicy"), pod.restart_policy, &path.child("resizePolicy")));
    errs.extend(security::container(c.at("securityContext"), pod.host_users, &path.child("securityContext")));
    errs
}

pub fn pull_policy(policy: &str, path: &Path) -> FieldErrors {
    match policy {
        "" => vec![FieldError::required(path, "")],
        p => supported(p, &["Always", "IfNotPresent", "Never"], path),
    }
}

fn ports(list: &[Value], path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, port) in list.iter().enumerate() {
        let (p, name) = (path.index(i), port.text("name"));
        if !name.is_empty() {
            let msgs = names::port_name(name);
            if !msgs.is_empty() {
                errs.extend(invalid_each(&p.child("name"), name, msgs));
            } else if !seen.insert(name) {
                errs.push(FieldError::duplicate(&p.child("name"), name));
            }
        }
        if port.int_or("containerPort", 0) == 0 {
            errs.push(FieldError::required(&p.child("containerPort"), ""));
        } else {
            errs.extend(port_number(port, "containerPort", &p));
        }
        if port.int_or("hostPort", 0) != 0 {
            errs.extend(port_number(port, "hostPort", &p));
        }
        errs.extend(one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &p));
    }
    errs
}

/// No two ports of the pod's containers want one port of the host.
fn host_ports(list: &[Value], path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, c) in list.iter().enumerate() {
        for (j, port) in c.list("ports").iter().enumerate() {
            let n = port.int_or("hostPort", 0);
            let key = format!("{}/{}/{n}", port.text("protocol"), port.text("hostIP"));
            if n != 0 && !seen.insert(key.clone()) {
                let p = path.index(i).child("ports").index(j).child("hostPort");
                errs.push(FieldError::duplicate(&p, key));
            }
        }
    }
    errs
}

fn mounts(c: &Value, pod: &Pod, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let devices: BTreeMap<&str, &str> =
        c.list("volumeDevices").iter().map(|d| (d.text("name"), d.text("devicePath"))).collect();
    let mut points = BTreeSet::new();
    for (i, m) in c.list("volumeMounts").iter().enumerate() {
        let (p, name, at) = (path.index(i), m.text("name"), m.text("mountPath"));
        if name.is_empty() {
            errs.push(FieldError::required(&p.child("name"), ""));
        }
        if !pod.volumes.contains_key(name) {
            errs.push(FieldError::not_found(&p.child("name"), name));
        }
        if at.is_empty() {
            errs.push(FieldError::required(&p.child("mountPath"), ""));
        }
        if !points.insert(at) {
            errs.push(FieldError::invalid(&p.child("mountPath"), at, "must be unique"));
        }
        if devices.contains_key(name) {
            errs.push(FieldError::invalid(&p.child("name"), name, "must not already exist in volumeDevices"));
        }
        if devices.values().any(|d| *d == at) {
            let why = "must not already exist as a path in volumeDevices";
            errs.push(FieldError::invalid(&p.child("mountPath"), at, why));
        }
        errs.extend(mount_options(m, c, pod, &p, path));
    }
    errs
}

/// `list` is the path of all mounts, which upstream's errors about some fields show.
fn mount_options(m: &Value, c: &Value, pod: &Pod, path: &Path, list: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let (sub, expr) = (m.text("subPath"), m.text("subPathExpr"));
    if !sub.is_empty() {
        errs.extend(descending_path(sub, &list.child("subPath")));
    }
    if !expr.is_empty() {
        if !sub.is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            errs.push(FieldError::invalid(&path.child("subPathExpr"), expr, why));
        }
        errs.extend(descending_path(expr, &list.child("subPathExpr")));
    }
    let propagation = m.at("mountPropagation").as_str();
    if let Some(mode) = propagation {
        errs.extend(one_of_if_set(m, "mountPropagation", &["Bidirectional", "HostToContainer", "None"], list));
        if mode == "Bidirectional" && !c.flag("securityContext.privileged") {
            let why = "Bidirectional mount propagation is available only to privileged containers";
            errs.push(FieldError::forbidden(&list.child("mountPropagation"), why));
        }
    }
    let p = list.child("recursiveReadOnly");
    match m.at("recursiveReadOnly").as_str() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !m.flag("readOnly") {
                errs.push(FieldError::forbidden(&p, "may only be specified when readOnly is true"));
            }
            if propagation.is_some_and(|m| m != "None") {
                let why = "may only be specified when mountPropagation is None or not specified";
                errs.push(FieldError::forbidden(&p, why));
            }
        }
        Some(other) => errs.push(FieldError::not_supported(&p, other, &["Disabled", "Enabled", "IfPossible"])),
    }
    let (options, p) = (m.texts("bindMountOptions"), path.child("bindMountOptions"));
    for (i, o) in options.iter().enumerate() {
        errs.extend(supported(o, &["nodev", "noexec", "nosuid"], &p.index(i)));
        if options[..i].contains(o) {
            errs.push(FieldError::duplicate(&p.index(i), *o));
        }
    }
    if !options.is_empty() && pod.volumes.get(m.text("name")).is_some_and(|v| v.has("image")) {
        let why = "bindMountOptions may not be used with image volumes";
        errs.push(FieldError::invalid(&p, m["bindMountOptions"].clone(), why));
    }
    errs
}

fn devices(c: &Value, pod: &Pod, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let mounts: BTreeMap<&str, &str> =
        c.list("volumeMounts").iter().map(|m| (m.text("name"), m.text("mountPath"))).collect();
    let (mut names_, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for (i, d) in c.list("volumeDevices").iter().enumerate() {
        let (p, name, at) = (path.index(i), d.text("name"), d.text("devicePath"));
        let (np, dp) = (p.child("name"), p.child("devicePath"));
        if name.is_empty() {
            errs.push(FieldError::required(&np, ""));
        }
        if names_.contains(name) {
            errs.push(FieldError::invalid(&np, name, "must be unique"));
        }
        match pod.volumes.get(name) {
            None => errs.push(FieldError::not_found(&np, name)),
            Some(v) if !v.has("persistentVolumeClaim") && !v.has("ephemeral") => {
                let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errs.push(FieldError::invalid(&np, name, why));
            }
            _ => {}
        }
        if at.is_empty() {
            errs.push(FieldError::required(&dp, ""));
        }
        if paths.contains(at) {
            errs.push(FieldError::invalid(&dp, at, "must be unique"));
        }
        if no_backsteps(at, &dp).is_empty() {
            paths.insert(at);
        } else {
            errs.push(FieldError::invalid(&dp, at, "can not contain backsteps ('..')"));
        }
        if mounts.contains_key(name) {
            errs.push(FieldError::invalid(&np, name, "must not already exist in volumeMounts"));
        }
        if mounts.values().any(|m| *m == at) {
            errs.push(FieldError::invalid(&dp, at, "must not already exist as a path in volumeMounts"));
        }
        if !name.is_empty() {
            names_.insert(name);
        }
    }
    errs
}

fn resize_policy(list: &[Value], pod_policy: &str, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, r) in list.iter().enumerate() {
        let (name, policy) = (r.text("resourceName"), r.text("restartPolicy"));
        if !seen.insert(name) {
            errs.push(FieldError::duplicate(&path.index(i), name));
        }
        for (v, allowed) in [(name, ["cpu", "memory"]), (policy, ["NotRequired", "RestartContainer"])] {
            match v {
                "" => errs.push(FieldError::required(path, "")),
                v => errs.extend(supported(v, &allowed, path)),
            }
        }
        if pod_policy == "Never" && policy != "NotRequired" {
            let m = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errs.push(FieldError::invalid(path, policy, m));
        }
    }
    errs
}

/// A container's own restart policy and its rules by exit code (KEP-5307).
fn restart_rules(c: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let rules = c.list("restartPolicyRules");
    match c.at("restartPolicy").as_str() {
        None if !rules.is_empty() => {
            let m = "must specify restartPolicy when restart rules are used";
            errs.push(FieldError::required(&path.child("restartPolicy"), m));
        }
        None => return errs,
        Some(p) => errs.extend(supported(p, &["Always", "Never", "OnFailure"], &path.child("restartPolicy"))),
    }
    if rules.len() > 20 {
        errs.push(FieldError::too_many(&path.child("restartPolicyRules"), rules.len(), 20));
    }
    for (i, r) in rules.iter().enumerate() {
        let p = path.child("restartPolicyRules").index(i);
        errs.extend(supported(r.text("action"), &["Restart", "RestartAllContainers"], &p.child("action")));
        let codes = p.child("exitCodes");
        if !r.has("exitCodes") {
            errs.push(FieldError::required(&codes, "must be specified"));
            continue;
        }
        errs.extend(supported(r.text("exitCodes.operator"), &["In", "NotIn"], &codes.child("operator")));
        let n = r.list("exitCodes.values").len();
        if n > 255 {
            errs.push(FieldError::too_many(&codes.child("values"), n, 255));
        }
    }
    errs
}
