//! The bootstrap policy against upstream's own, which the k8s.io/kubernetes module keeps as test data. Where no Go module
//! cache holds it there is nothing to compare with: `make verify` fetches it.

#![allow(clippy::unwrap_used)]

use serde::Deserialize;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

const FILES: [&str; 6] = [
    "cluster-roles",
    "cluster-role-bindings",
    "controller-roles",
    "controller-role-bindings",
    "namespace-roles",
    "namespace-role-bindings",
];

fn testdata() -> Option<PathBuf> {
    let cache = Command::new("go").args(["env", "GOMODCACHE"]).output().ok()?;
    let cache = PathBuf::from(String::from_utf8(cache.stdout).ok()?.trim());
    let dir = cache.join("k8s.io/kubernetes@v1.37.0/plugin/pkg/auth/authorizer/rbac/bootstrappolicy/testdata");
    dir.is_dir().then_some(dir)
}

#[test]
fn the_policy_is_upstreams() {
    let Some(dir) = testdata() else {
        println!("upstream's test data are not in the Go module cache");
        return;
    };
    let mut want = Vec::new();
    for file in FILES {
        let text = std::fs::read_to_string(dir.join(file).with_extension("yaml")).unwrap();
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let list = Value::deserialize(document).unwrap();
            want.extend(list["items"].as_array().unwrap().clone());
        }
    }
    let mut got = isopod_auth::bootstrap::objects();
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter_mut().zip(&want) {
        if got.get("aggregationRule").is_some() {
            // Upstream's controller collects them after the start.
            assert!(!got["rules"].as_array().unwrap().is_empty());
            got["rules"] = Value::Null;
        }
        assert_eq!(got, want);
    }
}
