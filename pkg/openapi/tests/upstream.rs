//! The documents against upstream's (`api/openapi-spec` of k8s.io/kubernetes, read from the Go module cache). What is known to
//! differ stands in `known_differences.txt`, which may only shrink.
//!
//! Not compared: CBOR, which is not served, enums and what descriptions say of them, which upstream leaves out of its files, and group
//! versions that are off by default.

#![allow(clippy::unwrap_used)]

use isopod_kinds::{Kind, table};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// The release that `hack/facts` takes its facts from.
const UPSTREAM: &str = "k8s.io/kubernetes@v1.37.0";

/// This crate's directory. Read when it runs: clones of the repository may share what was built.
fn here() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it").into()
}

fn spec_directory() -> PathBuf {
    let facts = here().join("../../hack/facts");
    let out = Command::new("go").args(["mod", "download", "-json", UPSTREAM]).current_dir(facts).output();
    let out = out.unwrap_or_else(|e| panic!("`go` cannot be run ({e}); this test needs Go to find {UPSTREAM}"));
    assert!(out.status.success(), "go mod download {UPSTREAM}: {}", String::from_utf8_lossy(&out.stderr));
    let module: Value = serde_json::from_slice(&out.stdout).expect("go prints JSON");
    PathBuf::from(module["Dir"].as_str().expect("a directory")).join("api/openapi-spec")
}

fn read(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Brings a document of either side to what is compared. `root`: v2's document, for its shared parameters.
fn normal(value: &Value, served: &BTreeSet<(String, String)>, root: &Value) -> Value {
    match value {
        Value::Object(map) => {
            if let Some(target) = map.get("$ref").and_then(Value::as_str)
                && let Some(name) = target.strip_prefix("#/parameters/")
            {
                return normal(&root["parameters"][name], served, root);
            }
            if let (Some([one]), true) = (map.get("allOf").and_then(Value::as_array).map(Vec::as_slice), map.len() <= 3)
            {
                // A reference with siblings in v3.
                let mut out = map.clone();
                out.remove("allOf");
                if let Value::Object(inner) = one {
                    out.extend(inner.clone());
                }
                return normal(&Value::Object(out), served, root);
            }
            let left_out = |key: &str, v: &Value| {
                // Files have no values of enums, servers do.
                key.contains("cbor") || (key == "enum" && v.is_array())
            };
            let entries = map.iter().filter(|(k, v)| !left_out(k, v));
            entries.map(|(k, v)| (k.clone(), member(k, v, served, root))).collect::<Map<_, _>>().into()
        }
        Value::Array(items) => {
            let cbor = |v: &Value| v.as_str().is_some_and(|s| s.contains("cbor"));
            items.iter().filter(|v| !cbor(v)).map(|v| normal(v, served, root)).collect()
        }
        other => other.clone(),
    }
}

fn member(key: &str, value: &Value, served: &BTreeSet<(String, String)>, root: &Value) -> Value {
    if key == "version" && value == "unversioned" {
        // Upstream's files carry no version, its servers do.
        return Value::from(isopod_openapi::API_VERSION);
    }
    if let ("description", Some(text)) = (key, value.as_str()) {
        return text.split_once("\n\nPossible enum values:\n").map_or(text, |(own, _)| own.trim_end()).into();
    }
    let mut value = normal(value, served, root);
    if let (
        "required" | "consumes" | "produces" | "parameters" | "x-kubernetes-group-version-kind",
        Value::Array(items),
    ) = (key, &mut value)
    {
        items.retain(|v| match (v.get("group"), v.get("version")) {
            (Some(g), Some(v)) => served.contains(&(g.as_str().unwrap_or("").into(), v.as_str().unwrap_or("").into())),
            _ => true,
        });
        items.sort_by_key(|v| match (v.get("name"), v.get("in")) {
            (Some(name), Some(place)) => format!("{name}{place}"),
            _ => v.to_string(),
        });
    }
    value
}

fn differences(path: &str, want: &Value, got: &Value, out: &mut BTreeSet<String>) {
    match (want, got) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                match (a.get(key), b.get(key)) {
                    (Some(x), Some(y)) => differences(&format!("{path}|{key}"), x, y, out),
                    (Some(_), None) => drop(out.insert(format!("{path}|{key}: missing"))),
                    _ => drop(out.insert(format!("{path}|{key}: extra"))),
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (x, y)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}|{i}"), x, y, out);
            }
        }
        (a, b) if a != b => drop(out.insert(format!("{path}: want {a}, got {b}"))),
        _ => {}
    }
}

fn served(kinds: &[Arc<Kind>]) -> BTreeSet<(String, String)> {
    kinds.iter().map(|k| (k.gvk.group.clone(), k.gvk.version.clone())).collect()
}

#[test]
fn documents_are_upstreams() {
    let kinds = table::builtin();
    let served = served(&kinds);
    let directory = spec_directory();
    let mut found = BTreeSet::new();
    for path in isopod_openapi::group_versions(&kinds) {
        let theirs = read(&directory.join("v3").join(format!("{}_openapi.json", path.replace('/', "__"))));
        let ours = isopod_openapi::v3(&kinds, &path).expect("listed");
        differences(&path, &normal(&theirs, &served, &Value::Null), &normal(&ours, &served, &Value::Null), &mut found);
    }
    let theirs = read(&directory.join("swagger.json"));
    let ours = isopod_openapi::v2(&kinds);
    compare_v2(&normal(&theirs, &served, &theirs), &normal(&ours, &served, &ours), &mut found);

    let file = here().join("tests/known_differences.txt");
    let known = std::fs::read_to_string(&file).expect("committed");
    let known: BTreeSet<String> = known.lines().filter(|l| !l.starts_with('#')).map(str::to_owned).collect();
    let new: Vec<_> = found.difference(&known).cloned().collect();
    let gone: Vec<_> = known.difference(&found).cloned().collect();
    assert!(new.is_empty(), "{} new differences:\n{}", new.len(), new[..new.len().min(60)].join("\n"));
    assert!(gone.is_empty(), "no longer different, take them out of the file:\n{}", gone.join("\n"));
}

/// v2 is one document of everything: only what we serve is compared.
fn compare_v2(theirs: &Value, ours: &Value, found: &mut BTreeSet<String>) {
    for section in ["paths", "definitions", "parameters"] {
        let (Value::Object(theirs), Value::Object(ours)) = (&theirs[section], &ours[section]) else {
            panic!("no {section}")
        };
        for (key, value) in ours {
            match theirs.get(key) {
                Some(want) => differences(&format!("v2|{section}|{key}"), want, value, found),
                None => drop(found.insert(format!("v2|{section}|{key}: extra"))),
            }
        }
    }
    for key in ["swagger", "securityDefinitions", "security"] {
        differences(&format!("v2|{key}"), &theirs[key], &ours[key], found);
    }
}
