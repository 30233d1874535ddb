//! Upstream's own golden files (`testdata/HEAD` of its modules: JSON, YAML and protobuf of every kind, all fields set) against
//! the decoders and encoders. The files are read from the Go module cache, where `hack/facts/go.mod` puts them.

#![allow(clippy::unwrap_used)]

use isopod_schema::{facts, json, proto::envelope};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// This crate's directory. Read when it runs: clones of the repository may share what was built.
fn here() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it").into()
}

/// The directory of a module that `hack/facts/go.mod` requires. Fails with what to do when Go is missing.
fn module(name: &str) -> PathBuf {
    let facts = here().join("../../hack/facts");
    let go = |args: &[&str]| {
        let out = Command::new("go").args(args).current_dir(&facts).output();
        let out = out.unwrap_or_else(|e| panic!("`go` cannot be run ({e}); the golden tests need Go to find {name}"));
        assert!(out.status.success(), "go {args:?} in hack/facts: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    };
    go(&["mod", "download", name]);
    let dir = PathBuf::from(go(&["list", "-m", "-f", "{{.Dir}}", name]));
    assert!(dir.is_dir(), "{name} is not in the module cache at {}", dir.display());
    dir
}

/// The stems of the golden files (`apps.v1.Deployment`) of kinds that the catalog knows.
fn served(dir: &Path) -> Vec<(PathBuf, std::sync::Arc<isopod_schema::types::Object>)> {
    let mut out = Vec::new();
    for (api_version, kind, definition) in facts::builtin().gvks() {
        let (group, version) = api_version.split_once('/').unwrap_or(("core", api_version));
        let stem = dir.join(format!("{group}.{version}.{kind}"));
        if stem.with_file_name(format!("{group}.{version}.{kind}.json")).exists() {
            out.push((stem, facts::builtin().object(definition).expect("in the catalog")));
        }
    }
    out
}

fn read(stem: &Path, ext: &str) -> Vec<u8> {
    let path = format!("{}.{ext}", stem.display());
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn upstream_golden_files_round_trip() {
    let mut cases = served(&module("k8s.io/api").join("testdata/HEAD"));
    cases.extend(served(&module("k8s.io/apiextensions-apiserver").join("pkg/apis/testdata/HEAD")));
    assert!(cases.len() > 70, "only {} golden files belong to served kinds", cases.len());
    let mut failed = Vec::new();
    for (stem, object) in &cases {
        let name = stem.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let from_json = match json::decode(&read(stem, "json"), object) {
            Ok(d) => d,
            Err(e) => {
                failed.push(format!("{name}: {e}"));
                continue;
            }
        };
        if !from_json.strict.is_empty() {
            failed.push(format!("{name}: {:?}", from_json.strict));
        }
        let plain: Value = serde_json::from_slice(&read(stem, "json")).expect("valid JSON");
        let mut canonical = from_json.value;
        json::canonicalize(&mut canonical, object);
        if let Some(d) = difference("", &plain, &canonical) {
            failed.push(format!("{name}: JSON {d}"));
        }
        let yaml: Value = serde_yaml_ng::from_slice(&read(stem, "yaml")).expect("valid YAML");
        let from_yaml = json::decode_value(yaml, object).expect("decodes").value;
        if let Some(d) = difference("", &canonical, &from_yaml) {
            failed.push(format!("{name}: YAML {d}"));
        }
        let bytes = read(stem, "pb");
        match envelope::open(&bytes, object) {
            Err(e) => failed.push(format!("{name}: protobuf {e}")),
            Ok((_, v)) => {
                if let Some(d) = difference("", &canonical, &v) {
                    failed.push(format!("{name}: from protobuf {d}"));
                }
            }
        }
        let encoded = envelope::seal(&canonical, object);
        if encoded != bytes {
            let at = encoded.iter().zip(&bytes).position(|(a, b)| a != b).unwrap_or(encoded.len().min(bytes.len()));
            failed.push(format!(
                "{name}: to protobuf: {} bytes, upstream {}, they differ from {at}",
                encoded.len(),
                bytes.len()
            ));
        }
    }
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

/// The first place where two values differ.
fn difference(path: &str, want: &Value, got: &Value) -> Option<String> {
    match (want, got) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|k| !a.contains_key(*k)));
            keys.into_iter().find_map(|k| match (a.get(k), b.get(k)) {
                (Some(x), Some(y)) => difference(&format!("{path}.{k}"), x, y),
                (x, y) => Some(format!("{path}.{k}: want {x:?}, got {y:?}")),
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (x, y))| difference(&format!("{path}[{i}]"), x, y))
        }
        (a, b) => (a != b).then(|| format!("{path}: want {a}, got {b}")),
    }
}
