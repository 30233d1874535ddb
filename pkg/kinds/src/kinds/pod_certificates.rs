//! Requests of kubelets for certificates of pods (KEP-4317): what is asked for is proved and never changes, and what was
//! issued fits it.
//!
//! Invariant: a request that is issued, denied or failed is never changed again.

use crate::access::{Access, same};
use crate::metadata::{conditions, immutable};
use crate::validation::check::{dns_subdomain, supported};
use crate::validation::projected::signer_name;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use isopod_api::{FieldError, FieldErrors, Path, names, time};
use isopod_pki::signing::{CertificateRequest, Names};
use isopod_pki::x509::{Block, Certificate, Key, blocks, is_signed};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

const MAX_UID: usize = 128;
const MAX_KEY: usize = 10 * 1024;
const MAX_CHAIN: usize = 100 * 1024;
/// Lives in seconds: an hour at least, and at most a day of Kubernetes' own signers, 91 days of others.
const SHORTEST: i64 = 3600;
const LONGEST_OF_OWN: i64 = 24 * 3600;
const LONGEST: i64 = 91 * 24 * 3600;
/// Between now and the beginning of a certificate.
const SKEW: SignedDuration = SignedDuration::from_mins(5);
/// Between a certificate's beginning, its renewal, and its end.
const MARGIN: SignedDuration = SignedDuration::from_mins(10);
const VERDICTS: [&str; 3] = ["Issued", "Denied", "Failed"];
const KEY_KINDS: &str = "unknown public key type; supported types are Ed25519, ECDSA, and RSA";

fn spec(field: &str) -> Path {
    Path::new("spec").child(field)
}

fn status(field: &str) -> Path {
    Path::new("status").child(field)
}

fn bytes(object: &Value, field: &str) -> Vec<u8> {
    STANDARD.decode(object.text(field)).unwrap_or_default()
}

pub(super) fn create(new: &Value) -> FieldErrors {
    let signer = new.text("spec.signerName");
    let mut errs = signer_name(signer, &spec("signerName"));
    errs.extend(user_annotations(new.at("spec.unverifiedUserAnnotations"), &spec("unverifiedUserAnnotations")));
    for (name, uid) in [("podName", "podUID"), ("serviceAccountName", "serviceAccountUID"), ("nodeName", "nodeUID")] {
        errs.extend(dns_subdomain(new.at("spec").text(name), &spec(name)));
        match new.at("spec").text(uid) {
            "" => errs.push(FieldError::invalid(&spec(uid), "", "must not be empty")),
            long if long.len() > MAX_UID => errs.push(FieldError::too_long(&spec(uid), MAX_UID)),
            _ => {}
        }
    }
    let Some(seconds) = new.int("spec.maxExpirationSeconds") else {
        errs.push(FieldError::required(&spec("maxExpirationSeconds"), "must be set"));
        return errs;
    };
    let domain = signer.split('/').next().unwrap_or_default();
    let is_own = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    let most = if is_own { LONGEST_OF_OWN } else { LONGEST };
    if !(SHORTEST..=most).contains(&seconds) {
        let why = format!("must be in the range [{SHORTEST}, {most}]");
        errs.push(FieldError::invalid(&spec("maxExpirationSeconds"), seconds, why));
    }
    errs.extend(key(new));
    errs
}

fn user_annotations(map: &Value, path: &Path) -> FieldErrors {
    let all = map.entries("");
    let mut errs: FieldErrors =
        all.iter().flat_map(|(key, _)| names::domain_prefixed_key(path, &key.to_lowercase())).collect();
    let size: usize = all.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if size > names::ANNOTATIONS_MAX_BYTES {
        errs.push(FieldError::too_long(path, names::ANNOTATIONS_MAX_BYTES));
    }
    errs
}

/// The key that a certificate is wanted for, with the proof that its owner asks.
fn key(new: &Value) -> FieldErrors {
    let has = |field: &str| !new.at("spec").text(field).is_empty();
    match (has("stubPKCS10Request"), has("pkixPublicKey"), has("proofOfPossession")) {
        (true, false, false) => of_request(&bytes(new, "spec.stubPKCS10Request")),
        (false, true, true) => of_key(new),
        _ => {
            let why = "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set";
            vec![FieldError::invalid_omitted(&Path::new("spec"), why)]
        }
    }
}

fn of_request(der: &[u8]) -> FieldErrors {
    let path = spec("stubPKCS10Request");
    if der.len() > MAX_KEY {
        return vec![FieldError::too_long(&path, MAX_KEY)];
    }
    let Ok(request) = CertificateRequest::from_der(der) else {
        return vec![FieldError::invalid_omitted(&path, "must be a valid PKCS#10 CSR")];
    };
    let unfit = unfit(request.public_key(), &path, "P256, P384, or P521");
    if !unfit.is_empty() {
        return unfit;
    }
    match request.prove() {
        Ok(()) => Vec::new(),
        Err(_) => vec![FieldError::invalid_omitted(&path, "invalid signature")],
    }
}

fn of_key(new: &Value) -> FieldErrors {
    let (path, proof) = (spec("pkixPublicKey"), spec("proofOfPossession"));
    let (public, signature) = (bytes(new, "spec.pkixPublicKey"), bytes(new, "spec.proofOfPossession"));
    for (given, path) in [(&public, &path), (&signature, &proof)] {
        if given.len() > MAX_KEY {
            return vec![FieldError::too_long(path, MAX_KEY)];
        }
    }
    if Key::of(&public).is_none() {
        let why = "must be a valid PKIX-serialized public key";
        return vec![FieldError::invalid(&path, new.text("spec.pkixPublicKey"), why)];
    }
    let unfit = unfit(&public, &path, "P256 or P384");
    if !unfit.is_empty() {
        return unfit;
    }
    if is_signed(&public, new.text("spec.podUID").as_bytes(), &signature) {
        return Vec::new();
    }
    vec![FieldError::invalid_omitted(&proof, "could not verify proof-of-possession signature")]
}

/// Why no certificate is made for such a key.
fn unfit(public: &[u8], path: &Path, curves: &str) -> FieldErrors {
    let (shown, why) = match Key::of(public) {
        Some(Key::Ed25519 | Key::Elliptic(Some("P-256" | "P-384" | "P-521")) | Key::Rsa(3072 | 4096)) => {
            return Vec::new();
        }
        Some(Key::Elliptic(curve)) => {
            let why = format!("elliptic public keys must use curve {curves}");
            (format!("curve {}", curve.unwrap_or_default()), why)
        }
        Some(Key::Rsa(bits)) => {
            (format!("{bits}-bit modulus"), "RSA keys must have modulus size 3072 or 4096".to_owned())
        }
        _ => return vec![FieldError::invalid_omitted(path, KEY_KINDS)],
    };
    vec![FieldError::invalid(path, shown, why)]
}

pub(super) fn update(new: &Value, old: &Value) -> FieldErrors {
    immutable(new, old, "spec", &Path::root())
}

/// Whether it has a condition of the kind.
fn is(request: &Value, kind: &str) -> bool {
    request.list("status.conditions").iter().any(|c| c.text("type") == kind && c.text("status") == "True")
}

pub(super) fn update_status(now: Timestamp, new: &Value, old: &Value) -> FieldErrors {
    let errs = verdicts(new);
    if !errs.is_empty() {
        return errs;
    }
    let path = Path::new("status");
    let unless = |holds: bool, why: &str| match holds {
        true => Vec::new(),
        false => vec![FieldError::invalid_omitted(&path, why)],
    };
    let unchanged = same(new.at("status"), old.at("status"));
    if VERDICTS.iter().any(|kind| is(old, kind)) {
        return unless(unchanged, "immutable after PodCertificateRequest is issued, denied, or failed");
    }
    if is(new, "Denied") || is(new, "Failed") {
        let alone = json!({"conditions": new.at("status.conditions")});
        let why = "non-condition status fields must be empty when denying or failing the PodCertificateRequest";
        return unless(same(new.at("status"), &alone), why);
    }
    if is(new, "Issued") {
        return issued(now, new, old).err().unwrap_or_default();
    }
    unless(unchanged, r#"status is immutable unless transitioning to "Issued", "Denied", or "Failed""#)
}

fn verdicts(new: &Value) -> FieldErrors {
    let path = status("conditions");
    let mut errs = Vec::new();
    let mut known = 0;
    for (i, condition) in new.list("status.conditions").iter().enumerate() {
        // Upstream writes these places so.
        let (kind, at) = (condition.text("type"), path.child(&format!("[{i}]")));
        if !VERDICTS.contains(&kind) {
            errs.extend(supported(kind, &VERDICTS, &at.child("type")));
            continue;
        }
        known += 1;
        if known > 1 {
            let why = r#"There may be at most one condition with type "Issued", "Denied", or "Failed""#;
            errs.push(FieldError::invalid(&at.child("type"), kind, why));
        }
        errs.extend(supported(condition.text("status"), &["True"], &at.child("status")));
    }
    errs.extend(conditions(new.at("status.conditions"), &path));
    errs
}

/// The error holds what is wrong first.
fn issued(now: Timestamp, new: &Value, old: &Value) -> Result<(), FieldErrors> {
    let path = status("certificateChain");
    let text = new.text("status.certificateChain");
    if text.len() > MAX_CHAIN {
        return Err(vec![FieldError::too_long(&path, MAX_CHAIN)]);
    }
    let wrong = |why: &str| vec![FieldError::invalid(&path, text, why)];
    let chain = blocks(text);
    let (leaf, others) =
        chain.split_first().ok_or_else(|| wrong("issued certificate chain must contain at least one certificate"))?;
    let is_certificate = |block: &Block| match block.label.as_str() {
        "CERTIFICATE" => Ok(()),
        _ => Err(wrong("issued certificate chain must consist entirely of CERTIFICATE PEM blocks")),
    };
    is_certificate(leaf)?;
    let leaf =
        Certificate::from_der(&leaf.der).ok_or_else(|| wrong("leaf certificate does not parse as valid X.509"))?;
    let errs = other_names(&leaf.names, &path);
    let wanted = match old.text("spec.stubPKCS10Request") {
        "" => bytes(old, "spec.pkixPublicKey"),
        _ => CertificateRequest::from_der(&bytes(old, "spec.stubPKCS10Request"))
            .map(|request| request.public_key().to_vec())
            .map_err(|_| {
                vec![FieldError::invalid_omitted(&spec("stubPKCS10Request"), "must be a valid PKCS#10 CSR")]
            })?,
    };
    if leaf.public_key != wanted {
        return Err(wrong("leaf certificate was not issued to the requested public key"));
    }
    times(now, new, &leaf)?;
    for other in others {
        is_certificate(other)?;
        Certificate::from_der(&other.der)
            .ok_or_else(|| wrong("intermediate certificate does not parse as valid X.509"))?;
    }
    if errs.is_empty() { Ok(()) } else { Err(errs) }
}

fn other_names(names: &Names, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    for name in &names.dns {
        let mut tell = |why: &str| errs.push(FieldError::invalid(path, name.as_str(), why));
        if name.is_empty() {
            tell("leaf certificate should not contain empty DNSName");
        }
        if name.contains("..") {
            tell("leaf certificate's DNSName should not contain '..'");
        }
        if name.starts_with('.') || name.ends_with('.') {
            tell("leaf certificate's DNSName should not start or end with '.'");
        }
    }
    // Of addresses with more than this there are hardly any in certificates.
    let is_address = |e: &&String| e.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty());
    let odd = names.emails.iter().filter(|e| !is_address(e) || e.contains(char::is_whitespace));
    let why = "leaf certificate should not contain invalid EmailAddress";
    errs.extend(odd.map(|e| FieldError::invalid(path, e.as_str(), why)));
    errs
}

/// Whether the status says when the certificate begins, ends and is to be renewed, and whether that is what was asked for.
fn times(now: Timestamp, new: &Value, leaf: &Certificate) -> Result<(), FieldErrors> {
    let as_issued = "must be present and consistent with the issued certificate";
    let mut missing = Vec::new();
    let mut read = |field: &str, why: &str| {
        let at = time::parse(new.at("status").text(field));
        if at.is_none() {
            missing.push(FieldError::required(&status(field), why));
        }
        at
    };
    let begin = read("notBefore", as_issued);
    let end = read("notAfter", as_issued);
    let renewal = read("beginRefreshAt", "must be present and in the range [notbefore+10min, notafter-10min]");
    let (Some(begin), Some(end), Some(renewal)) = (begin, end, renewal) else { return Err(missing) };
    let fault =
        |field: &str, at: Timestamp, why: &str| Err(vec![FieldError::invalid(&status(field), time::format(at), why)]);
    if begin.as_second() != leaf.not_before {
        return fault("notBefore", begin, "must be set to the NotBefore time encoded in the leaf certificate");
    }
    if begin.duration_since(now).abs() >= SKEW {
        return fault("notBefore", begin, "must be set to within 5 minutes of kube-apiserver's current time");
    }
    if end.as_second() != leaf.not_after {
        return fault("notAfter", end, "must be set to the NotAfter time encoded in the leaf certificate");
    }
    let (life, most) = (leaf.not_after - leaf.not_before, new.int_or("spec.maxExpirationSeconds", 0));
    let long = |why: String| {
        let shown = match (life / 3600, life / 60 % 60, life % 60) {
            (0, 0, seconds) => format!("{seconds}s"),
            (0, minutes, seconds) => format!("{minutes}m{seconds}s"),
            (hours, minutes, seconds) => format!("{hours}h{minutes}m{seconds}s"),
        };
        Err(vec![FieldError::invalid(&status("certificateChain"), shown, why)])
    };
    if life < SHORTEST {
        return long("leaf certificate lifetime must be >= 1 hour".to_owned());
    }
    if life > most {
        return long(format!("leaf certificate lifetime must be <= spec.maxExpirationSeconds ({most})"));
    }
    if renewal.duration_since(begin) < MARGIN {
        return fault("beginRefreshAt", renewal, "must be at least 10 minutes after status.notBefore");
    }
    if end.duration_since(renewal) < MARGIN {
        return fault("beginRefreshAt", renewal, "must be at least 10 minutes before status.notAfter");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_pki::request::{certificate_pem, key_and_request};

    fn request(kind: &str) -> Value {
        let stub = STANDARD.encode(key_and_request(kind).unwrap().request);
        json!({"spec": {"signerName": "example.com/x", "podName": "p", "podUID": "u", "serviceAccountName": "s",
            "serviceAccountUID": "v", "nodeName": "n", "nodeUID": "w", "maxExpirationSeconds": 86400, "stubPKCS10Request": stub}})
    }

    fn told(errs: &FieldErrors) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_asked_for_is_proved() {
        let good = request("ECDSAP256");
        assert_eq!(told(&create(&good)), Vec::<String>::new());
        let with = |field: &str, value: Value| {
            let mut changed = good.clone();
            changed["spec"][field] = value;
            told(&create(&changed)).join("; ")
        };
        for (field, value, want) in [
            ("podUID", json!(""), "spec.podUID: Invalid value: \"\": must not be empty"),
            ("nodeUID", json!("x".repeat(129)), "spec.nodeUID: Too long"),
            ("podName", json!("A"), "spec.podName: Invalid value"),
            ("maxExpirationSeconds", json!(60), "must be in the range [3600, 7862400]"),
            ("stubPKCS10Request", json!("AAAA"), "spec.stubPKCS10Request: Invalid value: must be a valid PKCS#10 CSR"),
            (
                "pkixPublicKey",
                json!("AAAA"),
                "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession)",
            ),
        ] {
            let said = with(field, value);
            assert!(said.contains(want), "{field}: {said}");
        }
        // Signed by another key.
        let mut der = STANDARD.decode(good.text("spec.stubPKCS10Request")).unwrap();
        let last = der.len() - 1;
        der[last] ^= 1;
        let said = with("stubPKCS10Request", json!(STANDARD.encode(der)));
        assert!(said.contains("invalid signature") || said.contains("must be a valid PKCS#10 CSR"), "{said}");
        let mut own = good.clone();
        own["spec"]["signerName"] = json!("kubernetes.io/x");
        own["spec"]["maxExpirationSeconds"] = json!(86401);
        assert!(told(&create(&own))[0].contains("[3600, 86400]"));
    }

    #[test]
    fn nothing_changes_after_a_verdict() {
        let at = |kind: &str, more: Value| {
            let mut pcr = request("ED25519");
            let condition = json!({"type": kind, "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
            pcr["status"] = json!({"conditions": [condition]});
            if let Some(chain) = more.as_str() {
                pcr["status"]["certificateChain"] = json!(chain);
            }
            pcr
        };
        let now = Timestamp::UNIX_EPOCH;
        let pending = request("ED25519");
        let denied = at("Denied", Value::Null);
        assert_eq!(told(&update_status(now, &denied, &pending)), Vec::<String>::new());
        let said = told(&update_status(now, &at("Failed", Value::Null), &denied));
        assert!(said[0].contains("immutable after PodCertificateRequest is issued, denied, or failed"), "{said:?}");
        let said = told(&update_status(now, &at("Denied", json!("chain")), &pending));
        assert!(said[0].contains("non-condition status fields must be empty"), "{said:?}");
        let said = told(&update_status(now, &at("Odd", Value::Null), &pending));
        assert!(said[0].contains("supported values: \"Issued\", \"Denied\", \"Failed\""), "{said:?}");
        let mut other = pending.clone();
        other["spec"]["podName"] = json!("q");
        assert!(told(&update(&other, &pending))[0].contains("field is immutable"));
    }

    #[test]
    fn what_is_issued_is_what_was_asked_for() {
        let now = Timestamp::now();
        let dir = tempfile::tempdir().unwrap();
        isopod_pki::CertAuthority::load_or_create(dir.path(), "ca").unwrap();
        let files = isopod_pki::signing::AuthorityFiles {
            certificate: dir.path().join("ca.crt"),
            key: dir.path().join("ca.key"),
        };
        let pending = request("ECDSAP256");
        let of = |pcr: &Value, hours: u64| {
            let asked = CertificateRequest::from_der(&bytes(pcr, "spec.stubPKCS10Request")).unwrap();
            let usages = ["client auth".to_owned()];
            let lifetime = std::time::Duration::from_secs(hours * 3600);
            let grant = isopod_pki::signing::Grant { usages: &usages, lifetime, now: now.as_second() + 200 };
            files.load().unwrap().sign(&asked, grant).unwrap()
        };
        let issue = |chain: &str| {
            let leaf = Certificate::from_der(&blocks(chain)[0].der).unwrap();
            let at = |seconds: i64| time::format(Timestamp::from_second(seconds).unwrap());
            let condition =
                json!({"type": "Issued", "status": "True", "reason": "R", "message": "", "lastTransitionTime": at(0)});
            let mut pcr = pending.clone();
            pcr["status"] = json!({"conditions": [condition], "certificateChain": chain, "notBefore": at(leaf.not_before),
                "notAfter": at(leaf.not_after), "beginRefreshAt": at(leaf.not_before + 1200)});
            pcr
        };
        let good = issue(&of(&pending, 12));
        assert_eq!(told(&update_status(now, &good, &pending)), Vec::<String>::new());
        let mut late = good.clone();
        late["status"]["beginRefreshAt"] = late["status"]["notAfter"].clone();
        let mut hollow = good.clone();
        hollow["status"].as_object_mut().unwrap().remove("notAfter");
        let mut mixed = good.clone();
        mixed["status"]["certificateChain"] =
            json!(good.text("status.certificateChain").to_owned() + &certificate_pem(b"none"));
        for (pcr, at, want) in [
            (issue(&of(&request("ECDSAP256"), 12)), now, "leaf certificate was not issued to the requested public key"),
            (issue(&of(&pending, 48)), now, "leaf certificate lifetime must be <= spec.maxExpirationSeconds (86400)"),
            (late, now, "must be at least 10 minutes before status.notAfter"),
            (hollow, now, "status.notAfter: Required value"),
            (mixed, now, "intermediate certificate does not parse as valid X.509"),
            (good.clone(), now + SignedDuration::from_hours(1), "must be set to within 5 minutes"),
        ] {
            let said = told(&update_status(at, &pcr, &pending)).join("; ");
            assert!(said.contains(want), "{want}: {said}");
        }
    }
}
