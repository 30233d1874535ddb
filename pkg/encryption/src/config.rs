//! The configuration file: its shape, and upstream's rules and words about it
//! (`apiserver/pkg/apis/apiserver/validation/validation_encryption.go`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use isopod_api::field::{FieldError, FieldErrors, Path};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::Duration;

/// Why a file is no EncryptionConfiguration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("it is no YAML")]
    Yaml(#[from] isopod_schema::yaml::YamlError),
    #[error("strict decoding error: {0}")]
    Repeated(String),
    #[error("it is not an EncryptionConfiguration")]
    Parse(#[from] serde_json::Error),
    #[error("its kind is {kind} of {api_version}, not EncryptionConfiguration of apiserver.config.k8s.io/v1")]
    Kind { api_version: String, kind: String },
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Invalid(FieldErrors),
    #[error("resource {resource:?} is masked by earlier rule {rule:?}")]
    Masked { resource: String, rule: String },
    #[error(
        "KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead: the provider {0:?} \
         needs `apiVersion: v2`"
    )]
    KmsV1(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    resources: Vec<Resource>,
}

/// Some resources and who seals them, in order.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resource {
    #[serde(default)]
    pub resources: Vec<String>,
    #[serde(default)]
    pub providers: Vec<Provider>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    pub aesgcm: Option<Keys>,
    pub aescbc: Option<Keys>,
    pub secretbox: Option<Keys>,
    pub identity: Option<Identity>,
    pub kms: Option<Kms>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    #[serde(default)]
    pub keys: Vec<Key>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    secret: String,
}

impl Key {
    /// The bytes of the key; validated before.
    pub fn secret(&self) -> Vec<u8> {
        STANDARD.decode(&self.secret).unwrap_or_default()
    }
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kms {
    #[serde(default, rename = "apiVersion")]
    api_version: Option<String>,
    #[serde(default)]
    pub name: String,
    #[serde(default, rename = "cachesize")]
    cache_size: Option<i64>,
    #[serde(default)]
    endpoint: String,
    #[serde(default)]
    timeout: Option<String>,
}

impl Kms {
    /// The socket's path.
    pub fn socket(&self) -> &str {
        self.endpoint.strip_prefix("unix://").unwrap_or_default()
    }

    /// How long a call may take; 3 s unless it says otherwise.
    pub fn timeout(&self) -> Duration {
        self.timeout.as_deref().map_or(Some(Duration::from_secs(3)), duration).unwrap_or_default()
    }
}

/// A duration as Go writes it: `3s`, `1m30s`, `500ms`; `None` where it is none, or negative.
fn duration(text: &str) -> Option<Duration> {
    let parsed: jiff::SignedDuration = text.parse().ok()?;
    parsed.try_into().ok()
}

/// A field that is null is one that is not there.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect()
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// Reads a configuration and checks all of it.
pub fn parse(text: &str) -> Result<Vec<Resource>, ConfigError> {
    let document = isopod_schema::yaml::parse(text.as_bytes())?;
    // Of two values of one field only one would count, and nobody can say which was meant.
    if let Some(why) = isopod_schema::yaml::strictly(&document.repeated) {
        return Err(ConfigError::Repeated(why));
    }
    let file: File = serde_json::from_value(without_nulls(document.value))?;
    if file.kind != "EncryptionConfiguration" || file.api_version != "apiserver.config.k8s.io/v1" {
        return Err(ConfigError::Kind { api_version: file.api_version, kind: file.kind });
    }
    let errors = validate(&file.resources);
    if !errors.is_empty() {
        return Err(ConfigError::Invalid(errors));
    }
    masked(&file.resources)?;
    for provider in file.resources.iter().flat_map(|r| &r.providers) {
        if let Some(kms) = provider.kms.as_ref().filter(|k| k.api_version.as_deref() != Some("v2")) {
            return Err(ConfigError::KmsV1(kms.name.clone()));
        }
    }
    Ok(file.resources)
}

/// A configuration that encrypts Secrets with a new key, and still reads those that were written before.
pub fn new_configuration() -> String {
    let secret = STANDARD.encode(crate::cipher::seed());
    format!(
        "# Whoever has this file can read the cluster's Secrets; without it nobody can.\n\
         apiVersion: apiserver.config.k8s.io/v1\n\
         kind: EncryptionConfiguration\n\
         resources:\n\
         - resources: [secrets]\n\
         \x20 providers:\n\
         \x20 - secretbox:\n\
         \x20     keys:\n\
         \x20     - name: key1\n\
         \x20       secret: {secret}\n\
         \x20 - identity: {{}}\n"
    )
}

/// A resource's name and group as they are written: `secrets`, `deployments.apps`, `*.apps`, `*.`, `*.*`.
pub fn group_resource(text: &str) -> (&str, &str) {
    text.split_once('.').map_or(("", text), |(resource, group)| (group, resource))
}

/// A rule that comes after one for its whole group would never be looked at.
fn masked(resources: &[Resource]) -> Result<(), ConfigError> {
    let mut seen = HashSet::new();
    for entry in resources {
        for text in &entry.resources {
            let (group, _) = group_resource(text);
            for wider in [(group, "*"), ("*", "*")] {
                if seen.contains(&wider) {
                    let rule = format!("*.{}", wider.0);
                    return Err(ConfigError::Masked { resource: text.clone(), rule });
                }
            }
        }
        seen.extend(entry.resources.iter().map(|t| group_resource(t)));
    }
    Ok(())
}

fn validate(resources: &[Resource]) -> FieldErrors {
    let root = Path::new("resources");
    if resources.is_empty() {
        return vec![FieldError::required(&root, "at least one resources is required")];
    }
    let (mut errors, mut names) = (FieldErrors::new(), HashSet::new());
    for (i, entry) in resources.iter().enumerate() {
        let (r, p) = (root.index(i).child("resources"), root.index(i).child("providers"));
        if entry.resources.is_empty() {
            errors.push(FieldError::required(&r, format!("at least one {r} is required")));
        }
        overlap(&entry.resources, &r, &mut errors);
        for (j, name) in entry.resources.iter().enumerate() {
            if let Some(why) = bad_name(name) {
                errors.push(FieldError::invalid(&r.index(j), json!(name), why));
            }
        }
        if entry.providers.is_empty() {
            errors.push(FieldError::required(&p, format!("at least one {p} is required")));
        }
        for (j, provider) in entry.providers.iter().enumerate() {
            validate_provider(provider, &p.index(j), &mut names, &mut errors);
        }
    }
    errors
}

fn overlap(resources: &[String], path: &Path, errors: &mut FieldErrors) {
    let parsed: Vec<_> = resources.iter().map(|t| group_resource(t)).collect();
    let pairs = || parsed.iter().enumerate().flat_map(|(i, a)| parsed[i + 1..].iter().map(move |b| (a, b)));
    if pairs().any(|(a, b)| a == b) {
        let why = "the same resource cannot be specified multiple times";
        errors.push(FieldError::invalid(path, json!(resources), why));
    }
    let all = ("*", "*");
    let covers = |a: &(&str, &str), b: &(&str, &str)| a.0 == b.0 && (a.1 == "*" || b.1 == "*");
    if pairs().any(|(a, b)| a != b && (*a == all || *b == all || covers(a, b))) {
        let why = "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they \
                   will be masked";
        errors.push(FieldError::invalid(path, json!(resources), why));
    }
}

fn bad_name(name: &str) -> Option<&'static str> {
    let (group, resource) = group_resource(name);
    Some(match name {
        _ if name.contains(|c: char| c.is_uppercase()) => "resource name should not contain capital letters",
        "*" => "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources",
        "apiserveripinfo" | "serviceipallocations" | "servicenodeportallocations" => {
            "resources which do not have REST API/s cannot be encrypted"
        }
        _ if group == "events.k8s.io" => {
            "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file"
        }
        _ if group == "extensions" => "'extensions' group has been removed and cannot be used for encryption",
        _ if group == "*" && resource != "*" => "encrypting the same resource across groups is not supported",
        _ => return None,
    })
}

fn validate_provider(provider: &Provider, path: &Path, names: &mut HashSet<String>, errors: &mut FieldErrors) {
    let keyed = [
        (&provider.aesgcm, "aesgcm", &[16, 24, 32][..]),
        (&provider.aescbc, "aescbc", &[16, 24, 32]),
        (&provider.secretbox, "secretbox", &[32]),
    ];
    let found = keyed.iter().filter(|(keys, ..)| keys.is_some()).count()
        + usize::from(provider.identity.is_some())
        + usize::from(provider.kms.is_some());
    if found != 1 {
        let why = if found == 0 {
            "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity"
        } else {
            "more than one provider specified in a single element, should split into different list elements"
        };
        // The element may hold keys.
        errors.push(FieldError::invalid(path, json!("REDACTED"), why));
        return;
    }
    for (keys, name, sizes) in keyed {
        if let Some(keys) = keys {
            validate_keys(&keys.keys, &path.child(name).child("keys"), sizes, errors);
        }
    }
    if let Some(kms) = &provider.kms {
        validate_kms(kms, &path.child("kms"), names, errors);
        names.insert(kms.name.clone());
    }
}

fn validate_keys(keys: &[Key], path: &Path, sizes: &[usize], errors: &mut FieldErrors) {
    if keys.is_empty() {
        errors.push(FieldError::required(path, "at least one keys is required"));
    }
    for (i, key) in keys.iter().enumerate() {
        let path = path.index(i);
        if key.name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), "name is a mandatory field for a key"));
        }
        let path = path.child("secret");
        if key.secret.is_empty() {
            errors.push(FieldError::required(&path, "secret is a mandatory field for a key"));
            continue;
        }
        let redacted = json!("REDACTED");
        match STANDARD.decode(&key.secret) {
            Err(_) => errors.push(FieldError::invalid(&path, redacted.clone(), "secrets must be base64 encoded")),
            Ok(bytes) if !sizes.contains(&bytes.len()) => {
                let expected = sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                let why =
                    format!("secret is not of the expected length, got {}, expected one of [{expected}]", bytes.len());
                errors.push(FieldError::invalid(&path, redacted.clone(), why));
            }
            Ok(_) => {}
        }
    }
}

fn validate_kms(kms: &Kms, path: &Path, names: &HashSet<String>, errors: &mut FieldErrors) {
    let mut invalid = |child: &str, value: Value, why: String| {
        errors.push(FieldError::invalid(&path.child(child), value, why));
    };
    let version = kms.api_version.as_deref().unwrap_or("v1");
    if kms.name.is_empty() {
        errors.push(FieldError::required(&path.child("name"), "name is a mandatory field for a provider"));
        return;
    }
    if version != "v1" && kms.name.contains(':') {
        let why = format!("invalid KMS provider name {}, must not contain ':'", kms.name);
        invalid("name", json!(kms.name), why);
    }
    if names.contains(&kms.name) && version != "v1" {
        let why = format!("duplicate KMS provider name {}, names must be unique", kms.name);
        invalid("name", json!(kms.name), why);
    }
    if kms.timeout().is_zero() {
        invalid("timeout", json!(kms.timeout), "timeout should be a positive value".into());
    }
    if kms.endpoint.is_empty() {
        let why = "endpoint is a mandatory field for a kms";
        invalid("endpoint", json!(""), why.into());
    } else if let Some(scheme) = kms.endpoint.split_once("://").map_or(Some(""), |(s, _)| (s != "unix").then_some(s)) {
        let why = format!("unsupported scheme {scheme:?} for KMS provider, only unix is supported");
        invalid("endpoint", json!(kms.endpoint), why);
    }
    if let Some(size) = kms.cache_size.filter(|_| version != "v1") {
        invalid("cachesize", json!(size), "cachesize is not supported in v2".into());
    }
    if !["v1", "v2"].contains(&version) {
        let why = format!("unsupported apiVersion {version} for KMS provider, only v1 and v2 are supported");
        invalid("apiVersion", json!(version), why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(resources: &str) -> String {
        let text =
            format!("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: {resources}");
        parse(&text).err().map_or_else(String::new, |e| e.to_string())
    }

    const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZg==";

    #[test]
    fn good_configurations_are_taken() {
        for good in [
            format!("[{{resources: [secrets], providers: [{{aescbc: {{keys: [{{name: a, secret: {KEY}}}]}}}}, {{identity: {{}}}}]}}]"),
            "[{resources: ['*.apps', configmaps], providers: [{identity: {}}]}, {resources: ['*.*'], providers: [{identity: {}}]}]"
                .into(),
            "[{resources: [secrets], providers: [{kms: {apiVersion: v2, name: k, endpoint: 'unix:///run/k.sock', timeout: 5s}}]}]"
                .into(),
        ] {
            assert_eq!(errors(&good), "", "{good}");
        }
    }

    #[test]
    fn the_text_is_read_as_upstreams_yaml() {
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n";
        let read = |providers: &str| parse(&format!("{head}  providers: [{providers}]\n"));
        // What is null is not there.
        assert!(read("{identity: {}, kms: null}").is_ok());
        // YAML 1.1: bools and an octal number are no names.
        for name in ["yes", "on", "0777"] {
            let key = |name: &str| format!("{{aescbc: {{keys: [{{name: {name}, secret: {KEY}}}]}}}}");
            assert!(matches!(read(&key(name)), Err(ConfigError::Parse(_))), "{name}");
            assert!(read(&key(&format!("'{name}'"))).is_ok(), "{name}");
        }
        let twice = parse(&format!("{head}  providers: [{{identity: {{}}}}]\nresources: []\n")).err().unwrap();
        assert_eq!(
            twice.to_string(),
            "strict decoding error: yaml: unmarshal errors:\n  line 6: key \"resources\" already set in map"
        );
        assert!(matches!(read("{identity: {}, rot13: {}}"), Err(ConfigError::Parse(_))));
        // JSON is YAML.
        let json = r#"{"apiVersion":"apiserver.config.k8s.io/v1","kind":"EncryptionConfiguration","resources":[{"resources":["secrets"],"providers":[{"identity":{}}]}]}"#;
        assert!(parse(json).is_ok());
        assert!(matches!(parse("a: [").err(), Some(ConfigError::Yaml(_))));
    }

    #[test]
    fn bad_ones_are_refused_in_upstreams_words() {
        let providers = "providers: [{identity: {}}]";
        for (bad, words) in [
            ("[]".to_owned(), "resources: Required value: at least one resources is required"),
            (
                format!("[{{{providers}}}]"),
                "resources[0].resources: Required value: at least one resources[0].resources is required",
            ),
            (
                "[{resources: [secrets]}]".into(),
                "resources[0].providers: Required value: at least one resources[0].providers is required",
            ),
            (format!("[{{resources: [Secrets], {providers}}}]"), "resource name should not contain capital letters"),
            (
                format!("[{{resources: ['*'], {providers}}}]"),
                "use '*.' to encrypt all the resources from core API group",
            ),
            (
                format!("[{{resources: [secrets, secrets], {providers}}}]"),
                "the same resource cannot be specified multiple times",
            ),
            (format!("[{{resources: [secrets, '*.'], {providers}}}]"), "will be masked"),
            (format!("[{{resources: [events.events.k8s.io], {providers}}}]"), "Use 'events' instead"),
            (
                format!("[{{resources: ['*.*'], {providers}}}, {{resources: [secrets], {providers}}}]"),
                "resource \"secrets\" is masked by earlier rule \"*.*\"",
            ),
            ("[{resources: [secrets], providers: [{}]}]".into(), "does not contain any of the expected providers"),
            (
                "[{resources: [secrets], providers: [{identity: {}, aesgcm: {}}]}]".into(),
                "more than one provider specified",
            ),
            (
                "[{resources: [secrets], providers: [{aesgcm: {}}]}]".into(),
                "resources[0].providers[0].aesgcm.keys: Required value: at least one keys is required",
            ),
            (
                "[{resources: [secrets], providers: [{aesgcm: {keys: [{name: a, secret: '?'}]}}]}]".into(),
                "resources[0].providers[0].aesgcm.keys[0].secret: Invalid value: \"REDACTED\": secrets must be base64 encoded",
            ),
            (
                format!(
                    "[{{resources: [secrets], providers: [{{secretbox: {{keys: [{{name: a, secret: {KEY}}}]}}}}]}}]"
                ),
                "secret is not of the expected length, got 16, expected one of [32]",
            ),
            (
                "[{resources: [secrets], providers: [{kms: {apiVersion: v2, name: k, endpoint: 'tcp://x'}}]}]".into(),
                "unsupported scheme \"tcp\" for KMS provider, only unix is supported",
            ),
            (
                "[{resources: [secrets], providers: [{kms: {apiVersion: v2, name: 'a:b', endpoint: 'unix:///x'}}]}]"
                    .into(),
                "invalid KMS provider name a:b, must not contain ':'",
            ),
            (
                "[{resources: [secrets], providers: [{kms: {name: k, endpoint: 'unix:///x'}}]}]".into(),
                "KMSv1 is deprecated",
            ),
            ("[{resources: [secrets], providers: [{rot13: {}}]}]".into(), "it is not an EncryptionConfiguration"),
        ] {
            assert!(errors(&bad).contains(words), "{bad}\n{}", errors(&bad));
        }
    }

    #[test]
    fn a_new_configuration_is_a_good_one_with_a_key_of_its_own() {
        assert_eq!(parse(&new_configuration()).unwrap().len(), 1);
        assert_ne!(new_configuration(), new_configuration());
    }

    #[test]
    fn no_message_has_a_key_in_it() {
        let text = format!(
            "[{{resources: [secrets], providers: [{{identity: {{}}, secretbox: {{keys: [{{name: a, secret: {KEY}}}]}}}}]}}]"
        );
        assert!(!errors(&text).contains(KEY));
    }
}
