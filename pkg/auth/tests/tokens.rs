//! Tokens through their life: requested, signed, verified, outlived by their objects, rotated away.

#![allow(clippy::unwrap_used)]

use isopod_auth::token::{
    INVALID_SINCE, LegacyError, LegacyUse, PublicKey, Request, RequestError, Settings, Subject, TokenError, Tokens,
    bound_reference, request,
};
use jiff::{SignedDuration, Timestamp};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256};
use serde_json::{Value, json};

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

fn settings(signer: &KeyPair, verifiers: &[&KeyPair]) -> Settings {
    Settings {
        issuers: vec!["https://kubernetes.default.svc.cluster.local".into(), "https://old".into()],
        api_audiences: vec![],
        private_pem: signer.serialize_pem().into_bytes(),
        public_pems: verifiers.iter().map(|k| k.public_key_pem().into_bytes()).collect(),
    }
}

fn account() -> Value {
    json!({"metadata": {"namespace": "a", "name": "sa", "uid": "u-sa"}})
}

fn pod() -> Value {
    json!({"metadata": {"namespace": "a", "name": "p", "uid": "u-p"},
        "spec": {"serviceAccountName": "sa", "nodeName": "n"}})
}

fn ask(tokens: &Tokens, spec: Value, bound: Option<&Value>) -> Result<Value, RequestError> {
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let node = json!({"metadata": {"name": "n", "uid": "u-n"}});
    let account = account();
    let r = Request {
        request: &body,
        service_account: &account,
        bound,
        node: Some(&node),
        id: "the-id".into(),
        now: now(),
    };
    request(tokens, &r)
}

fn token_of(answer: &Value) -> String {
    answer["status"]["token"].as_str().unwrap().to_owned()
}

#[test]
fn a_pod_bound_token_lives_as_long_as_its_pod() {
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_RSA_SHA256] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let tokens = Tokens::new(settings(&key, &[&key])).unwrap();
        let spec =
            json!({"expirationSeconds": 3600, "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p"}});
        let pod = pod();
        let answer = ask(&tokens, spec, Some(&pod)).unwrap();
        assert_eq!(answer["status"]["expirationTimestamp"], "2026-01-02T04:04:05Z");
        assert_eq!(answer["metadata"]["uid"], "u-sa");
        assert_eq!(answer["spec"]["audiences"], json!(["https://kubernetes.default.svc.cluster.local"]));

        let token = token_of(&answer);
        let verified = tokens.verify(&token, &[], now()).unwrap().unwrap();
        let user = verified.user();
        assert_eq!(user.name, "system:serviceaccount:a:sa");
        assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:a"]);
        let extra = |key: &str| user.extra[&format!("authentication.kubernetes.io/{key}")][0].clone();
        assert_eq!(extra("credential-id"), "JTI=the-id");
        assert_eq!(
            [extra("pod-name"), extra("pod-uid"), extra("node-name"), extra("node-uid")],
            ["p", "u-p", "n", "u-n"]
        );

        let references = verified.references();
        let wanted: Vec<_> = references.iter().map(|r| (r.resource, r.name.as_str(), r.uid.as_str())).collect();
        assert_eq!(wanted, [("serviceaccounts", "sa", "u-sa"), ("pods", "p", "u-p")]);
        let check = |there: Option<&Value>| verified.check_reference(&references[1], there, now());
        assert!(check(Some(&pod)).is_ok());
        assert!(matches!(check(None), Err(TokenError::Invalidated)));
        let mut other = pod.clone();
        other["metadata"]["uid"] = "u-2".into();
        assert!(matches!(check(Some(&other)), Err(TokenError::OtherUid { .. })));
        let mut ending = pod.clone();
        for (deleted, alive) in [("2026-01-02T03:04:00Z", true), ("2026-01-02T03:02:00Z", false)] {
            ending["metadata"]["deletionTimestamp"] = deleted.into();
            assert_eq!(check(Some(&ending)).is_ok(), alive, "{deleted}");
        }
    }
}

#[test]
fn times_and_audiences() {
    let key = KeyPair::generate().unwrap();
    let tokens = Tokens::new(settings(&key, &[&key])).unwrap();
    let token = token_of(&ask(&tokens, json!({"expirationSeconds": 600, "audiences": ["vault", "x"]}), None).unwrap());
    let at = |audience: &str, seconds: i64| {
        let t = now() + SignedDuration::from_secs(seconds);
        tokens.verify(&token, &[audience.to_owned()], t).unwrap()
    };
    assert_eq!(at("vault", 0).unwrap().audiences, ["vault"]);
    assert!(matches!(tokens.verify(&token, &[], now()), Some(Err(TokenError::Audience { .. }))));
    assert!(at("vault", 650).is_ok(), "within the leeway");
    assert!(matches!(at("vault", 700), Err(TokenError::Expired)));
    assert!(matches!(at("vault", -100), Err(TokenError::NotYetValid)));
    for foreign in ["", "x", "a.b.c", "e30.e30.e30"] {
        assert!(tokens.verify(foreign, &[], now()).is_none(), "{foreign}");
    }
    let mut forged: Vec<char> = token.chars().collect();
    let last = forged.len() - 10;
    forged[last] = if forged[last] == 'A' { 'B' } else { 'A' };
    let forged: String = forged.into_iter().collect();
    assert!(matches!(tokens.verify(&forged, &["vault".into()], now()), Some(Err(TokenError::Signature))));
}

#[test]
fn projected_tokens_are_extended() {
    let key = KeyPair::generate().unwrap();
    let tokens = Tokens::new(settings(&key, &[&key])).unwrap();
    let spec = json!({"expirationSeconds": 3607, "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p"}});
    let answer = ask(&tokens, spec, Some(&pod())).unwrap();
    assert_eq!(answer["status"]["expirationTimestamp"], "2026-01-02T04:04:12Z");
    let later = now() + SignedDuration::from_hours(24 * 300);
    let claims = tokens.verify(&token_of(&answer), &[], later).unwrap().unwrap().claims;
    assert_eq!(claims.kubernetes.warn_after, Some(now().as_second() + 3607));
    assert_eq!(claims.expires, Some(now().as_second() + 365 * 24 * 3600));
}

#[test]
fn keys_rotate() {
    let (old, new) = (KeyPair::generate().unwrap(), KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap());
    let before = Tokens::new(settings(&old, &[&old])).unwrap();
    let token = token_of(&ask(&before, json!({}), None).unwrap());
    let during = Tokens::new(settings(&new, &[&new, &old])).unwrap();
    assert!(during.verify(&token, &[], now()).unwrap().is_ok());
    let after = Tokens::new(settings(&new, &[&new])).unwrap();
    assert!(matches!(after.verify(&token, &[], now()), Some(Err(TokenError::UnknownKey))));
    let jwks = during.jwks();
    assert_eq!(jwks["keys"].as_array().unwrap().len(), 2);
    assert_eq!((&jwks["keys"][0]["kty"], &jwks["keys"][1]["crv"]), (&json!("RSA"), &json!("P-256")));
    let discovery = during.discovery("https://x/openid/v1/jwks");
    assert_eq!(discovery["id_token_signing_alg_values_supported"], json!(["ES256", "RS256"]));
    assert!(Tokens::new(settings(&new, &[&old])).is_err(), "nobody could verify what it signs");
}

/// As `openssl ecparam -genkey` writes it (SEC 1).
const SEC1: &str = "-----BEGIN EC PRIVATE KEY-----\n\
MHcCAQEEIIWgNQNtpPNKjGQz0VHesjEzS7C+EGIAd9hsBr7R2xBwoAoGCCqGSM49\n\
AwEHoUQDQgAEFcOHvtC2yBZdiW2M/iqcMRP8b58UefInbOEA/rmCNPlXmOSp/r7c\n\
IGdCSgflUgfYuyVYPF14GcRZEghHOdqwXw==\n\
-----END EC PRIVATE KEY-----\n\n";

#[test]
fn keys_come_in_many_forms() {
    let (rsa, elliptic) = (KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap(), KeyPair::generate().unwrap());
    let certificate = rcgen::CertificateParams::new(vec!["a".into()]).unwrap().self_signed(&rsa).unwrap();
    let private = |key: &KeyPair| key.serialize_pem();
    for (signer, verifier, algorithm) in [
        (private(&rsa), private(&rsa), "RS256"),
        (private(&rsa), certificate.pem(), "RS256"),
        (private(&elliptic), private(&elliptic), "ES256"),
        (SEC1.to_owned(), SEC1.to_owned(), "ES256"),
    ] {
        let tokens = Tokens::new(Settings {
            issuers: vec!["https://kubernetes.default.svc.cluster.local".into()],
            api_audiences: vec![],
            private_pem: signer.into_bytes(),
            public_pems: vec![verifier.into_bytes()],
        });
        let tokens = tokens.unwrap();
        assert_eq!(tokens.jwks()["keys"][0]["alg"], algorithm);
        let token = token_of(&ask(&tokens, json!({}), None).unwrap());
        assert!(tokens.verify(&token, &[], now()).unwrap().is_ok(), "{algorithm}");
    }
}

#[test]
fn tokens_in_secrets() {
    use base64::Engine;
    let key = KeyPair::generate().unwrap();
    let tokens = Tokens::new(settings(&key, &[&key])).unwrap();
    let account = Subject { namespace: "a".into(), name: "sa".into(), uid: "u-sa".into() };
    let token = tokens.issue_legacy(&account, "s").unwrap();
    let verified = tokens.verify(&token, &[], now()).unwrap().unwrap();
    assert!(verified.legacy);
    assert_eq!(verified.user().name, "system:serviceaccount:a:sa");
    let secret = |content: &str, label: &str| {
        json!({"metadata": {"namespace": "a", "name": "s", "labels": {INVALID_SINCE: label}},
            "data": {"token": base64::engine::general_purpose::STANDARD.encode(content)}})
    };
    let account = |uid: &str, listed: &str| json!({"metadata": {"uid": uid}, "secrets": [{"name": listed}]});
    let deleted = |mut object: Value| {
        object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        object
    };
    let (good, own) = (secret(&token, ""), account("u-sa", "other"));
    let check = |s: &Value, a: Option<&Value>| verified.check_legacy(Some(s), a, &token);
    assert_eq!(check(&good, Some(&own)), Ok(LegacyUse::Manual));
    assert_eq!(check(&good, Some(&account("u-sa", "s"))), Ok(LegacyUse::AutoGenerated));
    assert_eq!(check(&secret("other", ""), Some(&own)), Err(LegacyError::OtherCopy));
    let marked = check(&secret(&token, "2026-01-01"), Some(&own)).unwrap_err().to_string();
    assert!(
        marked.starts_with("the token in secret a/s for service account a/sa has been marked invalid. Use"),
        "{marked}"
    );
    assert_eq!(verified.check_legacy(None, Some(&own), &token), Err(LegacyError::Invalidated));
    assert_eq!(check(&deleted(good.clone()), Some(&own)), Err(LegacyError::Invalidated));
    assert_eq!(check(&good, None).unwrap_err().to_string(), "serviceaccounts \"sa\" not found");
    assert_eq!(check(&good, Some(&deleted(own))), Err(LegacyError::Deleted("a/sa".into())));
    let other = LegacyError::OtherUid { there: "u-2".into(), claimed: "u-sa".into() };
    assert_eq!(check(&good, Some(&account("u-2", "s"))), Err(other));
}

#[test]
fn refused_requests() {
    let key = KeyPair::generate().unwrap();
    let tokens = Tokens::new(settings(&key, &[&key])).unwrap();
    let reference =
        |kind: &str, uid: &str| json!({"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": "p", "uid": uid}});
    let mut stranger = pod();
    stranger["spec"]["serviceAccountName"] = "other".into();
    let pod = pod();
    let table = [
        (json!({"expirationSeconds": 60}), None, 422, "may not specify a duration less than 10 minutes"),
        (reference("Deployment", ""), None, 400, "cannot bind token to object of type /v1, Kind=Deployment"),
        (reference("Pod", ""), None, 404, "pods \"p\" not found"),
        (reference("Pod", ""), Some(&stranger), 400, "different serviceaccount name"),
        (reference("Pod", "u-9"), Some(&pod), 409, "does not match the UID in record"),
    ];
    for (spec, bound, code, part) in table {
        let Err(RequestError::Refused(status)) = ask(&tokens, spec.clone(), bound) else {
            panic!("{spec} was granted")
        };
        assert_eq!(status.code, code, "{spec}");
        assert!(status.message.contains(part), "{}", status.message);
    }
    let wanted = bound_reference(&json!({"spec": reference("Node", "")}), "a").unwrap().unwrap();
    assert_eq!((wanted.resource, wanted.namespace.as_str()), ("nodes", ""));
    assert!(PublicKey::from_pem(b"nothing").is_err());
}
