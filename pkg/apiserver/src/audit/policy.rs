//! The audit policy: which requests are recorded, and how much of them. The first rule that matches decides.

use super::event::{Level, Stage};
use isopod_api::{FieldError, Path};
use isopod_auth::Attributes;
use serde_json::Value;

/// A `Policy` of audit.k8s.io/v1.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: bool,
}

#[derive(Clone, Debug, Default)]
struct Rule {
    level: Level,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    non_resource_urls: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Clone, Debug, Default)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    names: Vec<String>,
}

/// What the policy says of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub level: Level,
    pub omit_stages: Vec<Stage>,
    pub omit_managed_fields: bool,
}

const LEVELS: [Level; 4] = [Level::None, Level::Metadata, Level::Request, Level::RequestResponse];
const STAGES: [Stage; 4] = [Stage::RequestReceived, Stage::ResponseStarted, Stage::ResponseComplete, Stage::Panic];
const VERSION: &str = "audit.k8s.io/v1";

impl Policy {
    /// Reads a policy. Fields that it should not have are told to the log; other faults are errors in upstream's words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let document = isopod_schema::yaml::parse(text.as_bytes()).map_err(|e| format!("failed decoding: {e}"))?;
        let value = document.value;
        let stated = |key: &str| value[key].as_str().unwrap_or_default();
        let (version, kind) = (stated("apiVersion"), stated("kind"));
        match (version, kind) {
            (VERSION, "Policy") => {}
            (_, "") => return Err("failed decoding: Object 'Kind' is missing in the policy".into()),
            ("", _) => return Err("failed decoding: Object 'apiVersion' is missing in the policy".into()),
            _ => {
                let shown = version.split_once('/').map_or(version, |(_, v)| v);
                return Err(format!(
                    "failed decoding: no kind {kind:?} is registered for version {version:?} in scheme \
                     \"k8s.io/apiserver/pkg/audit/scheme.go\" ({shown} is not served; write {VERSION})"
                ));
            }
        }
        for field in unknown_fields(&value) {
            tracing::warn!(field, "the audit policy has a field that is not known; it is ignored");
        }
        for repeated in document.repeated {
            tracing::warn!(repeated, "the audit policy has a field twice; the last one counts");
        }
        let errors = validate(&value);
        if !errors.is_empty() {
            return Err(isopod_api::field::aggregate(&errors));
        }
        let policy = Policy {
            rules: items(&value["rules"]).map(Rule::read).collect(),
            omit_stages: stages(&value["omitStages"]),
            omit_managed_fields: value["omitManagedFields"].as_bool().unwrap_or(false),
        };
        if policy.rules.is_empty() {
            return Err("loaded illegal policy with 0 rules".into());
        }
        Ok(policy)
    }

    pub fn judge(&self, attributes: &Attributes) -> Verdict {
        match self.rules.iter().find(|r| r.matches(attributes)) {
            Some(rule) => Verdict {
                level: rule.level,
                omit_stages: self.omit_stages.iter().chain(&rule.omit_stages).copied().collect(),
                omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
            },
            None => Verdict { level: Level::None, ..Default::default() },
        }
    }
}

impl Rule {
    fn read(rule: &Value) -> Rule {
        let group = |g: &Value| GroupResources {
            group: g["group"].as_str().unwrap_or_default().to_owned(),
            resources: texts(&g["resources"]),
            names: texts(&g["resourceNames"]),
        };
        Rule {
            level: level(&rule["level"]).unwrap_or_default(),
            users: texts(&rule["users"]),
            user_groups: texts(&rule["userGroups"]),
            verbs: texts(&rule["verbs"]),
            resources: items(&rule["resources"]).map(group).collect(),
            namespaces: texts(&rule["namespaces"]),
            non_resource_urls: texts(&rule["nonResourceURLs"]),
            omit_stages: stages(&rule["omitStages"]),
            omit_managed_fields: rule["omitManagedFields"].as_bool(),
        }
    }

    fn matches(&self, a: &Attributes) -> bool {
        let any = |list: &[String], value: &String| list.is_empty() || list.contains(value);
        if !any(&self.users, &a.user.name) || !any(&self.verbs, &a.verb) {
            return false;
        }
        if !self.user_groups.is_empty() && !a.user.groups.iter().any(|g| self.user_groups.contains(g)) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return a.is_resource
                && any(&self.namespaces, &a.namespace)
                && (self.resources.is_empty() || self.resources.iter().any(|g| g.matches(a)));
        }
        self.non_resource_urls.is_empty()
            || (!a.is_resource && self.non_resource_urls.iter().any(|u| path_matches(&a.path, u)))
    }
}

impl GroupResources {
    fn matches(&self, a: &Attributes) -> bool {
        if self.group != a.group && self.group != "*" {
            return false;
        }
        let name = self.names.is_empty() || self.names.contains(&a.name);
        let combined = match a.subresource.as_str() {
            "" => a.resource.clone(),
            subresource => format!("{}/{subresource}", a.resource),
        };
        let fits = |r: &String| {
            let of_any = !a.subresource.is_empty() && r.strip_prefix("*/") == Some(&a.subresource);
            *r == combined || r == "*" || of_any || r.strip_suffix("/*") == Some(&a.resource)
        };
        self.resources.is_empty() || (name && self.resources.iter().any(fits))
    }
}

fn path_matches(path: &str, rule: &str) -> bool {
    rule == "*" || rule == path || (rule.ends_with('*') && path.starts_with(rule.trim_end_matches('*')))
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn texts(list: &Value) -> Vec<String> {
    items(list).filter_map(Value::as_str).map(str::to_owned).collect()
}

fn level(value: &Value) -> Option<Level> {
    LEVELS.into_iter().find(|l| value.as_str() == Some(l.name()))
}

fn stages(list: &Value) -> Vec<Stage> {
    items(list).filter_map(|s| STAGES.into_iter().find(|known| s.as_str() == Some(known.name()))).collect()
}

/// What an object may have, in a policy and in its parts.
const POLICY: [&str; 6] = ["apiVersion", "kind", "metadata", "rules", "omitStages", "omitManagedFields"];
const RULE: [&str; 9] = [
    "level",
    "users",
    "userGroups",
    "verbs",
    "resources",
    "namespaces",
    "nonResourceURLs",
    "omitStages",
    "omitManagedFields",
];
const RESOURCES: [&str; 3] = ["group", "resources", "resourceNames"];

fn unknown_fields(policy: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut look = |value: &Value, at: String, known: &[&str]| {
        let keys = value.as_object().into_iter().flat_map(|o| o.keys());
        found.extend(keys.filter(|k| !known.contains(&k.as_str())).map(|k| format!("{at}{k}")));
    };
    look(policy, String::new(), &POLICY);
    for (i, rule) in items(&policy["rules"]).enumerate() {
        look(rule, format!("rules[{i}]."), &RULE);
        for (n, resources) in items(&rule["resources"]).enumerate() {
            look(resources, format!("rules[{i}].resources[{n}]."), &RESOURCES);
        }
    }
    found
}

fn validate(policy: &Value) -> Vec<FieldError> {
    let mut errors = validate_stages(&policy["omitStages"], &Path::new("omitStages"));
    for (i, rule) in items(&policy["rules"]).enumerate() {
        errors.extend(validate_rule(rule, &Path::new("rules").index(i)));
    }
    errors
}

fn validate_rule(rule: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let at = path.child("level");
    match rule["level"].as_str().unwrap_or_default() {
        "" => errors.push(FieldError::required(&at, "")),
        other if level(&rule["level"]).is_none() => {
            errors.push(FieldError::not_supported(&at, other, &LEVELS.map(Level::name)))
        }
        _ => {}
    }
    let urls = texts(&rule["nonResourceURLs"]);
    let at = path.child("nonResourceURLs");
    for (i, url) in urls.iter().enumerate().filter(|(_, u)| *u != "*") {
        if !url.starts_with('/') {
            let why = "non-resource URL rules must begin with a '/' character";
            errors.push(FieldError::invalid(&at.index(i), url.as_str(), why));
        }
        if url.char_indices().any(|(i, c)| c == '*' && i + 1 < url.len()) {
            let why = "non-resource URL wildcards '*' must be the final character of the rule";
            errors.push(FieldError::invalid(&at.index(i), url.as_str(), why));
        }
    }
    errors.extend(validate_resources(&rule["resources"], &path.child("resources")));
    errors.extend(validate_stages(&rule["omitStages"], &path.child("omitStages")));
    let resources = items(&rule["resources"]).next().is_some() || items(&rule["namespaces"]).next().is_some();
    if !urls.is_empty() && resources {
        let why = "rules cannot apply to both regular resources and non-resource URLs";
        errors.push(FieldError::invalid(&at, urls, why));
    }
    errors
}

fn validate_resources(resources: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for one in items(resources) {
        let group = one["group"].as_str().unwrap_or_default();
        let wrong = isopod_api::names::dns1123_subdomain(group);
        if !group.is_empty() && group != "*" && !wrong.is_empty() {
            errors.push(FieldError::invalid(&path.child("group"), group, wrong.join(",")));
        }
        let names = texts(&one["resourceNames"]);
        if !names.is_empty() && texts(&one["resources"]).is_empty() {
            let why = "using resourceNames requires at least one resource";
            errors.push(FieldError::invalid(&path.child("resourceNames"), names, why));
        }
    }
    errors
}

fn validate_stages(list: &Value, path: &Path) -> Vec<FieldError> {
    let known = |s: &Value| STAGES.into_iter().any(|k| s.as_str() == Some(k.name()));
    let why = format!("allowed stages are {}", STAGES.map(Stage::name).join(","));
    let wrong = items(list).enumerate().filter(|(_, s)| !known(s));
    wrong.map(|(i, s)| FieldError::invalid(&path.index(i), s.clone(), why.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_api::UserInfo;

    fn policy(rules: &str) -> Result<Policy, String> {
        Policy::parse(&format!(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n{rules}"
        ))
    }

    fn pods(subresource: &str) -> Attributes {
        Attributes {
            user: UserInfo::new("jane", &["dev"]),
            verb: "get".into(),
            is_resource: true,
            version: "v1".into(),
            resource: "pods".into(),
            subresource: subresource.into(),
            namespace: "a".into(),
            name: "web".into(),
            ..Default::default()
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let level = |rule: &str, a: &Attributes| policy(rule).unwrap().judge(a).level;
        let path = Attributes { verb: "get".into(), path: "/healthz/etcd".into(), ..Default::default() };
        let table = [
            ("- level: Metadata", "", true),
            ("- {level: Metadata, users: [joe]}", "", false),
            ("- {level: Metadata, userGroups: [dev]}", "", true),
            ("- {level: Metadata, verbs: [list]}", "", false),
            ("- {level: Metadata, namespaces: [a]}", "", true),
            ("- {level: Metadata, namespaces: ['']}", "", false),
            ("- {level: Metadata, resources: [{group: ''}]}", "log", true),
            ("- {level: Metadata, resources: [{group: apps}]}", "", false),
            ("- {level: Metadata, resources: [{resources: [pods]}]}", "log", false),
            ("- {level: Metadata, resources: [{resources: [pods/log]}]}", "log", true),
            ("- {level: Metadata, resources: [{resources: ['*/log']}]}", "log", true),
            ("- {level: Metadata, resources: [{resources: ['pods/*']}]}", "", true),
            ("- {level: Metadata, resources: [{resources: [pods], resourceNames: [db]}]}", "", false),
            ("- {level: Metadata, nonResourceURLs: ['*']}", "", false),
            ("- level: None\n- level: Request", "", false),
        ];
        for (rule, subresource, want) in table {
            assert_eq!(level(rule, &pods(subresource)) > Level::None, want, "{rule}");
        }
        assert_eq!(level("- {level: Metadata, nonResourceURLs: ['/healthz*']}", &path), Level::Metadata);
        assert_eq!(level("- {level: Metadata, nonResourceURLs: ['/healthz']}", &path), Level::None);
        assert_eq!(level("- {level: Metadata, namespaces: ['']}", &path), Level::None);
        let verdict = policy("- {level: Request, omitStages: [Panic], omitManagedFields: true}").unwrap().judge(&path);
        assert_eq!(verdict.omit_stages, [Stage::RequestReceived, Stage::Panic]);
        assert!(verdict.omit_managed_fields);
    }

    #[test]
    fn faults_are_told_in_upstreams_words() {
        let table = [
            ("- {}", "rules[0].level: Required value"),
            (
                "- level: All",
                "rules[0].level: Unsupported value: \"All\": supported values: \"None\", \"Metadata\", \"Request\", \"RequestResponse\"",
            ),
            (
                "- {level: None, nonResourceURLs: [x], namespaces: [a]}",
                "[rules[0].nonResourceURLs[0]: Invalid value: \"x\": non-resource URL rules must begin with a '/' character, \
                 rules[0].nonResourceURLs: Invalid value: [\"x\"]: rules cannot apply to both regular resources and non-resource URLs]",
            ),
            (
                "- {level: None, omitStages: [Never]}",
                "rules[0].omitStages[0]: Invalid value: \"Never\": allowed stages are RequestReceived,ResponseStarted,ResponseComplete,Panic",
            ),
            (
                "- {level: None, resources: [{resourceNames: [a]}]}",
                "rules[0].resources.resourceNames: Invalid value: [\"a\"]: using resourceNames requires at least one resource",
            ),
            ("  []", "loaded illegal policy with 0 rules"),
        ];
        for (rules, want) in table {
            assert_eq!(policy(rules).unwrap_err(), want);
        }
        assert!(Policy::parse("apiVersion: audit.k8s.io/v1beta1\nkind: Policy\nrules: [{level: None}]").is_err());
    }
}
