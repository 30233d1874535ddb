//! House rules: layer edges, file headers, lengths, names, unwrap, unsafe. Each failure names the place and the rule.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

const HARD_FILE_LINES: usize = 800;
const FUNCTION_LINES: usize = 70;

/// This crate's directory. Read when it runs: clones of the repository may share what was built.
fn here() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it").into()
}

fn root() -> PathBuf {
    here().ancestors().nth(2).unwrap().to_owned()
}

/// Every Rust file that is ours, relative to the root.
fn sources() -> Vec<(String, String)> {
    let out = Command::new("git").args(["ls-files", "*.rs"]).current_dir(root()).output().unwrap();
    assert!(out.status.success(), "git ls-files: {}", String::from_utf8_lossy(&out.stderr));
    let list = String::from_utf8(out.stdout).unwrap();
    let files: Vec<_> =
        list.lines().filter_map(|f| Some((f.to_owned(), fs::read_to_string(root().join(f)).ok()?))).collect();
    assert!(files.len() > 50, "found only {} sources", files.len());
    files
}

fn is_test_file(path: &str) -> bool {
    path.split('/').any(|p| matches!(p, "tests" | "benches" | "testing")) || path.ends_with("tests.rs")
}

/// The lines before the file's test module, which stands last.
fn code(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    let end = lines.iter().position(|l| l.trim_start().starts_with("#[cfg(test)]")).unwrap_or(lines.len());
    lines[..end].to_vec()
}

fn report(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}\n  {}", broken.join("\n  "));
}

#[test]
fn crates_depend_only_downwards() {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let meta: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let layers: toml::Value = toml::from_str(&fs::read_to_string(root().join("hack/layers.toml")).unwrap()).unwrap();
    let mut allowed: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, deps) in layers["crates"].as_table().unwrap() {
        allowed.insert(name, deps.as_array().unwrap().iter().map(|d| d.as_str().unwrap()).collect());
    }
    let mut broken = Vec::new();
    for package in meta["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let in_pkg = package["manifest_path"].as_str().unwrap().contains("/pkg/");
        let uses: BTreeSet<&str> = package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|d| d["kind"].is_null())
            .map(|d| d["name"].as_str().unwrap())
            .filter(|d| d.starts_with("isopod-"))
            .collect();
        match allowed.get(name) {
            Some(may) if *may != uses => broken.push(format!(
                "{name}: uses {:?} beyond the table; the table has {:?} unused",
                uses.difference(may).collect::<Vec<_>>(),
                may.difference(&uses).collect::<Vec<_>>()
            )),
            None if in_pkg && name != "isopod-testkit" => broken.push(format!("{name} is not in hack/layers.toml")),
            _ => {}
        }
    }
    report("edges between crates stand in hack/layers.toml", broken);
}

#[test]
fn every_file_says_what_it_is_for() {
    let broken = sources().into_iter().filter(|(_, t)| !t.starts_with("//!")).map(|(p, _)| p).collect();
    report("every file opens with `//!`: what it is for and its invariants", broken);
}

#[test]
fn files_and_functions_stay_short() {
    let mut broken = Vec::new();
    for (path, text) in sources().iter().filter(|(p, _)| !is_test_file(p)) {
        let lines = code(text);
        if lines.len() > HARD_FILE_LINES {
            broken.push(format!("{path}: {} lines, at most {HARD_FILE_LINES}", lines.len()));
        }
        broken.extend(long_functions(path, &lines));
    }
    report("files and functions stay short", broken);
}

/// rustfmt puts a function's closing brace in the column where `fn` starts.
fn long_functions(path: &str, lines: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        let head = ["pub ", "pub(crate) ", "pub(super) ", "async ", "const ", "unsafe "]
            .iter()
            .fold(text, |t, prefix| t.strip_prefix(prefix).unwrap_or(t));
        if !head.starts_with("fn ") || line.ends_with(';') || line.ends_with('}') {
            continue;
        }
        let close = format!("{}}}", " ".repeat(indent));
        if let Some(n) = lines[start..].iter().position(|l| *l == close)
            && n + 1 > FUNCTION_LINES
        {
            found.push(format!("{path}:{}: a function of {} lines, at most {FUNCTION_LINES}", start + 1, n + 1));
        }
    }
    found
}

#[test]
fn modules_have_real_names() {
    let vague = ["util", "utils", "common", "helpers", "helper", "misc"];
    let broken = sources()
        .into_iter()
        .map(|(p, _)| p)
        .filter(|p| p.split('/').any(|part| vague.contains(&part.trim_end_matches(".rs"))))
        .collect();
    report("no module is called util, common, helpers or misc", broken);
}

#[test]
fn no_panics_by_unwrap() {
    let mut broken = Vec::new();
    for (path, text) in sources().iter().filter(|(p, _)| !is_test_file(p) && !p.contains("testkit")) {
        for (n, line) in code(text).iter().enumerate() {
            let line = line.split("//").next().unwrap_or("");
            if line.contains(".unwrap()") || line.contains("todo!(") || line.contains("unimplemented!(") {
                broken.push(format!("{path}:{}: {}", n + 1, line.trim()));
            }
        }
    }
    report("no unwrap, todo or unimplemented outside tests", broken);
}

#[test]
fn unsafe_stands_in_sys_only() {
    let mut broken = Vec::new();
    for (path, text) in sources().iter().filter(|(p, _)| !p.starts_with("pkg/sys/") && !p.starts_with("hack/rules/")) {
        for (n, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl") {
                broken.push(format!("{path}:{}: {}", n + 1, line.trim()));
            }
        }
    }
    report("unsafe code stands in pkg/sys only", broken);
}
