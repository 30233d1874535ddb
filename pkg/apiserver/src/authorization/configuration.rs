//! `AuthorizationConfiguration` of apiserver.config.k8s.io, and the flags that are a short form of it
//! (`apiserver/pkg/apis/apiserver/validation`, `pkg/kubeapiserver/options/authorization.go`).

use super::conditions;
use crate::config_file::{self, Shape};
use isopod_api::{FieldError, FieldErrors, Path, names};
use isopod_kinds::access::Access;
use isopod_schema::scalar::{duration_nanos, duration_text};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path as File, PathBuf};
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    #[error("failed to load AuthorizationConfiguration from file: {0}")]
    Syntax(String),
    #[error("{0}")]
    Invalid(String),
}

/// What an authorizer is. In the order of the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Abac,
    AlwaysAllow,
    AlwaysDeny,
    Node,
    Rbac,
    Webhook,
}

impl Kind {
    const ALL: [Kind; 6] = [Kind::Abac, Kind::AlwaysAllow, Kind::AlwaysDeny, Kind::Node, Kind::Rbac, Kind::Webhook];

    pub fn text(self) -> &'static str {
        match self {
            Kind::Abac => "ABAC",
            Kind::AlwaysAllow => "AlwaysAllow",
            Kind::AlwaysDeny => "AlwaysDeny",
            Kind::Node => "Node",
            Kind::Rbac => "RBAC",
            Kind::Webhook => "Webhook",
        }
    }

    fn named(text: &str) -> Option<Self> {
        Kind::ALL.into_iter().find(|k| k.text() == text)
    }

    /// What one that is no webhook must be called.
    fn name(self) -> String {
        self.text().to_lowercase()
    }
}

/// An authorizer of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    pub name: String,
    /// Of a webhook.
    pub webhook: Option<WebhookSettings>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookSettings {
    /// `None`: this server itself, which no API server is allowed.
    pub kubeconfig: Option<PathBuf>,
    /// `v1` or `v1beta1`.
    pub version: String,
    pub timeout: Duration,
    /// How long a yes is kept; zero: not at all.
    pub authorized_ttl: Duration,
    /// How long anything else is.
    pub unauthorized_ttl: Duration,
    /// Whether one that cannot be asked says no, rather than nothing.
    pub denies_on_failure: bool,
    pub conditions: Vec<String>,
}

/// The authorizers in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    pub authorizers: Vec<Entry>,
}

/// `--authorization-*`, as far as they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    pub modes: Vec<String>,
    pub policy_file: Option<PathBuf>,
    pub webhook_config_file: Option<PathBuf>,
    pub webhook_version: Option<String>,
    pub authorized_ttl: Option<Duration>,
    pub unauthorized_ttl: Option<Duration>,
}

const AUTHORIZED_TTL: Duration = Duration::from_secs(5 * 60);
const UNAUTHORIZED_TTL: Duration = Duration::from_secs(30);
const MAX_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_CONDITIONS: usize = 64;

const FILE: config_file::Kind = config_file::Kind {
    name: "AuthorizationConfiguration",
    fields: &[(
        "authorizers",
        Shape::Objects(&[
            ("type", Shape::Text),
            ("name", Shape::Text),
            (
                "webhook",
                Shape::Object(&[
                    ("authorizedTTL", Shape::Duration),
                    ("cacheAuthorizedRequests", Shape::Bool),
                    ("unauthorizedTTL", Shape::Duration),
                    ("cacheUnauthorizedRequests", Shape::Bool),
                    ("timeout", Shape::Duration),
                    ("subjectAccessReviewVersion", Shape::Text),
                    ("matchConditionSubjectAccessReviewVersion", Shape::Text),
                    ("failurePolicy", Shape::Text),
                    ("connectionInfo", Shape::Object(&[("type", Shape::Text), ("kubeConfigFile", Shape::Text)])),
                    ("matchConditions", Shape::Objects(&[("expression", Shape::Text)])),
                ]),
            ),
        ]),
    )],
};

impl Configuration {
    /// From a file's text. `required`: what must be in it besides webhooks.
    pub fn parse(text: &str, required: &BTreeSet<Kind>) -> Result<Self, ConfigurationError> {
        let config = config_file::decode(text, &FILE).map_err(ConfigurationError::Syntax)?;
        let errors = validate(&config);
        if !errors.is_empty() {
            return Err(ConfigurationError::Invalid(isopod_api::aggregate(&errors)));
        }
        let authorizers: Vec<Entry> = config.list("authorizers").iter().filter_map(Entry::read).collect();
        let mut faults: Vec<String> = authorizers.iter().filter_map(Entry::misnamed).collect();
        let missing: Vec<&str> =
            required.iter().filter(|k| !authorizers.iter().any(|a| a.kind == **k)).map(|k| k.text()).collect();
        if !missing.is_empty() {
            faults.push(format!("missing required types: [{}]", missing.join(" ")));
        }
        match faults.is_empty() {
            true => Ok(Configuration { authorizers }),
            false => Err(ConfigurationError::Invalid(isopod_auth::aggregate_text(&faults))),
        }
    }

    /// What the flags say. Without modes, nodes and RBAC decide.
    pub fn from_flags(flags: &Flags) -> Result<Self, ConfigurationError> {
        let default = ["Node".to_owned(), "RBAC".to_owned()];
        let modes = if flags.modes.is_empty() { &default[..] } else { &flags.modes[..] };
        let faults = flag_faults(flags, modes);
        if !faults.is_empty() {
            return Err(ConfigurationError::Invalid(isopod_auth::aggregate_text(&faults)));
        }
        let webhook = || WebhookSettings {
            kubeconfig: flags.webhook_config_file.clone(),
            version: flags.webhook_version.clone().unwrap_or_else(|| "v1beta1".to_owned()),
            timeout: MAX_TIMEOUT,
            authorized_ttl: flags.authorized_ttl.unwrap_or(AUTHORIZED_TTL),
            unauthorized_ttl: flags.unauthorized_ttl.unwrap_or(UNAUTHORIZED_TTL),
            denies_on_failure: false,
            conditions: Vec::new(),
        };
        let entry = |kind: Kind| match kind {
            Kind::Webhook => Entry { kind, name: "default".to_owned(), webhook: Some(webhook()) },
            kind => Entry { kind, name: kind.name(), webhook: None },
        };
        Ok(Configuration { authorizers: modes.iter().filter_map(|m| Kind::named(m)).map(entry).collect() })
    }

    /// What is in it besides webhooks.
    pub fn kinds(&self) -> BTreeSet<Kind> {
        self.authorizers.iter().map(|a| a.kind).filter(|k| *k != Kind::Webhook).collect()
    }
}

fn flag_faults(flags: &Flags, modes: &[String]) -> Vec<String> {
    let mut faults = Vec::new();
    let has = |kind: Kind| modes.iter().any(|m| m == kind.text());
    for mode in modes {
        match Kind::named(mode) {
            None => faults.push(format!("authorization-mode {mode:?} is not a valid mode")),
            Some(Kind::Abac) if flags.policy_file.is_none() => {
                faults.push("authorization-mode ABAC's authorization policy file not passed".to_owned());
            }
            Some(Kind::Webhook) if flags.webhook_config_file.is_none() => {
                faults.push("authorization-mode Webhook's authorization config file not passed".to_owned());
            }
            Some(_) => {}
        }
    }
    if flags.policy_file.is_some() && !has(Kind::Abac) {
        faults.push("cannot specify --authorization-policy-file without mode ABAC".to_owned());
    }
    if flags.webhook_config_file.is_some() && !has(Kind::Webhook) {
        faults.push("cannot specify --authorization-webhook-config-file without mode Webhook".to_owned());
    }
    if modes.iter().collect::<BTreeSet<_>>().len() != modes.len() {
        let shown: Vec<String> = modes.iter().map(|m| format!("{m:?}")).collect();
        faults.push(format!("authorization-mode [{}] has mode specified more than once", shown.join(" ")));
    }
    if let Some(version) = flags.webhook_version.as_deref().filter(|v| !matches!(*v, "v1" | "v1beta1")) {
        faults.push(format!(
            "unsupported webhook authorizer version {version:?}, supported versions are \"v1\", \"v1beta1\""
        ));
    }
    faults
}

impl Entry {
    /// From an entry that is valid.
    fn read(authorizer: &Value) -> Option<Self> {
        let kind = Kind::named(authorizer.text("type"))?;
        let webhook = authorizer.has("webhook").then(|| WebhookSettings::read(authorizer.at("webhook")));
        Some(Entry { kind, name: authorizer.text("name").to_owned(), webhook })
    }

    fn misnamed(&self) -> Option<String> {
        let wanted = (self.kind != Kind::Webhook).then(|| self.kind.name())?;
        let wrong = || format!("expected name {wanted} for authorizer {} instead of {}", self.kind.text(), self.name);
        (wanted != self.name).then(wrong)
    }
}

impl WebhookSettings {
    fn read(webhook: &Value) -> Self {
        let ttl = |key: &str, switch: &str, default: Duration| {
            let kept = webhook.at(switch).as_bool().unwrap_or(true);
            let nanos = u64::try_from(nanos(webhook, key)).unwrap_or_default();
            match (kept, nanos) {
                (false, _) => Duration::ZERO,
                (true, 0) => default,
                (true, nanos) => Duration::from_nanos(nanos),
            }
        };
        let file = webhook.text("connectionInfo.kubeConfigFile");
        WebhookSettings {
            kubeconfig: (!file.is_empty()).then(|| file.into()),
            version: webhook.text("subjectAccessReviewVersion").to_owned(),
            timeout: Duration::from_nanos(u64::try_from(nanos(webhook, "timeout")).unwrap_or_default()),
            authorized_ttl: ttl("authorizedTTL", "cacheAuthorizedRequests", AUTHORIZED_TTL),
            unauthorized_ttl: ttl("unauthorizedTTL", "cacheUnauthorizedRequests", UNAUTHORIZED_TTL),
            denies_on_failure: webhook.text("failurePolicy") == "Deny",
            conditions: webhook.list("matchConditions").iter().map(|c| c.text("expression").to_owned()).collect(),
        }
    }
}

/// A duration in nanoseconds; none: 0.
fn nanos(of: &Value, key: &str) -> i64 {
    duration_nanos(of.text(key)).unwrap_or_default()
}

fn validate(config: &Value) -> FieldErrors {
    let mut errors = Vec::new();
    let (authorizers, root) = (config.list("authorizers"), Path::new("authorizers"));
    if authorizers.is_empty() {
        errors.push(FieldError::required(&root, "at least one authorization mode must be defined"));
    }
    let (mut kinds, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for (i, authorizer) in authorizers.iter().enumerate() {
        let path = root.index(i);
        let (kind, name) = (authorizer.text("type"), authorizer.text("name"));
        if kind.is_empty() {
            errors.push(FieldError::required(&path.child("type"), ""));
            continue;
        }
        let Some(known) = Kind::named(kind) else {
            errors.push(FieldError::not_supported(&path.child("type"), kind, &Kind::ALL.map(Kind::text)));
            continue;
        };
        if !kinds.insert(known) && known != Kind::Webhook {
            errors.push(FieldError::duplicate(&path.child("type"), kind));
            continue;
        }
        errors.extend(name_fault(name, &seen, &path.child("name")));
        seen.insert(name);
        match (known, authorizer.has("webhook")) {
            (Kind::Webhook, true) => errors.extend(validate_webhook(authorizer.at("webhook"), &path)),
            (Kind::Webhook, false) => {
                errors.push(FieldError::required(&path.child("webhook"), "required when type=Webhook"));
            }
            (_, true) => {
                let why = "may only be specified when type=Webhook";
                errors.push(FieldError::invalid(&path.child("webhook"), "non-null", why));
            }
            (_, false) => {}
        }
    }
    errors
}

fn name_fault(name: &str, seen: &BTreeSet<&str>, path: &Path) -> Option<FieldError> {
    if name.is_empty() {
        return Some(FieldError::required(path, ""));
    }
    if seen.contains(name) {
        return Some(FieldError::duplicate(path, name));
    }
    let faults = names::dns1123_subdomain(name);
    let why = || format!("authorizer name is invalid: {}", faults.join(", "));
    (!faults.is_empty()).then(|| FieldError::invalid(path, name, why()))
}

/// Upstream leaves `webhook` out of the paths.
fn validate_webhook(webhook: &Value, path: &Path) -> FieldErrors {
    let mut errors = Vec::new();
    let at = |name: &str| path.child(name);
    let timeout = nanos(webhook, "timeout");
    if timeout == 0 {
        errors.push(FieldError::required(&at("timeout"), ""));
    } else if timeout < 0 || timeout as u128 > MAX_TIMEOUT.as_nanos() {
        errors.push(FieldError::invalid(&at("timeout"), duration_text(timeout), "must be > 0s and <= 30s"));
    }
    for name in ["authorizedTTL", "unauthorizedTTL"] {
        let ttl = nanos(webhook, name);
        if ttl < 0 {
            errors.push(FieldError::invalid(&at(name), duration_text(ttl), "must be > 0s"));
        }
    }
    let version = "subjectAccessReviewVersion";
    errors.extend(choice(webhook, &at(version), version, &["v1", "v1beta1"]));
    let version = "matchConditionSubjectAccessReviewVersion";
    match (webhook.text(version), webhook.list("matchConditions")) {
        ("", []) => {}
        ("", _) => errors.push(FieldError::required(&at(version), "required if match conditions are specified")),
        _ => errors.extend(choice(webhook, &at(version), version, &["v1"])),
    }
    errors.extend(choice(webhook, &at("failurePolicy"), "failurePolicy", &["NoOpinion", "Deny"]));
    errors.extend(connection_fault(webhook.at("connectionInfo"), &at("connectionInfo")));
    errors.extend(condition_faults(webhook.list("matchConditions"), &at("matchConditions")));
    errors
}

fn choice(of: &Value, path: &Path, key: &str, valid: &[&str]) -> Option<FieldError> {
    match of.text(key) {
        "" => Some(FieldError::required(path, "")),
        given if valid.contains(&given) => None,
        given => Some(FieldError::not_supported(path, given, valid)),
    }
}

fn connection_fault(connection: &Value, path: &Path) -> Option<FieldError> {
    let (file, at) = (connection.text("kubeConfigFile"), path.child("kubeConfigFile"));
    let wrong = |why: &str| Some(FieldError::invalid(&at, file, why));
    match connection.text("type") {
        "" => Some(FieldError::required(&path.child("type"), "")),
        "InClusterConfig" if connection.has("kubeConfigFile") => wrong("can only be set when type=KubeConfigFile"),
        // It would ask itself.
        "InClusterConfig" => Some(FieldError::forbidden(
            &path.child("type"),
            "InClusterConfig is not allowed for an API server: use KubeConfigFile",
        )),
        "KubeConfigFile" if file.is_empty() => Some(FieldError::required(&at, "")),
        "KubeConfigFile" if !File::new(file).is_absolute() => wrong("must be an absolute path"),
        "KubeConfigFile" => match std::fs::metadata(file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                wrong(&format!("error loading file: stat {file}: no such file or directory"))
            }
            Err(e) => wrong(&format!("error loading file: stat {file}: {e}")),
            Ok(found) if !found.is_file() => wrong("must be a regular file"),
            Ok(_) => None,
        },
        other => Some(FieldError::not_supported(&path.child("type"), other, &["InClusterConfig", "KubeConfigFile"])),
    }
}

fn condition_faults(all: &[Value], path: &Path) -> FieldErrors {
    if all.len() > MAX_CONDITIONS {
        return vec![FieldError::too_many(path, all.len(), MAX_CONDITIONS)];
    }
    let mut seen = BTreeSet::new();
    let fault = |(i, condition): (usize, &'_ Value)| {
        let (text, at) = (condition.text("expression").to_owned(), path.index(i).child("expression"));
        if text.trim().is_empty() {
            return Some(FieldError::required(&at, ""));
        }
        if !seen.insert(text.clone()) {
            return Some(FieldError::duplicate(&at, text));
        }
        let compiled = conditions::compile(&text).err();
        compiled.map(|why| FieldError::invalid(&at, text, why))
    };
    all.iter().enumerate().filter_map(fault).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n";

    fn parse(body: &str) -> Result<Configuration, String> {
        Configuration::parse(&format!("{HEAD}{body}"), &BTreeSet::new()).map_err(|e| e.to_string())
    }

    fn webhook(change: &str) -> String {
        let mut fields = vec![
            "timeout: 3s",
            "subjectAccessReviewVersion: v1",
            "matchConditionSubjectAccessReviewVersion: v1",
            "failurePolicy: NoOpinion",
            "connectionInfo: {type: KubeConfigFile, kubeConfigFile: /dev/null/x}",
        ];
        let key = change.split(':').next().unwrap_or_default();
        fields.retain(|f| key.is_empty() || !f.starts_with(&format!("{key}:")));
        fields.push(change);
        let fields: Vec<String> = fields.iter().map(|f| format!("    {f}\n")).collect();
        format!("authorizers:\n- type: Webhook\n  name: w\n  webhook:\n{}", fields.concat())
    }

    #[test]
    fn what_is_wrong_is_said_in_upstreams_words() {
        let supported = "supported values: \"ABAC\", \"AlwaysAllow\", \"AlwaysDeny\", \"Node\", \"RBAC\", \"Webhook\"";
        let table = [
            ("authorizers: []", "authorizers: Required value: at least one authorization mode must be defined".into()),
            ("authorizers: [{name: x}]", "authorizers[0].type: Required value".into()),
            ("authorizers: [{type: X}]", format!("authorizers[0].type: Unsupported value: \"X\": {supported}")),
            ("authorizers: [{type: RBAC}]", "authorizers[0].name: Required value".into()),
            (
                "authorizers: [{type: RBAC, name: rbac}, {type: RBAC, name: b}]",
                "authorizers[1].type: Duplicate value: \"RBAC\"".into(),
            ),
            (
                "authorizers: [{type: RBAC, name: r}, {type: Node, name: o}]",
                "[expected name rbac for authorizer RBAC instead of r, expected name node for authorizer Node instead of o]"
                    .into(),
            ),
            (
                "authorizers: [{type: RBAC, name: rbac, webhook: {}}]",
                "authorizers[0].webhook: Invalid value: \"non-null\": may only be specified when type=Webhook".into(),
            ),
            (
                "authorizers: [{type: Webhook, name: w}]",
                "authorizers[0].webhook: Required value: required when type=Webhook".into(),
            ),
            (
                "authorizers: [{type: RBAC, name: rbac, nome: x}]",
                "failed to load AuthorizationConfiguration from file: strict decoding error: \
                 unknown field \"authorizers[0].nome\""
                    .into(),
            ),
        ];
        for (body, want) in table {
            assert_eq!(parse(body).unwrap_err(), want, "{body}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_webhook_is_said_too() {
        let file = "authorizers[0].connectionInfo.kubeConfigFile: ";
        let table = [
            ("timeout: 31s", "authorizers[0].timeout: Invalid value: \"31s\": must be > 0s and <= 30s"),
            ("timeout: 0s", "authorizers[0].timeout: Required value"),
            ("authorizedTTL: -1s", "authorizers[0].authorizedTTL: Invalid value: \"-1s\": must be > 0s"),
            (
                "subjectAccessReviewVersion: v2",
                "authorizers[0].subjectAccessReviewVersion: Unsupported value: \"v2\": supported values: \"v1\", \"v1beta1\"",
            ),
            (
                "failurePolicy: Maybe",
                "authorizers[0].failurePolicy: Unsupported value: \"Maybe\": supported values: \"NoOpinion\", \"Deny\"",
            ),
            ("failurePolicy: ''", "authorizers[0].failurePolicy: Required value"),
            (
                "matchConditions: [{expression: 'request.user'}]",
                "authorizers[0].matchConditions[0].expression: Invalid value: \"request.user\": must evaluate to bool but got string",
            ),
            (
                "matchConditions: [{expression: 'true'}, {expression: 'true'}]",
                "authorizers[0].matchConditions[1].expression: Duplicate value: \"true\"",
            ),
        ];
        for (change, want) in table {
            let said = parse(&webhook(change)).unwrap_err();
            assert!(said.contains(want), "{change}: {said}");
        }
        for (connection, want) in [
            ("{}", "authorizers[0].connectionInfo.type: Required value"),
            ("{type: KubeConfigFile}", &format!("{file}Required value")),
            (
                "{type: KubeConfigFile, kubeConfigFile: a}",
                &format!("{file}Invalid value: \"a\": must be an absolute path"),
            ),
            (
                "{type: KubeConfigFile, kubeConfigFile: /dev/null}",
                &format!("{file}Invalid value: \"/dev/null\": must be a regular file"),
            ),
            (
                "{type: KubeConfigFile, kubeConfigFile: /none}",
                &format!("{file}Invalid value: \"/none\": error loading file: stat /none: no such file or directory"),
            ),
            (
                "{type: InClusterConfig, kubeConfigFile: /a}",
                &format!("{file}Invalid value: \"/a\": can only be set when type=KubeConfigFile"),
            ),
        ] {
            let said = parse(&webhook(&format!("connectionInfo: {connection}"))).unwrap_err();
            assert_eq!(said, *want, "{connection}");
        }
        let said = parse(&webhook("matchConditionSubjectAccessReviewVersion: v1beta1")).unwrap_err();
        assert!(said.contains("Unsupported value: \"v1beta1\": supported values: \"v1\""), "{said}");
    }

    #[test]
    fn webhooks_have_defaults() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let connection = format!("connectionInfo: {{type: KubeConfigFile, kubeConfigFile: {:?}}}", file.path());
        let read = |more: &str| {
            let text = format!("{}{more}", webhook(&connection));
            parse(&text).unwrap().authorizers.remove(0).webhook.unwrap()
        };
        let plain = read("");
        assert_eq!((plain.authorized_ttl, plain.unauthorized_ttl), (AUTHORIZED_TTL, UNAUTHORIZED_TTL));
        assert_eq!((plain.timeout, plain.denies_on_failure), (Duration::from_secs(3), false));
        let changed = read("    authorizedTTL: 1m\n    cacheUnauthorizedRequests: false\n");
        assert_eq!(changed.authorized_ttl, Duration::from_secs(60));
        assert_eq!(changed.unauthorized_ttl, Duration::ZERO);
    }

    #[test]
    fn what_was_there_at_the_start_must_stay() {
        let text = format!("{HEAD}authorizers: [{{type: RBAC, name: rbac}}]");
        let required = BTreeSet::from([Kind::Rbac, Kind::Node]);
        let said = Configuration::parse(&text, &required).unwrap_err().to_string();
        assert_eq!(said, "missing required types: [Node]");
    }

    #[test]
    fn flags_are_a_short_form() {
        let modes =
            |modes: &[&str]| Flags { modes: modes.iter().map(|m| (*m).to_owned()).collect(), ..Flags::default() };
        let kinds = |flags: &Flags| {
            let config = Configuration::from_flags(flags).map_err(|e| e.to_string())?;
            Ok::<_, String>(config.authorizers.iter().map(|a| a.kind).collect::<Vec<_>>())
        };
        assert_eq!(kinds(&modes(&[])), Ok(vec![Kind::Node, Kind::Rbac]));
        assert_eq!(kinds(&modes(&["RBAC", "AlwaysDeny"])), Ok(vec![Kind::Rbac, Kind::AlwaysDeny]));
        let told = [
            (modes(&["X"]), "authorization-mode \"X\" is not a valid mode"),
            (modes(&["RBAC", "RBAC"]), "authorization-mode [\"RBAC\" \"RBAC\"] has mode specified more than once"),
            (modes(&["Webhook"]), "authorization-mode Webhook's authorization config file not passed"),
            (modes(&["ABAC"]), "authorization-mode ABAC's authorization policy file not passed"),
            (
                Flags { policy_file: Some("x".into()), ..Flags::default() },
                "cannot specify --authorization-policy-file without mode ABAC",
            ),
        ];
        for (flags, want) in told {
            assert_eq!(kinds(&flags), Err(want.to_owned()));
        }
    }
}
