//! DeviceTaintRules: which devices get which taint.

use crate::access::Access;
use crate::metadata::label_name;
use crate::strategy::{PLAIN, Strategy};
use crate::validation::check::{dns_label, dns_subdomain, invalid_each};
use isopod_api::{FieldError, FieldErrors, Path, names};
use serde_json::Value;

pub const STRATEGY: Strategy =
    Strategy { unconditional_update: false, create: rule, update: |new, _| rule(new), ..PLAIN };

const POOL_MAX: usize = 253;
const DRIVER_MAX: usize = 63;
const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];

fn rule(r: &Value) -> FieldErrors {
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules() {
        let say = |v: Value| -> Vec<String> { rule(&json!({"spec": v})).iter().map(|e| e.field.clone()).collect() };
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
}
