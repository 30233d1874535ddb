//! Dynamic resource allocation: claims and their templates, classes, slices and taint rules.
//!
//! Not here: CEL expressions, which the scheduler that evaluates them would have to know.

use crate::access::Access;
use crate::metadata::{immutable, label_name};
use crate::ownership;
use crate::strategy::{PLAIN, STATELESS, Strategy};
use crate::validation::check::{dns_label, dns_subdomain, invalid_each};
use isopod_api::{FieldError, FieldErrors, Path, names};
use serde_json::Value;
use std::collections::BTreeSet;

pub fn strategy(kind: &str) -> Strategy {
    match kind {
        "ResourceSlice" => Strategy {
            fields: &["spec.nodeName", "spec.driver", "spec.pool.name"],
            create: |new| slice(new, None),
            update: |new, old| slice(new, Some(old)),
            ..PLAIN
        },
        "ResourceClaim" => Strategy {
            owned: ownership::status_alone,
            generation: false,
            create: |new| devices(new.at("spec.devices"), &Path::new("spec").child("devices")),
            update: |new, old| immutable(new, old, "spec", &Path::root()),
            ..PLAIN
        },
        "ResourceClaimTemplate" => Strategy {
            create: |new| devices(new.at("spec.spec.devices"), &Path::new("spec").child("spec").child("devices")),
            update: |new, old| immutable(new, old, "spec", &Path::root()),
            ..STATELESS
        },
        "DeviceClass" => Strategy { create: class, update: |new, _| class(new), ..PLAIN },
        "DeviceTaintRule" => Strategy {
            owned: ownership::status_alone,
            unconditional_update: false,
            create: taint_rule,
            update: |new, _| taint_rule(new),
            ..PLAIN
        },
        _ => PLAIN,
    }
}

const POOL_MAX: usize = 253;
const DRIVER_MAX: usize = 63;
const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];

fn taint_rule(r: &Value) -> FieldErrors {
    let (spec, p) = (r.at("spec"), Path::new("spec"));
    let mut errs = selector(spec.at("deviceSelector"), &p.child("deviceSelector"));
    errs.extend(taint(spec.at("taint"), &p.child("taint")));
    errs
}

fn selector(s: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    if let Some(driver) = s.at("driver").as_str() {
        errs.extend(driver_name(driver, &path.child("driver")));
    }
    if let Some(pool) = s.at("pool").as_str() {
        errs.extend(pool_name(pool, &path.child("pool")));
    }
    if let Some(device) = s.at("device").as_str() {
        errs.extend(dns_label(device, &path.child("device")));
    }
    errs
}

/// A driver's name: a subdomain that fits into a label.
fn driver_name(name: &str, path: &Path) -> FieldErrors {
    if name.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let mut errs = Vec::new();
    if name.len() > DRIVER_MAX {
        errs.push(FieldError::too_long(path, DRIVER_MAX));
    }
    errs.extend(dns_subdomain(&name.to_lowercase(), path).into_iter().map(|mut e| {
        e.shown = Some(format!("{name:?}"));
        e
    }));
    errs
}

/// A pool's name: subdomains joined by slashes.
fn pool_name(name: &str, path: &Path) -> FieldErrors {
    if name.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let mut errs = Vec::new();
    if name.len() > POOL_MAX {
        errs.push(FieldError::too_long(path, POOL_MAX));
    }
    errs.extend(name.split('/').flat_map(|part| dns_subdomain(part, path)));
    errs
}

fn taint(t: &Value, path: &Path) -> FieldErrors {
    let mut errs = label_name(t.text("key"), &path.child("key"));
    let value = t.text("value");
    errs.extend(invalid_each(&path.child("value"), value, names::label_value(value)));
    let p = path.child("effect");
    match t.text("effect") {
        "" => errs.push(FieldError::required(&p, "")),
        effect if EFFECTS.contains(&effect) => {}
        effect => errs.push(FieldError::not_supported(&p, effect, &EFFECTS)),
    }
    errs
}

const ONE_OF_NODES: &str =
    "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
const VALUES: [&str; 8] = ["int", "bool", "string", "version", "ints", "bools", "strings", "versions"];

fn slice(s: &Value, old: Option<&Value>) -> FieldErrors {
    let (spec, p) = (s.at("spec"), Path::new("spec"));
    let mut errs = driver_name(spec.text("driver"), &p.child("driver"));
    errs.extend(pool(spec.at("pool"), &p.child("pool")));
    if let Some(old) = old {
        let fixed = ["pool.name", "driver", "nodeName"];
        errs.extend(fixed.iter().flat_map(|f| immutable(spec, old.at("spec"), f, &p)));
    }
    errs.extend(nodes(spec, &p));
    let (all, p) = (spec.list("devices"), p.child("devices"));
    for (i, d) in all.iter().enumerate() {
        errs.extend(device(d, &p.index(i)));
        if all[..i].iter().any(|o| o.text("name") == d.text("name")) {
            errs.push(FieldError::duplicate(&p.index(i), d.text("name")));
        }
    }
    errs
}

fn pool(pool: &Value, path: &Path) -> FieldErrors {
    let mut errs = pool_name(pool.text("name"), &path.child("name"));
    let (count, generation) = (pool.int_or("resourceSliceCount", 0), pool.int_or("generation", 0));
    if count <= 0 {
        errs.push(FieldError::invalid(&path.child("resourceSliceCount"), count, "must be greater than zero"));
    }
    if generation < 0 {
        let m = "must be greater than or equal to zero";
        errs.push(FieldError::invalid(&path.child("generation"), generation, m));
    }
    errs
}

/// Which nodes see the devices of a slice: said in exactly one way.
fn nodes(spec: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let mut ways = Vec::new();
    match spec.at("nodeName").as_str() {
        Some("") => {
            let m = "must be either unset or set to a non-empty string";
            errs.push(FieldError::invalid(&path.child("nodeName"), "", m));
        }
        Some(name) => {
            ways.push("`nodeName`");
            errs.extend(dns_subdomain(name, &path.child("nodeName")));
        }
        None => {}
    }
    if spec.has("nodeSelector") {
        ways.push("`nodeSelector`");
    }
    for (field, way) in [("allNodes", "`allNodes`"), ("perDeviceNodeSelection", "`perDeviceNodeSelection`")] {
        match spec.at(field).as_bool() {
            Some(true) => ways.push(way),
            Some(false) => {
                let m = "must be either unset or set to true";
                errs.push(FieldError::invalid(&path.child(field), false, m));
            }
            None => {}
        }
    }
    match ways.len() {
        0 => errs.push(FieldError::required(path, ONE_OF_NODES)),
        1 => {}
        _ => {
            let m = format!("{ONE_OF_NODES}, but multiple fields are set");
            errs.push(FieldError::invalid(path, format!("{{{}}}", ways.join(", ")), m));
        }
    }
    errs
}

fn device(d: &Value, path: &Path) -> FieldErrors {
    let mut errs = dns_label(d.text("name"), &path.child("name"));
    for (name, a) in d.entries("attributes") {
        let p = path.child("attributes").key(name);
        for f in ["string", "version"] {
            if a.text(f).len() > 64 {
                errs.push(FieldError::too_long(&p.child(f), 64));
            }
        }
        if !VALUES.iter().any(|f| a.has(f)) {
            let all = VALUES.map(|f| format!("`{f}`")).join(", ");
            errs.push(FieldError::invalid(&p, "", format!("must specify one of: {all}")).declared());
        }
    }
    errs
}

/// The requests of a claim and what refers to them.
fn devices(d: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let (requests, p) = (d.list("requests"), path.child("requests"));
    let mut known = BTreeSet::new();
    for (i, r) in requests.iter().enumerate() {
        let name = r.text("name");
        errs.extend(request(r, &p.index(i)));
        if known.contains(name) {
            errs.push(FieldError::duplicate(&p.index(i), r.clone()).declared());
        }
        known.insert(name.to_owned());
        known.extend(r.list("firstAvailable").iter().map(|s| format!("{name}/{}", s.text("name"))));
    }
    for (list, p) in [("constraints", path.child("constraints")), ("config", path.child("config"))] {
        for (i, c) in d.list(list).iter().enumerate() {
            for (j, name) in c.texts("requests").into_iter().enumerate() {
                errs.extend(request_reference(name, &known, &p.index(i).child("requests").index(j)));
            }
            if list == "config" {
                errs.extend(configuration(c, &p.index(i)));
            }
        }
    }
    errs
}

fn request(r: &Value, path: &Path) -> FieldErrors {
    let mut errs = dns_label(r.text("name"), &path.child("name"));
    let (exactly, alternatives) = (r.at("exactly"), r.list("firstAvailable"));
    const ONE: &str = "exactly one of `exactly` or `firstAvailable` is required";
    match (exactly.is_null(), alternatives.is_empty()) {
        (true, true) => errs.push(FieldError::required(path, ONE)),
        (false, false) => {
            errs.push(FieldError::invalid(path, Value::Null, format!("{ONE}, but multiple fields are set")));
        }
        (false, true) => errs.extend(wanted_devices(exactly, &path.child("exactly"))),
        (true, false) => {
            for (i, s) in alternatives.iter().enumerate() {
                let p = path.child("firstAvailable").index(i);
                errs.extend(dns_label(s.text("name"), &p.child("name")));
                errs.extend(wanted_devices(s, &p).into_iter().map(FieldError::declared));
                if alternatives[..i].iter().any(|o| o.text("name") == s.text("name")) {
                    errs.push(FieldError::duplicate(&p, s.clone()).declared());
                }
            }
        }
    }
    errs
}

fn wanted_devices(w: &Value, path: &Path) -> FieldErrors {
    let p = path.child("deviceClassName");
    let mut errs = match w.text("deviceClassName") {
        "" => vec![FieldError::required(&p, "")],
        name => dns_subdomain(name, &p),
    };
    let count = w.int_or("count", 0);
    let wrong = match w.text("allocationMode") {
        "All" if count != 0 => Some("must not be specified when allocationMode is 'All'"),
        "ExactCount" if count <= 0 => Some("must be greater than zero"),
        "All" | "ExactCount" => None,
        mode => {
            let e = FieldError::not_supported(&path.child("allocationMode"), mode, &["All", "ExactCount"]);
            errs.push(e.declared());
            None
        }
    };
    errs.extend(wrong.map(|m| FieldError::invalid(&path.child("count"), count, m)));
    errs
}

fn request_reference(name: &str, known: &BTreeSet<String>, path: &Path) -> FieldErrors {
    let m = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() > 2 {
        return vec![FieldError::invalid(path, name, m)];
    }
    let mut errs: FieldErrors = parts.iter().flat_map(|part| dns_label(part, path)).collect();
    if !known.contains(name) {
        errs.push(FieldError::invalid(path, name, m));
    }
    errs
}

fn configuration(c: &Value, path: &Path) -> FieldErrors {
    let (opaque, p) = (c.at("opaque"), path.child("opaque"));
    if opaque.is_null() {
        return vec![FieldError::required(&p, "")];
    }
    let mut errs = match opaque.text("driver") {
        "" => vec![FieldError::required(&p.child("driver"), "").declared()],
        _ => Vec::new(),
    };
    if opaque.at("parameters").is_null() {
        errs.push(FieldError::required(&p.child("parameters"), ""));
    }
    errs
}

fn class(c: &Value) -> FieldErrors {
    let p = Path::new("spec").child("config");
    c.list("spec.config").iter().enumerate().flat_map(|(i, c)| configuration(c, &p.index(i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules() {
        let say =
            |v: Value| -> Vec<String> { taint_rule(&json!({"spec": v})).iter().map(|e| e.field.clone()).collect() };
        let taint = json!({"key": "example.com/a", "effect": "NoSchedule"});
        assert_eq!(
            say(json!({"taint": taint, "deviceSelector": {"driver": "d.example.com", "pool": "a/b", "device": "x"}})),
            [""; 0]
        );
        assert_eq!(say(json!({})), ["spec.taint.key", "spec.taint.key", "spec.taint.effect"]);
        assert_eq!(
            say(json!({"taint": taint, "deviceSelector": {"driver": "", "pool": "", "device": ""}})),
            ["spec.deviceSelector.driver", "spec.deviceSelector.pool", "spec.deviceSelector.device"]
        );
    }

    #[test]
    fn slices() {
        let good = json!({"spec": {"driver": "d.example.com", "pool": {"name": "p", "resourceSliceCount": 1},
            "allNodes": true, "devices": [{"name": "a", "attributes": {"x": {"int": 1}}}]}});
        assert_eq!(slice(&good, Some(&good)), Vec::new());
        let fields: Vec<String> = slice(&json!({}), Some(&good)).into_iter().map(|e| e.field).collect();
        assert_eq!(
            fields,
            ["spec.driver", "spec.pool.name", "spec.pool.resourceSliceCount", "spec.pool.name", "spec.driver", "spec"]
        );
    }

    #[test]
    fn claims() {
        let good = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount",
            "count": 1}}, {"name": "q", "firstAvailable": [{"name": "s", "deviceClassName": "gpu",
            "allocationMode": "All"}]}], "constraints": [{"requests": ["r", "q/s"]}]});
        assert_eq!(devices(&good, &Path::new("spec")), Vec::new());
        let bad = json!({"requests": [{"name": "r"}], "config": [{"requests": ["x"]}]});
        let fields: Vec<String> = devices(&bad, &Path::new("spec")).into_iter().map(|e| e.field).collect();
        assert_eq!(fields, ["spec.requests[0]", "spec.config[0].requests[0]", "spec.config[0].opaque"]);
    }
}
