//! Dynamic resource allocation: claims and their templates, classes, slices and taint rules.

use crate::access::Access;
use crate::cel::check::cost::{Sizes, estimate};
use crate::cel::check::{Environment, Library, Objects, Type, check};
use crate::metadata::{annotations, fixed, immutable, label_name, labels};
use crate::ownership;
use crate::strategy::{PLAIN, STATELESS, Strategy};
use crate::validation::check::{dns_label, dns_subdomain, invalid_each};
use crate::validation::plugins::declared_driver_name;
use isopod_api::{FieldError, FieldErrors, Path, names};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;

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
            update: |new, old| fixed(new, old, "spec", &Path::root()),
            ..PLAIN
        },
        "ResourceClaimTemplate" => {
            Strategy { create: template, update: |new, old| immutable(new, old, "spec", &Path::root()), ..STATELESS }
        }
        "DeviceClass" => Strategy {
            // A declarative rule, which what names are generated from has none.
            name: Some(|_, name, generated| match generated {
                true => Vec::new(),
                false => names::in_bytes(names::dns1123_subdomain(name)),
            }),
            create: class,
            update: |new, _| class(new),
            ..PLAIN
        },
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

fn template(t: &Value) -> FieldErrors {
    let p = Path::new("spec");
    let mut errs = labels(t.at("spec.metadata.labels"), &p.child("metadata").child("labels"));
    errs.extend(annotations(t.at("spec.metadata.annotations"), &p.child("metadata").child("annotations")));
    errs.extend(devices(t.at("spec.spec.devices"), &p.child("spec").child("devices")));
    errs
}

const POOL_MAX: usize = 253;
const DRIVER_MAX: usize = 63;
const MAX_EXPRESSION: usize = 10 * 1024;
/// What evaluating a selector may cost at the most, as it is estimated (`CELSelectorExpressionMaxCost`).
const MAX_SELECTOR_COST: u64 = 1_000_000;
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
        let fields = ["pool.name", "driver", "nodeName"];
        let mut changed: FieldErrors = fields.iter().flat_map(|f| immutable(spec, old.at("spec"), f, &p)).collect();
        // A pointer: what is absent is no empty string.
        for e in changed.iter_mut().filter(|e| e.field == "spec.nodeName" && !spec.has("nodeName")) {
            e.shown = Some("null".to_owned());
        }
        errs.extend(changed);
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
            if f == "version" && a.at(f).as_str().is_some_and(|v| !is_semver(v)) {
                let m = "must be a string compatible with semver.org spec 2.0.0";
                errs.push(FieldError::invalid(&p.child(f), a.text(f), m));
            }
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
            let named = c.texts("requests");
            for (j, name) in named.iter().enumerate() {
                let p = p.index(i).child("requests").index(j);
                errs.extend(request_reference(name, &known, &p));
                if named[..j].contains(name) {
                    errs.push(FieldError::duplicate(&p, *name).declared());
                }
            }
            if list == "config" {
                errs.extend(configuration(c, &p.index(i)));
            } else {
                errs.extend(constraint(c, &p.index(i)));
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
                errs.extend(wanted_devices(s, &p).into_iter().map(in_declared_words));
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
    errs.extend(selectors(w, &path.child("selectors")));
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

/// The class of an alternative has a declarative rule.
fn in_declared_words(mut e: FieldError) -> FieldError {
    if e.field.ends_with(".deviceClassName") {
        e.detail = names::in_bytes(vec![e.detail]).concat();
        return e.declared();
    }
    e
}

/// What selectors of devices can speak of.
fn of_device() -> Environment {
    const DEVICE: &str = "kubernetes.DRADevice";
    let of_domains = |value: Type| Type::map(Type::Text, Type::map(Type::Text, value));
    let fields = [
        ("driver", Type::Text),
        ("attributes", of_domains(Type::Any)),
        ("capacity", of_domains(Type::object("kubernetes.Quantity"))),
        ("allowMultipleAllocations", Type::Bool),
    ];
    let fields = fields.map(|(name, t)| (name.to_owned(), t));
    let objects = Objects::from([(DEVICE.to_owned(), fields.into())]);
    Environment::new(Library::Device).objects(Arc::new(objects)).variable("device", Type::object(DEVICE))
}

/// How large what is said of a device can be.
struct DeviceSizes;

impl Sizes for DeviceSizes {
    fn most(&self, path: &[String]) -> Option<u64> {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        match path[..] {
            ["device"] => Some(0),
            ["device", "driver"] => Some(63),
            ["device", "allowMultipleAllocations"] => Some(1),
            ["device", "attributes" | "capacity"] => Some(32),
            ["device", "attributes" | "capacity", "@keys"] => Some(63),
            ["device", "attributes" | "capacity", "@values"] => Some(32),
            ["device", "attributes" | "capacity", "@values", "@keys"] => Some(32),
            // By an index or as a field: every attribute may be as long as every other.
            ["device", "attributes", "@values", _] => Some(64),
            ["device", "capacity", "@values", "@values"] => Some(0),
            _ => None,
        }
    }
}

/// Selectors of devices.
fn selectors(parent: &Value, path: &Path) -> FieldErrors {
    let environment = of_device();
    let check = |(i, s): (usize, &Value)| {
        let (p, text) = (path.index(i).child("cel"), s.text("cel.expression"));
        if !s.has("cel") {
            return Some(FieldError::required(&p, ""));
        }
        let p = p.child("expression");
        if text.len() > MAX_EXPRESSION {
            return Some(FieldError::too_long(&p, MAX_EXPRESSION));
        }
        let why = match check(text, &environment) {
            Err(e) => format!("compilation failed: {e}"),
            Ok(c) if matches!(c.result(), Type::Bool | Type::Any) => {
                let fits = estimate(&c, &DeviceSizes).max <= MAX_SELECTOR_COST;
                return (!fits).then(|| FieldError::forbidden(&p, "too complex, exceeds cost limit"));
            }
            Ok(c) => format!("must evaluate to bool or the unknown type, not {}", c.result()),
        };
        Some(FieldError::invalid(&p, text, why))
    };
    parent.list("selectors").iter().enumerate().filter_map(check).collect()
}

/// What devices of several requests must have in common, or not.
fn constraint(c: &Value, path: &Path) -> FieldErrors {
    let set = ["matchAttribute", "distinctAttribute"].into_iter().find(|f| c.has(f));
    match set {
        Some(f) => qualified_attribute(c.text(f), &path.child(f)),
        None => {
            let m =
                "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set";
            vec![FieldError::required(path, m)]
        }
    }
}

/// `domain/name`.
fn qualified_attribute(name: &str, path: &Path) -> FieldErrors {
    let identifier = |id: &str| {
        let mut errs: FieldErrors = (id.len() > 32).then(|| FieldError::too_long(path, 32)).into_iter().collect();
        errs.extend(invalid_each(path, id, names::c_identifier(id)));
        errs
    };
    let parts: Vec<&str> = name.split('/').collect();
    let empty = |what: &str| vec![FieldError::invalid(path, "", format!("the {what} must not be empty"))];
    let mut errs = match parts[..] {
        [id] => identifier(id),
        [domain, id] => {
            let mut errs = if domain.is_empty() { empty("domain") } else { driver_name(domain, path) };
            errs.extend(if id.is_empty() { empty("name") } else { identifier(id) });
            errs
        }
        _ => Vec::new(),
    };
    if parts.len() == 1 {
        let m = "a fully qualified name must be a domain and a name separated by a slash";
        errs.push(FieldError::invalid(path, name, m));
    }
    errs.into_iter().map(FieldError::declared).collect()
}

/// <https://semver.org>, 2.0.0.
fn is_semver(version: &str) -> bool {
    let (version, build) = version.split_once('+').map_or((version, None), |(v, b)| (v, Some(b)));
    let (core, pre) = version.split_once('-').map_or((version, None), |(c, p)| (c, Some(p)));
    let is_number =
        |s: &str| s.bytes().all(|b| b.is_ascii_digit()) && !s.is_empty() && (s == "0" || !s.starts_with('0'));
    let is_word = |s: &str| s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && !s.is_empty();
    let is_pre = |s: &str| is_word(s) && (is_number(s) || s.bytes().any(|b| !b.is_ascii_digit()));
    core.split('.').count() == 3
        && core.split('.').all(is_number)
        && pre.is_none_or(|p| p.split('.').all(is_pre))
        && build.is_none_or(|b| b.split('.').all(is_word))
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
    let mut errs = declared_driver_name(opaque.text("driver"), &p.child("driver"));
    if opaque.at("parameters").is_null() {
        errs.push(FieldError::required(&p.child("parameters"), ""));
    }
    errs
}

fn class(c: &Value) -> FieldErrors {
    let (spec, p) = (c.at("spec"), Path::new("spec"));
    let mut errs = selectors(spec, &p.child("selectors"));
    let all = spec.list("config").iter().enumerate();
    errs.extend(all.flat_map(|(i, c)| configuration(c, &p.child("config").index(i))));
    errs
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
    fn versions_and_attributes() {
        for good in ["1.2.3", "0.0.0", "1.2.3-alpha.1+b.01", "1.2.3--", "1.2.3+a-b"] {
            assert!(is_semver(good), "{good}");
        }
        for bad in ["", "1.2", "01.2.3", "1.2.3-01", "1.2.3-", "1.2.3+", "1.2.3-a..b", "v1.2.3"] {
            assert!(!is_semver(bad), "{bad}");
        }
        let wrong = |name| qualified_attribute(name, &Path::new("a")).len();
        assert_eq!((wrong("example.com/a"), wrong("a"), wrong("/a"), wrong("example.com/a-b")), (0, 1, 1, 1));
    }

    #[test]
    fn selectors_may_cost_so_much() {
        let each = |levels: &[&str]| {
            let all = |inner: String, name: &&str| format!("device.attributes.all({name}, {inner})");
            levels.iter().rev().fold("a != 'x'".to_owned(), all)
        };
        let say = |levels: &[&str]| {
            let parent = json!({"selectors": [{"cel": {"expression": each(levels)}}]});
            selectors(&parent, &Path::new("s")).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(say(&["a", "b", "c"]), [""; 0]);
        assert_eq!(say(&["a", "b", "c", "d"]), ["s[0].cel.expression: Forbidden: too complex, exceeds cost limit"]);
    }

    #[test]
    fn claims() {
        let good = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount",
            "count": 1}}, {"name": "q", "firstAvailable": [{"name": "s", "deviceClassName": "gpu",
            "allocationMode": "All"}]}], "constraints": [{"requests": ["r", "q/s"], "matchAttribute": "example.com/a"}]});
        assert_eq!(devices(&good, &Path::new("spec")), Vec::new());
        let bad = json!({"requests": [{"name": "r"}], "config": [{"requests": ["x", "x"]}], "constraints": [{}]});
        let fields: Vec<String> = devices(&bad, &Path::new("spec")).into_iter().map(|e| e.field).collect();
        assert_eq!(
            fields,
            [
                "spec.requests[0]",
                "spec.constraints[0]",
                "spec.config[0].requests[0]",
                "spec.config[0].requests[1]",
                "spec.config[0].requests[1]",
                "spec.config[0].opaque"
            ]
        );
    }
}
