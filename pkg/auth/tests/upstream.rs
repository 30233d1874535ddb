//! The bootstrap policy against upstream's own, which the k8s.io/kubernetes module keeps as test data. `go mod download`
//! brings the module to the Go module cache.

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

/// The release that `hack/facts` takes its facts from.
const UPSTREAM: &str = "k8s.io/kubernetes@v1.37.0";

/// This crate's directory. Read when it runs: clones of the repository may share what was built.
fn here() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it").into()
}

fn testdata() -> PathBuf {
    let facts = here().join("../../hack/facts");
    let out = Command::new("go").args(["mod", "download", "-json", UPSTREAM]).current_dir(facts).output();
    let out = out.unwrap_or_else(|e| panic!("`go` cannot be run ({e}); this test needs Go to find {UPSTREAM}"));
    assert!(out.status.success(), "go mod download {UPSTREAM}: {}", String::from_utf8_lossy(&out.stderr));
    let module: Value = serde_json::from_slice(&out.stdout).expect("go prints JSON");
    let module = PathBuf::from(module["Dir"].as_str().expect("a directory"));
    module.join("plugin/pkg/auth/authorizer/rbac/bootstrappolicy/testdata")
}

#[test]
fn the_policy_is_upstreams() {
    let dir = testdata();
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
            assert!(got.get("rules").is_none());
            got["rules"] = Value::Null;
        }
        assert_eq!(got, want);
    }
}
