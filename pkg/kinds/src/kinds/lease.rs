//! Leases and lease candidates.

use crate::access::Access;
use crate::metadata::immutable;
use crate::strategy::{STATELESS, Strategy};
use crate::validation::check::{all_required, invalid_each, non_negative};
use isopod_api::names;
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;

const BASE: Strategy = Strategy { create_on_update: true, unconditional_update: false, ..STATELESS };

pub const LEASE: Strategy = Strategy { create: lease, update: |new, _| lease(new), ..BASE };

pub const CANDIDATE: Strategy = Strategy {
    create: candidate,
    update: |new, old| {
        let mut errs = candidate(new);
        errs.extend(immutable(new.at("spec"), old.at("spec"), "leaseName", &Path::new("spec")));
        errs
    },
    ..BASE
};

fn lease(l: &Value) -> FieldErrors {
    let (spec, p) = (l.at("spec"), Path::new("spec"));
    let mut errs = Vec::new();
    if let Some(n) = spec.int("leaseDurationSeconds").filter(|n| *n <= 0) {
        errs.push(FieldError::invalid(&p.child("leaseDurationSeconds"), n, "must be greater than 0"));
    }
    errs.extend(non_negative(spec, &["leaseTransitions"], &p));
    let strategy = spec.text("strategy");
    if spec.has("strategy") {
        errs.extend(strategy_name(strategy, &p.child("strategy")));
    }
    if !spec.text("preferredHolder").is_empty() && strategy.is_empty() {
        let m = "may only be specified if `strategy` is defined";
        errs.push(FieldError::forbidden(&p.child("preferredHolder"), m));
    }
    errs
}

fn strategy_name(s: &str, path: &Path) -> FieldErrors {
    let p = path.child("strategy");
    if s.contains('/') {
        return invalid_each(&p, s, names::qualified_name(s));
    }
    crate::validation::check::supported(s, &["OldestEmulationVersion"], &p)
}

fn is_semver(v: &str) -> bool {
    let core = v.split(['-', '+']).next().unwrap_or(v);
    let parts: Vec<&str> = core.split('.').collect();
    parts.len() == 3 && parts.iter().all(|p| p.parse::<u64>().is_ok() && (p.len() == 1 || !p.starts_with('0')))
}

fn candidate(l: &Value) -> FieldErrors {
    let (spec, p) = (l.at("spec"), Path::new("spec"));
    let mut errs = all_required(spec, &["leaseName"], &p);
    for f in ["emulationVersion", "binaryVersion"] {
        let v = spec.text(f);
        if v.is_empty() && f == "binaryVersion" {
            errs.push(FieldError::required(&p.child(f), ""));
        } else if !v.is_empty() && !is_semver(v) {
            errs.push(FieldError::invalid(&p.child(f), v, "must be a valid semantic version"));
        }
    }
    match spec.text("strategy") {
        "" => errs.push(FieldError::required(&p.child("strategy"), "")),
        s => {
            if s == "OldestEmulationVersion" && spec.text("emulationVersion").is_empty() {
                let m = "must be specified when `strategy` is 'OldestEmulationVersion'";
                errs.push(FieldError::required(&p.child("emulationVersion"), m));
            }
            errs.extend(strategy_name(s, &p.child("strategy")));
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn leases() {
        let say = |v: Value| lease(&v).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(say(json!({"spec": {"holderIdentity": "a", "leaseDurationSeconds": 15}})), [""; 0]);
        assert_eq!(
            say(json!({"spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1, "preferredHolder": "x"}})),
            [
                "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
                "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
                "spec.preferredHolder: Forbidden: may only be specified if `strategy` is defined"
            ]
        );
    }
}
