//! Projected volumes: secrets, config maps, the downward API, tokens, trust bundles and pod certificates in one directory.

use super::check::{invalid_each, non_reserved_path, required};
use super::security::user_field;
use super::volume::{downward_file, key_to_path, mode};
use crate::access::Access;
use crate::metadata::label_selector;
use isopod_api::names;
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;
use std::collections::BTreeSet;

pub fn volume(v: &Value, path: &Path) -> FieldErrors {
    let mut errs = mode(v, "defaultMode", path);
    errs.extend(user_field(v, "defaultUser", path));
    let mut files = Files { path: path.clone(), seen: BTreeSet::new() };
    for (i, s) in v.list("sources").iter().enumerate() {
        let p = path.child("sources").index(i);
        errs.extend(source(s, &p, path, &mut files));
    }
    errs
}

/// The files that sources make: no two may have one path.
struct Files<'a> {
    path: Path,
    seen: BTreeSet<&'a str>,
}

impl<'a> Files<'a> {
    fn add(&mut self, file: &'a str, shown: &str) -> Option<FieldError> {
        let conflict = !file.is_empty() && !self.seen.insert(file);
        conflict.then(|| FieldError::invalid(&self.path, shown, "conflicting duplicate paths"))
    }
}

fn source<'a>(s: &'a Value, path: &Path, volume: &Path, files: &mut Files<'a>) -> FieldErrors {
    let kinds = ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"];
    let mut errs = Vec::new();
    let mut count = 0;
    for kind in kinds.iter().filter(|k| s.has(k)) {
        count += 1;
        let (v, p) = (s.at(kind), path.child(kind));
        errs.extend(match *kind {
            "secret" | "configMap" => keys(v, &p, files),
            "downwardAPI" => downward(v, &p, files),
            "serviceAccountToken" => token(v, &p, volume),
            "clusterTrustBundle" => trust_bundle(v, &p, files),
            _ => certificate(v, &p, files),
        });
    }
    if count > 1 {
        errs.push(FieldError::forbidden(path, "may not specify more than 1 volume type per source"));
    }
    errs
}

fn keys<'a>(v: &'a Value, path: &Path, files: &mut Files<'a>) -> FieldErrors {
    let mut errs = required(v, "name", path);
    for (i, item) in v.list("items").iter().enumerate() {
        errs.extend(key_to_path(item, &path.child("items").index(i)));
        errs.extend(files.add(item.text("path"), v.text("name")));
    }
    errs
}

fn downward<'a>(v: &'a Value, path: &Path, files: &mut Files<'a>) -> FieldErrors {
    let mut errs = Vec::new();
    for f in v.list("items") {
        errs.extend(downward_file(f, path));
        errs.extend(files.add(f.text("path"), f.text("path")));
    }
    errs
}

fn token(v: &Value, path: &Path, volume: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let p = path.child("expirationSeconds");
    match v.int("expirationSeconds") {
        None => errs.push(FieldError::required(&p, "")),
        Some(n) if n < 600 => {
            errs.push(FieldError::invalid(&p, n, "may not specify a duration less than 10 minutes"));
        }
        Some(n) if n > 1 << 32 => {
            errs.push(FieldError::invalid(&p, n, "may not specify a duration larger than 2^32 seconds"));
        }
        _ => {}
    }
    match v.text("path") {
        "" => errs.push(FieldError::required(&volume.child("path"), "")),
        file => errs.extend(non_reserved_path(file, &volume.child("path"))),
    }
    errs.extend(user_field(v, "user", path));
    errs
}

/// `example.com/name`: who signs certificates. Two segments at least in the domain, at most one slash.
pub fn signer_name(name: &str, path: &Path) -> FieldErrors {
    if name.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let Some((domain, rest)) = name.split_once('/').filter(|(_, r)| !r.contains('/')) else {
        let m = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return vec![FieldError::invalid(path, name, m)];
    };
    let mut errs = Vec::new();
    for l in domain.split('.') {
        let msgs = names::dns1123_label(l);
        errs.extend(
            msgs.into_iter().map(|m| FieldError::invalid(path, domain, format!("validating label {l:?}: {m}"))),
        );
    }
    if domain.split('.').count() < 2 {
        errs.push(FieldError::invalid(path, domain, "should be a domain with at least two segments separated by dots"));
    }
    for l in rest.split('.') {
        let msgs = names::dns1123_label(l);
        errs.extend(msgs.into_iter().map(|m| FieldError::invalid(path, rest, format!("validating label {l:?}: {m}"))));
    }
    errs
}

fn trust_bundle<'a>(v: &'a Value, path: &Path, files: &mut Files<'a>) -> FieldErrors {
    let mut errs = Vec::new();
    match (v.at("name").as_str(), v.at("signerName").as_str()) {
        (Some(_), Some(_)) => {
            errs.push(FieldError::invalid(path, v.clone(), "only one of name and signerName may be used"));
        }
        (Some(name), None) => {
            let p = path.child("name");
            if name.is_empty() {
                errs.push(FieldError::required(&p, "must be a valid object name"));
            }
            let last = name.rsplit(':').next().unwrap_or(name);
            let msgs =
                names::dns1123_subdomain(last).into_iter().map(|m| format!("not a valid clustertrustbundlename: {m}"));
            errs.extend(invalid_each(&p, name, msgs.collect()));
            if v.has("labelSelector") {
                let m = "labelSelector must be unset if name is specified";
                errs.push(FieldError::invalid(&path.child("labelSelector"), v["labelSelector"].clone(), m));
            }
        }
        (None, Some(signer)) => {
            let p = path.child("signerName");
            if signer.is_empty() {
                errs.push(FieldError::required(&p, "must be a valid signer name"));
            }
            errs.extend(signer_name(signer, &p));
            errs.extend(label_selector(v.at("labelSelector"), &path.child("labelSelector")));
        }
        (None, None) => errs.push(FieldError::required(path, "either name or signerName must be specified")),
    }
    errs.extend(required(v, "path", path));
    errs.extend(user_field(v, "user", path));
    errs.extend(non_reserved_path(v.text("path"), &path.child("path")));
    errs.extend(files.add(v.text("path"), v.text("path")));
    errs
}

fn certificate<'a>(v: &'a Value, path: &Path, files: &mut Files<'a>) -> FieldErrors {
    let mut errs = signer_name(v.text("signerName"), &path.child("signerName"));
    for (k, _) in v.entries("userAnnotations") {
        errs.extend(names::domain_prefixed_key(&path.child("userAnnotations"), &k.to_lowercase()));
    }
    errs.extend(user_field(v, "user", path));
    let types = ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
    errs.extend(super::check::supported(v.text("keyType"), &types, &path.child("keyType")));
    if let Some(n) = v.int("maxExpirationSeconds") {
        let p = path.child("maxExpirationSeconds");
        let kubernetes = v
            .text("signerName")
            .split('/')
            .next()
            .is_some_and(|d| d == "kubernetes.io" || d.ends_with(".kubernetes.io"));
        let max = if kubernetes { 86400 } else { 7_862_400 };
        if n < 3600 {
            errs.push(FieldError::invalid(&p, n, "if provided, maxExpirationSeconds must be >= 3600"));
        }
        if n > max {
            errs.push(FieldError::invalid(&p, n, format!("if provided, maxExpirationSeconds must be <= {max}")));
        }
    }
    let paths: Vec<&str> = ["credentialBundlePath", "keyPath", "certificateChainPath"]
        .into_iter()
        .filter(|f| !v.text(f).is_empty())
        .collect();
    for f in &paths {
        errs.extend(non_reserved_path(v.text(f), &path.child(f)));
        errs.extend(files.add(v.text(f), v.text(f)));
    }
    if paths.is_empty() {
        let m = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        errs.push(FieldError::required(path, m));
    }
    errs
}
