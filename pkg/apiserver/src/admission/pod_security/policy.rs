//! What a namespace's labels ask for.

use isopod_api::{FieldError, FieldErrors, Path};
use isopod_kinds::access::Access;
use serde_json::Value;
use std::fmt;

const PREFIX: &str = "pod-security.kubernetes.io/";

/// From the freest to the strictest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    #[default]
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        }
    }
}

/// A minor version of Kubernetes 1, whose standards are meant; `None`: the newest. Ordered by age, the newest last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version(pub Option<u32>);

impl Version {
    pub fn is_at_least(self, minor: u32) -> bool {
        self.0.is_none_or(|own| own >= minor)
    }
}

/// A level of one version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standard {
    pub level: Level,
    pub version: Version,
}

/// The minor version that this server has.
const NEWEST: u32 = 37;

impl Standard {
    /// The version as metrics tell it: what asks for nothing is of no age, and labels do not grow with what namespaces say.
    pub fn version_counted(self) -> String {
        match self.version.0 {
            Some(minor) if self.level != Level::Privileged && minor > NEWEST => "future".to_owned(),
            Some(minor) if self.level != Level::Privileged => format!("v1.{minor}"),
            _ => "latest".to_owned(),
        }
    }
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = self.level.name();
        match self.version.0 {
            Some(minor) => write!(f, "{level}:v1.{minor}"),
            None => write!(f, "{level}:latest"),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub enforce: Standard,
    /// What is told to the audit log.
    pub audit: Standard,
    pub warn: Standard,
}

impl Policy {
    /// Whether nothing is asked for.
    pub fn is_free(self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|standard| standard.level == Level::Privileged)
    }

    /// The policy of a namespace, and what is wrong with its labels. A level that is not known is the strictest when it is
    /// enforced and the freest when it is only told.
    pub fn of(namespace: &Value) -> (Self, FieldErrors) {
        let mut errors = Vec::new();
        let mut policy = Policy::default();
        let label = |mode: &str| namespace.entry("metadata.labels", &format!("{PREFIX}{mode}")).as_str();
        let mut level = |mode: &str| {
            let given = label(mode)?;
            let level = parse_level(given);
            if level.is_none() {
                errors.push(fault(mode, given, "must be one of privileged, baseline, restricted"));
            }
            Some(level)
        };
        let (enforce, audit, warn) = (level("enforce"), level("audit"), level("warn"));
        let mut version = |mode: &str| {
            let given = label(mode)?;
            let version = parse_version(given);
            if version.is_none() {
                errors.push(fault(mode, given, "must be \"latest\" or \"v1.x\""));
            }
            Some(version.unwrap_or_default())
        };
        let versions = ["enforce-version", "audit-version", "warn-version"].map(&mut version);
        if let Some(level) = enforce {
            policy.enforce.level = level.unwrap_or(Level::Restricted);
        }
        policy.enforce.version = versions[0].unwrap_or_default();
        policy.audit =
            Standard { level: audit.flatten().unwrap_or_default(), version: versions[1].unwrap_or_default() };
        policy.warn = Standard { level: warn.flatten().unwrap_or_default(), version: versions[2].unwrap_or_default() };
        // What is enforced on pods is told of the workloads that make them.
        if warn.is_none() && enforce.flatten().is_some_and(|l| l > policy.warn.level) {
            policy.warn.level = policy.enforce.level;
            if versions[2].is_none() {
                policy.warn.version = policy.enforce.version;
            }
        }
        // Upstream reports label by label, a mode's version after its level.
        let order = ["enforce]", "enforce-version]", "audit]", "audit-version]", "warn]", "warn-version]"];
        errors.sort_by_key(|e| order.iter().position(|o| e.field.ends_with(o)));
        (policy, errors)
    }
}

fn fault(label: &str, given: &str, why: &str) -> FieldError {
    let path = Path::new("metadata").child("labels").key(&format!("{PREFIX}{label}"));
    FieldError::invalid(&path, given, why)
}

fn parse_level(text: &str) -> Option<Level> {
    match text {
        "privileged" => Some(Level::Privileged),
        "baseline" => Some(Level::Baseline),
        "restricted" => Some(Level::Restricted),
        _ => None,
    }
}

fn parse_version(text: &str) -> Option<Version> {
    if text == "latest" {
        return Some(Version(None));
    }
    let minor = text.strip_prefix("v1.")?;
    let is_number = minor.bytes().all(|b| b.is_ascii_digit()) && (minor == "0" || !minor.starts_with('0'));
    minor.parse().ok().filter(|_| is_number).map(|m| Version(Some(m)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels() {
        let check = |labels: Value, enforce: &str, warn: &str, faults: &[&str]| {
            let prefixed = labels.as_object().unwrap().iter().map(|(k, v)| (format!("{PREFIX}{k}"), v.clone()));
            let namespace = json!({"metadata": {"labels": prefixed.collect::<serde_json::Map<_, _>>()}});
            let (policy, errors) = Policy::of(&namespace);
            assert_eq!(
                (policy.enforce.to_string().as_str(), policy.warn.to_string().as_str()),
                (enforce, warn),
                "{labels}"
            );
            assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), faults);
        };
        check(json!({}), "privileged:latest", "privileged:latest", &[]);
        check(json!({"enforce": "baseline", "enforce-version": "v1.20"}), "baseline:v1.20", "baseline:v1.20", &[]);
        check(json!({"enforce": "baseline", "warn": "restricted"}), "baseline:latest", "restricted:latest", &[]);
        check(json!({"enforce": "restricted", "warn": "privileged"}), "restricted:latest", "privileged:latest", &[]);
        check(
            json!({"enforce": "x", "audit-version": "1.5", "warn": "y"}),
            "restricted:latest",
            "privileged:latest",
            &[
                "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"x\": must be one of privileged, baseline, restricted",
                "metadata.labels[pod-security.kubernetes.io/audit-version]: Invalid value: \"1.5\": must be \"latest\" or \"v1.x\"",
                "metadata.labels[pod-security.kubernetes.io/warn]: Invalid value: \"y\": must be one of privileged, baseline, restricted",
            ],
        );
        for (text, want) in
            [("v1.0", true), ("v1.37", true), ("v1.07", false), ("v1.", false), ("v2.1", false), ("v1.+1", false)]
        {
            assert_eq!(parse_version(text).is_some(), want, "{text}");
        }
    }
}
