//! Certificate signing requests: who asks is what the API server knows, and approval, certificate and conditions each
//! change through their own subresource only.
//!
//! Invariant: a request is never changed once it is there.

use crate::access::{Access, keep, list_mut, set, unset};
use crate::kind::Ctx;
use crate::kinds::pod_certificates;
use crate::metadata::immutable;
use crate::ownership;
use crate::strategy::{PLAIN, STATELESS, Strategy};
use crate::validation::check::supported;
use crate::validation::projected::signer_name;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use isopod_api::{FieldError, FieldErrors, Path, names, time};
use isopod_pki::signing::CertificateRequest;
use isopod_pki::x509::{Block, Certificate, Key, blocks};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
const MAX_BUNDLE: usize = 1024 * 1024;
/// What errors show instead of a bundle.
const OMITTED: &str = "<value omitted>";
const MIN_SECONDS: i64 = 600;
/// In the order of their names, as messages list them.
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

pub fn strategy(kind: &str) -> Strategy {
    match kind {
        "CertificateSigningRequest" => Strategy {
            fields: &["spec.signerName"],
            owned: ownership::signing_request,
            generation: false,
            prepare_create,
            prepare_update,
            create: |new| request(new, None),
            update: |new, old| changes(new, old, ""),
            update_status: |new, old| changes(new, old, "status"),
            update_other: |subresource, new, old| changes(new, old, subresource),
            ..PLAIN
        },
        "ClusterTrustBundle" => Strategy {
            fields: &["spec.signerName"],
            unconditional_update: false,
            name: Some(bundle_name),
            create: |new| {
                let mut errs = bundle_signer(new);
                errs.extend(anchors(new));
                errs
            },
            update: |new, old| {
                let mut errs = bundle_signer(new);
                // A bundle that stays is not looked at again.
                if new.text("spec.trustBundle") != old.text("spec.trustBundle") {
                    errs.extend(anchors(new));
                }
                errs.extend(immutable(new.at("spec"), old.at("spec"), "signerName", &Path::new("spec")));
                errs
            },
            ..STATELESS
        },
        _ => Strategy {
            fields: &["spec.signerName", "spec.podName", "spec.nodeName"],
            owned: ownership::status_alone,
            generation: false,
            unconditional_update: false,
            create: pod_certificates::create,
            update: pod_certificates::update,
            update_status_at: Some(pod_certificates::update_status),
            ..PLAIN
        },
    }
}

fn prepare_create(ctx: &Ctx, new: &mut Value) {
    for f in ["username", "uid", "groups", "extra"] {
        unset(new, &format!("spec.{f}"));
    }
    let user = ctx.user;
    if !user.name.is_empty() {
        set(new, "spec.username", user.name.as_str());
    }
    if !user.uid.is_empty() {
        set(new, "spec.uid", user.uid.as_str());
    }
    if !user.groups.is_empty() {
        set(new, "spec.groups", user.groups.clone());
    }
    if !user.extra.is_empty() {
        set(new, "spec.extra", json!(user.extra));
    }
    set(new, "status", json!({}));
}

fn prepare_update(ctx: &Ctx, new: &mut Value, old: &Value) {
    keep(new, old, "spec");
    match ctx.subresource {
        "status" => {
            for kind in ["Approved", "Denied"] {
                keep_conditions(new, old, kind);
            }
            stamp(ctx, new, old);
        }
        "approval" => {
            stamp(ctx, new, old);
            let conditions = new.at("status.conditions").clone();
            keep(new, old, "status");
            set(new, "status.conditions", conditions);
        }
        _ => keep(new, old, "status"),
    }
}

fn of_type<'a>(obj: &'a Value, kind: &'a str) -> Vec<&'a Value> {
    obj.list("status.conditions").iter().filter(|c| c.text("type") == kind).collect()
}

/// Conditions of a type stay as they were, where there are as many as before.
fn keep_conditions(new: &mut Value, old: &Value, kind: &str) {
    let before = of_type(old, kind);
    if of_type(new, kind).len() != before.len() {
        return;
    }
    let places = list_mut(new, "status.conditions").iter_mut().filter(|c| c.text("type") == kind);
    for (place, was) in places.zip(before) {
        *place = was.clone();
    }
}

/// Times that the client left out.
fn stamp(ctx: &Ctx, new: &mut Value, old: &Value) {
    let now = time::format(ctx.now);
    for c in list_mut(new, "status.conditions") {
        if c.is_empty_at("lastUpdateTime") {
            set(c, "lastUpdateTime", now.as_str());
        }
        if c.is_empty_at("lastTransitionTime") {
            let same = |o: &&Value| ["type", "status"].iter().all(|f| o.text(f) == c.text(f));
            let before = old.list("status.conditions").iter().find(|o| same(o) && o.has("lastTransitionTime"));
            let at = before.map_or(now.as_str(), |o| o.text("lastTransitionTime")).to_owned();
            set(c, "lastTransitionTime", at);
        }
    }
}

/// The text of a base64 field.
fn text(v: &Value) -> String {
    let bytes = STANDARD.decode(v.as_str().unwrap_or("")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Why a request is none, or not of who has the key, as Go says it.
fn unproven(pem: &str) -> Option<String> {
    let Some(block) = blocks(pem).into_iter().next().filter(|b| b.label == "CERTIFICATE REQUEST") else {
        return Some("PEM block type must be CERTIFICATE REQUEST".to_owned());
    };
    let Ok(request) = CertificateRequest::from_der(&block.der) else { return Some(malformed(&block.der)) };
    request.prove().err()?;
    let why = match Key::of(request.public_key()) {
        Some(Key::Rsa(_)) => "crypto/rsa: verification error",
        Some(Key::Ed25519) => "x509: Ed25519 verification failure",
        _ => "x509: ECDSA verification failure",
    };
    Some(why.to_owned())
}

/// What Go's reader says first of DER that is no request.
fn malformed(der: &[u8]) -> String {
    let [tag, length, rest @ ..] = der else { return "asn1: syntax error: sequence truncated".to_owned() };
    let count = usize::from(length & 0x7f);
    let (head, content) = match (length >= &0x80, rest.get(..count)) {
        (false, _) => (2, count),
        (true, Some(bytes)) if count <= 4 => (2 + count, bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b))),
        _ => return "asn1: syntax error: data truncated".to_owned(),
    };
    if *tag != 0x30 {
        let (class, number, compound) = (tag >> 6, tag & 0x1f, tag & 0x20 != 0);
        let parameters = "optional:false explicit:false application:false private:false defaultValue:<nil> tag:<nil> \
            stringType:0 timeType:0 set:false omitEmpty:false";
        return format!(
            "asn1: structure error: tags don't match (16 vs {{class:{class} tag:{number} length:{content} \
             isCompound:{compound}}}) {{{parameters}}} certificateRequest @{head}"
        );
    }
    let why = match der.len().checked_sub(head + content) {
        None => "asn1: syntax error: data truncated",
        Some(0) if content == 0 => "asn1: syntax error: sequence truncated",
        Some(0) => "asn1: structure error: malformed certificate request",
        Some(_) => "asn1: syntax error: trailing data",
    };
    why.to_owned()
}

/// A bundle of a signer has the signer's name before its own.
fn bundle_name(bundle: &Value, name: &str, generated: bool) -> Vec<String> {
    let signer = bundle.text("spec.signerName");
    let prefix = format!("{}:", signer.replace('/', ":"));
    match (signer, name.strip_prefix(&prefix)) {
        ("", _) if name.contains(':') => {
            vec!["ClusterTrustBundle without signer name must not have \":\" in its name".to_owned()]
        }
        ("", _) => names::name_is_dns_subdomain(name, generated),
        (_, Some(rest)) => names::name_is_dns_subdomain(rest, generated),
        (_, None) => vec![format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}")],
    }
}

fn bundle_signer(bundle: &Value) -> FieldErrors {
    match bundle.text("spec.signerName") {
        "" => Vec::new(),
        signer => signer_name(signer, &Path::new("spec").child("signerName")),
    }
}

/// The certificates of a bundle: authorities', each once.
fn anchors(b: &Value) -> FieldErrors {
    let p = Path::new("spec").child("trustBundle");
    let pem = b.text("spec.trustBundle");
    if pem.len() > MAX_BUNDLE {
        return vec![FieldError::too_long(&p, MAX_BUNDLE)];
    }
    let all = blocks(pem);
    let wrong = |why: String| FieldError::invalid(&p, OMITTED, why);
    let odd = all.iter().enumerate().filter_map(|(i, block)| Some(wrong(format!("entry {i} {}", no_anchor(block)?))));
    let errs: FieldErrors = odd.collect();
    if !errs.is_empty() {
        return errs;
    }
    if all.is_empty() {
        return vec![wrong("at least one trust anchor must be provided".to_owned())];
    }
    let mut places: BTreeMap<&[u8], Vec<usize>> = BTreeMap::new();
    for (i, block) in all.iter().enumerate() {
        places.entry(&block.der).or_default().push(i);
    }
    let twice = places.into_values().filter(|indices| indices.len() > 1);
    twice
        .map(|indices| {
            let indices: Vec<String> = indices.iter().map(usize::to_string).collect();
            wrong(format!("duplicate trust anchor (indices [{}])", indices.join(" ")))
        })
        .collect()
}

/// Why nobody can be trusted by a block.
fn no_anchor(block: &Block) -> Option<String> {
    if block.label != "CERTIFICATE" {
        return Some(format!("has bad block type: {}", block.label));
    }
    if block.has_headers {
        return Some("has PEM block headers".to_owned());
    }
    match Certificate::from_der(&block.der) {
        None => Some("does not parse as X.509".to_owned()),
        Some(certificate) if !certificate.is_ca => Some("does not have the CA bit set".to_owned()),
        Some(_) => None,
    }
}

fn request(csr: &Value, old: Option<&Value>) -> FieldErrors {
    let spec = Path::new("spec");
    let mut errs = Vec::new();
    if let Some(why) = unproven(&text(csr.at("spec.request"))) {
        errs.push(FieldError::invalid(&spec.child("request"), csr.at("spec.request").clone(), why));
    }
    let usages = csr.texts("spec.usages");
    if usages.is_empty() {
        errs.push(FieldError::required(&spec.child("usages"), ""));
    }
    if old.is_none() {
        for (i, u) in usages.iter().enumerate() {
            errs.extend(supported(u, &USAGES, &spec.child("usages").index(i)));
        }
        let mut seen = BTreeSet::new();
        for (i, u) in usages.iter().enumerate().filter(|(_, u)| !seen.insert(**u)) {
            errs.push(FieldError::duplicate(&spec.child("usages").index(i), *u));
        }
    }
    let signer = csr.text("spec.signerName");
    if signer == LEGACY_SIGNER && old.is_none() {
        let m = "the legacy signerName is not allowed via this API version";
        errs.push(FieldError::invalid(&spec.child("signerName"), signer, m));
    } else {
        errs.extend(signer_name(signer, &spec.child("signerName")));
    }
    if let Some(n) = csr.int("spec.expirationSeconds").filter(|n| *n < MIN_SECONDS) {
        let m = "may not specify a duration less than 600 seconds (10 minutes)";
        errs.push(FieldError::invalid(&spec.child("expirationSeconds"), n, m));
    }
    errs.extend(conditions(csr, old));
    errs.extend(certificate(csr, old));
    errs
}

fn certificate(csr: &Value, old: Option<&Value>) -> FieldErrors {
    let now = csr.at("status.certificate");
    if now.is_null() || now == "" || old.is_some_and(|o| o.at("status.certificate") == now) {
        return Vec::new();
    }
    let all = blocks(&text(now));
    let why = match all.iter().find_map(no_certificate) {
        Some(why) => why,
        None if all.is_empty() => "must contain at least one CERTIFICATE PEM block".to_owned(),
        None => return Vec::new(),
    };
    vec![FieldError::invalid(&Path::new("status").child("certificate"), "<certificate data>", why)]
}

fn no_certificate(block: &Block) -> Option<String> {
    if block.label != "CERTIFICATE" {
        return Some(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", block.label));
    }
    if block.has_headers {
        return Some("no PEM block headers are permitted".to_owned());
    }
    if block.der.is_empty() {
        return Some("found CERTIFICATE PEM block containing 0 certificates".to_owned());
    }
    Certificate::from_der(&block.der).is_none().then(|| "x509: malformed certificate".to_owned())
}

fn conditions(csr: &Value, old: Option<&Value>) -> FieldErrors {
    let path = Path::new("status").child("conditions");
    let both = old.is_some_and(|o| !of_type(o, "Approved").is_empty() && !of_type(o, "Denied").is_empty());
    let mut seen = BTreeSet::new();
    let mut errs = Vec::new();
    for (i, c) in csr.list("status.conditions").iter().enumerate() {
        let (kind, status, p) = (c.text("type"), c.text("status"), path.index(i));
        if kind.is_empty() {
            errs.push(FieldError::required(&p.child("type"), ""));
        }
        let verdict = matches!(kind, "Approved" | "Denied" | "Failed");
        let allowed: &[&str] = if verdict { &["True"] } else { &["False", "True", "Unknown"] };
        match status {
            "" => errs.push(FieldError::required(&p.child("status"), "")),
            _ => errs.extend(supported(status, allowed, &p.child("status"))),
        }
        let opposite = match kind {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if !both && !opposite.is_empty() && seen.contains(opposite) {
            let verdict = |kind: &str| format!("conditions[{{\"type\": \"{kind}\"}}]");
            let (yes, no) = (verdict("Approved"), verdict("Denied"));
            let m = format!("must specify at most one of: `{yes}`, `{no}`");
            errs.push(FieldError::invalid(&path, format!("{{{yes}, {no}}}"), m).declared());
        }
        if !seen.insert(kind) {
            errs.push(FieldError::duplicate(&p.child("type"), kind));
        }
    }
    errs
}

fn changes(new: &Value, old: &Value, subresource: &str) -> FieldErrors {
    let path = Path::new("status").child("conditions");
    let mut errs = request(new, Some(old));
    for kind in ["Approved", "Denied", "Failed"] {
        if of_type(new, kind).len() < of_type(old, kind).len() {
            errs.push(FieldError::forbidden(&path, format!("updates may not remove a condition of type {kind:?}")));
        }
    }
    for kind in ["Approved", "Denied"].iter().filter(|_| subresource != "approval") {
        let (now, before) = (of_type(new, kind), of_type(old, kind));
        if now.len() > before.len() {
            errs.push(FieldError::forbidden(&path, format!("updates may not add a condition of type {kind:?}")));
        } else if now.len() == before.len() && now != before {
            errs.push(FieldError::forbidden(&path, format!("updates may not modify a condition of type {kind:?}")));
        }
    }
    let (now, before) = (new.text("status.certificate"), old.text("status.certificate"));
    if now != before {
        let path = Path::new("status").child("certificate");
        if subresource != "status" {
            errs.push(FieldError::forbidden(&path, "updates may not set certificate content"));
        } else if !before.is_empty() {
            errs.push(FieldError::forbidden(&path, "updates may not modify existing certificate content"));
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Hooks;
    use isopod_api::UserInfo;
    use std::sync::LazyLock;

    static AUTHORITY: LazyLock<String> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        isopod_pki::CertAuthority::load_or_create(dir.path(), "ca").unwrap().cert_pem
    });
    static REQUEST: LazyLock<String> = LazyLock::new(|| {
        let der = isopod_pki::request::key_and_request("ECDSAP256").unwrap().request;
        isopod_pki::request::certificate_pem(&der).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    });

    fn plain(kind: &str) -> String {
        match kind {
            "CERTIFICATE" => AUTHORITY.clone(),
            "CERTIFICATE REQUEST" => REQUEST.clone(),
            _ => format!("-----BEGIN {kind}-----\nAA==\n-----END {kind}-----\n"),
        }
    }

    fn pem(kind: &str) -> String {
        STANDARD.encode(plain(kind))
    }

    fn csr() -> Value {
        json!({"metadata": {"name": "c"}, "spec": {"request": pem("CERTIFICATE REQUEST"), "usages": ["client auth"],
            "signerName": "kubernetes.io/kube-apiserver-client", "username": "mallory"}})
    }

    #[test]
    fn the_requester_is_who_asks() {
        let user = UserInfo::new("jane", &["devs"]);
        let ctx = Ctx { now: jiff::Timestamp::UNIX_EPOCH, user: &user, subresource: "", dry_run: false };
        let mut new = csr();
        strategy("CertificateSigningRequest").prepare_create(&ctx, &mut new);
        assert_eq!((new.text("spec.username"), new.texts("spec.groups").len()), ("jane", 2));
    }

    #[test]
    fn requests() {
        assert_eq!(request(&csr(), None), Vec::new());
        let mut bad = csr();
        bad["spec"] = json!({"request": "", "usages": ["a", "a"], "signerName": LEGACY_SIGNER, "expirationSeconds": 5});
        let all: Vec<String> = request(&bad, None).iter().map(ToString::to_string).collect();
        assert_eq!(all.len(), 6, "{all:?}");
        assert!(all[0].contains("PEM block type must be CERTIFICATE REQUEST"));
    }

    #[test]
    fn requests_are_of_who_has_the_key() {
        let der = |of: &str| blocks(of).remove(0).der;
        let wrapped =
            |der: &[u8]| isopod_pki::request::certificate_pem(der).replace("CERTIFICATE", "CERTIFICATE REQUEST");
        let good = der(&REQUEST);
        let mut forged = good.clone();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        for (pem, want) in [
            (REQUEST.clone(), None),
            (wrapped(&forged), Some("x509: ECDSA verification failure")),
            (wrapped(&[good.clone(), vec![0]].concat()), Some("asn1: syntax error: trailing data")),
            (wrapped(&good[..good.len() - 1]), Some("asn1: syntax error: data truncated")),
            (AUTHORITY.clone(), Some("PEM block type must be CERTIFICATE REQUEST")),
        ] {
            assert_eq!(unproven(&pem).as_deref(), want, "{pem}");
        }
    }

    #[test]
    fn anchors_are_authorities_once_each() {
        let told = |pem: &str| {
            let errs = anchors(&json!({"spec": {"trustBundle": pem}}));
            errs.into_iter().map(|e| e.detail).collect::<Vec<_>>().join("; ")
        };
        let leaf = plain("CERTIFICATE").replace("-----\nMII", "-----\na: b\nMII");
        assert_eq!(told(&AUTHORITY), "");
        assert_eq!(told(&AUTHORITY.repeat(2)), "duplicate trust anchor (indices [0 1])");
        assert_eq!(told(&leaf), "entry 0 has PEM block headers");
        assert_eq!(told(&format!("{}{}", *AUTHORITY, plain("KEY"))), "entry 1 has bad block type: KEY");
        assert_eq!(told(&REQUEST.replace(" REQUEST", "")), "entry 0 does not parse as X.509");
    }

    #[test]
    fn each_subresource_changes_its_own_part() {
        let user = UserInfo::default();
        let old = csr();
        let approved = json!({"type": "Approved", "status": "True"});
        let mut new = csr();
        new["status"] = json!({"conditions": [approved], "certificate": pem("CERTIFICATE")});
        let ctx = |subresource| Ctx { now: jiff::Timestamp::UNIX_EPOCH, user: &user, subresource, dry_run: false };
        let s = strategy("CertificateSigningRequest");
        let mut by_approval = new.clone();
        s.prepare_update(&ctx("approval"), &mut by_approval, &old);
        assert!(!by_approval.has("status.certificate") && by_approval["status"]["conditions"][0].has("lastUpdateTime"));
        assert_eq!(s.validate_update(&ctx("approval"), &by_approval, &old), Vec::new());
        let by_status = s.validate_update(&ctx("status"), &new, &old);
        assert_eq!(by_status[0].detail, "updates may not add a condition of type \"Approved\"");
        s.prepare_update(&ctx(""), &mut new, &old);
        assert!(!new.has("status"));
    }

    #[test]
    fn trust_bundles() {
        let bundle = |name: &str, signer: &str, kind: &str| json!({"metadata": {"name": name}, "spec": {"signerName": signer, "trustBundle": plain(kind)}});
        let made = |b: Value| (strategy("ClusterTrustBundle").create)(&b).iter().map(|e| e.field.clone()).collect();
        let fields: [Vec<String>; 4] = [
            made(bundle("example.com:s:a", "example.com/s", "CERTIFICATE")),
            made(bundle("a:b", "", "CERTIFICATE")),
            made(bundle("a", "example.com/s", "KEY")),
            made(json!({"metadata": {"name": "a"}})),
        ];
        assert_eq!(fields[0], [""; 0]);
        assert_eq!(fields[1], [""; 0]);
        assert_eq!(fields[2], ["spec.trustBundle"]);
        assert_eq!(fields[3], ["spec.trustBundle"]);
        let named = |name: &str, signer: &str| bundle_name(&bundle(name, signer, "CERTIFICATE"), name, false).len();
        assert_eq!((named("example.com:s:a", "example.com/s"), named("a", "example.com/s")), (0, 1));
        assert_eq!((named("a", ""), named("a:b", ""), named("example.com:s:A", "example.com/s")), (0, 1, 1));
        assert_eq!(bundle_name(&bundle("a-", "", "CERTIFICATE"), "a-", true), [""; 0]);
    }
}
