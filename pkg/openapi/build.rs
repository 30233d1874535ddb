//! Takes the descriptions of the built-in types from the source of `k8s-openapi` and embeds them as one compressed text, so
//! that none lies in memory uncompressed. What that crate does not have (lists, parameters, what enums add) stands with the facts
//! of `pkg/schema`.
//!
//! That crate's `schemars` feature holds them as `json_schema!` blocks, which its generator writes in one fixed layout. They
//! are read as text: compiling the feature for the build host takes minutes, again for every set of features.
//!
//! The text has a line for each definition and below it, indented by a tab, one for each field: name, tab, description,
//! where line breaks and backslashes are escaped. Parameters are the fields of `parameters`.

use serde_json::Value;
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The API version whose types are read, as a module of `k8s-openapi`.
const MODULE: &str = "src/v1_37";

/// What `k8s-openapi` lacks, in the form of the text.
const MISSING: &str = "../schema/facts/descriptions.tsv";
/// What descriptions of enums end with: a line for each end, and below it a definition and a field for each that has it.
const ENUMS: &str = "../schema/facts/enums.tsv";
/// A kind whose type fields are described as all kinds' are.
const SOME_KIND: &str = "io.k8s.api.core.v1.Pod";

/// A definition's description and those of its fields, escaped.
#[derive(Default)]
struct Definition {
    description: String,
    fields: BTreeMap<String, String>,
}

/// The directory of `k8s-openapi`, which the workspace depends on.
fn source() -> Result<PathBuf, Box<dyn Error>> {
    let cargo = std::env::var("CARGO")?;
    let target = std::env::var("TARGET")?;
    let manifest = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("Cargo.toml");
    // Without the network first; then whatever is missing is fetched.
    for extra in [&["--offline"][..], &[]] {
        let mut command = Command::new(&cargo);
        command.args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            &target,
            "--manifest-path",
        ]);
        let out = command.arg(&manifest).args(extra).output()?;
        if !out.status.success() {
            println!(
                "cargo::warning=cargo metadata {extra:?}: {}",
                String::from_utf8_lossy(&out.stderr).replace('\n', " ")
            );
            continue;
        }
        let metadata: Value = serde_json::from_slice(&out.stdout)?;
        let packages = metadata["packages"].as_array().into_iter().flatten();
        let found = packages.filter(|p| p["name"] == "k8s-openapi").find_map(|p| p["manifest_path"].as_str());
        let found = found.ok_or("the workspace does not depend on k8s-openapi")?;
        return Path::new(found).parent().map(Path::to_owned).ok_or_else(|| "a manifest has a directory".into());
    }
    Err("cargo metadata fails".into())
}

/// The first Rust string literal of a text, unescaped, and what follows it.
fn literal(text: &str) -> Option<(String, &str)> {
    let start = text.find('"')? + 1;
    let mut out = String::new();
    let mut chars = text[start..].char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Some((out, &text[start + i + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => out.push('\n'),
                't' => out.push('\t'),
                'r' => out.push('\r'),
                other => out.push(other),
            },
            c => out.push(c),
        }
    }
    None
}

/// Reads the `JsonSchema` implementations of one file.
fn read(text: &str, into: &mut BTreeMap<String, Definition>) {
    for block in text.split("impl crate::schemars::JsonSchema for ").skip(1) {
        let Some((name, rest)) = block.split_once("fn schema_name()").and_then(|(_, rest)| literal(rest)) else {
            continue;
        };
        let definition = into.entry(name).or_default();
        let mut field = None;
        for line in rest.lines() {
            let content = line.trim_start();
            let after = |prefix: &str| content.strip_prefix(prefix).and_then(literal).map(|(text, _)| text);
            let description = || {
                let inserted = || after("schema_obj.ensure_object().insert(\"description\".into(),");
                after("\"description\":").or_else(inserted).map(|text| escaped(&text))
            };
            match line.len() - content.len() {
                // The schema's own members.
                12 => {
                    definition.description =
                        description().unwrap_or_else(|| std::mem::take(&mut definition.description))
                }
                // Members of `properties`.
                16 => field = literal(content).map(|(name, _)| name),
                // Members of a property.
                20 => {
                    if let (Some(name), Some(text)) = (&field, description()) {
                        definition.fields.insert(name.clone(), text);
                    }
                }
                _ => {}
            }
        }
    }
}

fn walk(directory: &Path, into: &mut BTreeMap<String, Definition>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, into)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            read(&fs::read_to_string(&path)?, into);
        }
    }
    Ok(())
}

/// Adds what the facts have. Lists describe their type as all kinds do.
fn complete(definitions: &mut BTreeMap<String, Definition>, facts: &str) {
    let some = definitions.get(SOME_KIND).map(|some| some.fields.clone()).unwrap_or_default();
    let of_type: BTreeMap<_, _> =
        some.into_iter().filter(|(field, _)| matches!(field.as_str(), "apiVersion" | "kind")).collect();
    let mut name = String::new();
    for line in facts.lines() {
        match line.strip_prefix('\t').unwrap_or(line).split_once('\t') {
            Some((field, text)) if line.starts_with('\t') => {
                definitions.entry(name.clone()).or_default().fields.insert(field.to_owned(), text.to_owned());
            }
            Some((definition, text)) => {
                name = definition.to_owned();
                let fields = if name.ends_with("List") { of_type.clone() } else { BTreeMap::new() };
                definitions.insert(name.clone(), Definition { description: text.to_owned(), fields });
            }
            None => {}
        }
    }
}

/// Adds to the descriptions of enums what their values mean.
fn enumerate(definitions: &mut BTreeMap<String, Definition>, facts: &str) {
    let mut end = "";
    for line in facts.lines() {
        let Some((name, field)) = line.strip_prefix('\t').and_then(|of| of.split_once('\t')) else {
            end = line;
            continue;
        };
        if let Some(text) = definitions.get_mut(name).and_then(|d| d.fields.get_mut(field)) {
            text.push_str(end);
        }
    }
}

/// FNV-1a, which tells texts of two builds apart.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn escaped(description: &str) -> String {
    description.replace('\\', "\\\\").replace('\n', "\\n").replace('\t', "\\t")
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../../Cargo.lock");
    let mut definitions = BTreeMap::new();
    walk(&source()?.join(MODULE), &mut definitions)?;
    let facts = |file: &str| {
        println!("cargo::rerun-if-changed={file}");
        fs::read_to_string(Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join(file)).map_err(Box::<dyn Error>::from)
    };
    complete(&mut definitions, &facts(MISSING)?);
    enumerate(&mut definitions, &facts(ENUMS)?);
    let mut text = String::new();
    for (name, definition) in &definitions {
        writeln!(text, "{name}\t{}", definition.description)?;
        for (field, description) in &definition.fields {
            writeln!(text, "\t{field}\t{description}")?;
        }
    }
    let described = text.lines().filter(|l| !l.ends_with('\t')).count();
    if described < 3000 {
        return Err(format!("only {described} descriptions are found in k8s-openapi: has its layout changed?").into());
    }
    println!("cargo::rustc-env=ISOPOD_DESCRIPTIONS={:016x}", hash(&text));
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("descriptions.zst");
    fs::write(out, zstd::encode_all(text.as_bytes(), 19)?)?;
    Ok(())
}
