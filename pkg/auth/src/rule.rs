//! Policy rules: what one allows, and whether some rules cover others (`component-helpers/auth/rbac/validation`).

use crate::Attributes;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// One rule of a Role or ClusterRole. `null` lists read as empty ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRule {
    #[serde(deserialize_with = "list")]
    pub verbs: Vec<String>,
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

fn list<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(d)?.unwrap_or_default())
}

const ALL: &str = "*";

fn has(list: &[String], one: &str) -> bool {
    list.iter().any(|x| x == one)
}

fn has_or_all(list: &[String], one: &str) -> bool {
    list.iter().any(|x| x == ALL || x == one)
}

impl PolicyRule {
    /// The rules of a Role's or ClusterRole's `rules`; what is not a rule is left out.
    pub fn list_of(rules: &Value) -> Vec<PolicyRule> {
        let read = |v: &Value| PolicyRule::deserialize(v).ok();
        rules.as_array().map(|a| a.iter().filter_map(read).collect()).unwrap_or_default()
    }

    pub fn allows(&self, a: &Attributes) -> bool {
        if !a.is_resource {
            return has_or_all(&self.verbs, &a.verb) && self.non_resource_urls.iter().any(|u| url_covers(u, &a.path));
        }
        has_or_all(&self.verbs, &a.verb)
            && has_or_all(&self.api_groups, &a.group)
            && self.allows_resource(&a.resource, &a.subresource)
            && (self.resource_names.is_empty() || has(&self.resource_names, &a.name))
    }

    fn allows_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|rule| {
            if rule == ALL {
                return true;
            }
            match rule.split_once('/') {
                None => subresource.is_empty() && rule == resource,
                Some((r, s)) => !subresource.is_empty() && s == subresource && (r == ALL || r == resource),
            }
        })
    }

    /// Does this rule alone allow all that the broken-down rule `part` allows?
    fn covers(&self, part: &PolicyRule) -> bool {
        let all_in = |mine: &[String], theirs: &[String]| has(mine, ALL) || theirs.iter().all(|x| has(mine, x));
        let resource = |theirs: &String| {
            has_or_all(&self.resources, theirs)
                || theirs.split_once('/').is_some_and(|(_, sub)| has(&self.resources, &format!("*/{sub}")))
        };
        let names = if part.resource_names.is_empty() {
            self.resource_names.is_empty()
        } else {
            self.resource_names.is_empty() || part.resource_names.iter().all(|n| has(&self.resource_names, n))
        };
        all_in(&self.verbs, &part.verbs)
            && all_in(&self.api_groups, &part.api_groups)
            && part.resources.iter().all(resource)
            && names
            && part.non_resource_urls.iter().all(|theirs| self.non_resource_urls.iter().any(|u| url_covers(u, theirs)))
    }

    /// Rules with one verb and one resource or URL each, that together allow the same.
    fn break_down(&self) -> Vec<PolicyRule> {
        let one = |s: &str| vec![s.to_owned()];
        let mut out = Vec::new();
        for group in &self.api_groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    let base = PolicyRule {
                        verbs: one(verb),
                        api_groups: one(group),
                        resources: one(resource),
                        ..Default::default()
                    };
                    if self.resource_names.is_empty() {
                        out.push(base);
                        continue;
                    }
                    for name in &self.resource_names {
                        out.push(PolicyRule { resource_names: one(name), ..base.clone() });
                    }
                }
            }
        }
        for url in &self.non_resource_urls {
            for verb in &self.verbs {
                out.push(PolicyRule { verbs: one(verb), non_resource_urls: one(url), ..Default::default() });
            }
        }
        out
    }
}

/// `/a/*` covers every path that begins with `/a/`; `*` covers all.
fn url_covers(rule: &str, path: &str) -> bool {
    rule == ALL || rule == path || (rule.ends_with('*') && path.starts_with(rule.trim_end_matches('*')))
}

/// What of `wanted` the rules that someone holds do not cover, broken down.
pub fn missing(held: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    let parts = wanted.iter().flat_map(PolicyRule::break_down);
    parts.filter(|part| !held.iter().any(|rule| rule.covers(part))).collect()
}

/// Joins broken-down rules that differ by verb only, for people to read.
pub fn compact(rules: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let mut joined: BTreeMap<(String, String, Option<String>), PolicyRule> = BTreeMap::new();
    let mut out = Vec::new();
    for rule in rules {
        let (Some(group), Some(resource)) = (rule.api_groups.first(), rule.resources.first()) else {
            out.push(rule);
            continue;
        };
        let key = (group.clone(), resource.clone(), rule.resource_names.first().cloned());
        match joined.get_mut(&key) {
            Some(there) => there.verbs.extend(rule.verbs),
            None => {
                joined.insert(key, rule);
            }
        }
    }
    out.extend(joined.into_values());
    out
}

/// Upstream's short form: `{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}`.
impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        let shown: Vec<String> =
            fields.iter().filter(|(_, v)| !v.is_empty()).map(|(n, v)| format!("{n}:{}", quoted(v))).collect();
        write!(f, "{{{}}}", shown.join(", "))
    }
}

/// Go's `%q` of a list: `["a" "b"]`.
pub(crate) fn quoted(list: &[String]) -> String {
    let items: Vec<String> = list.iter().map(|x| format!("{x:?}")).collect();
    format!("[{}]", items.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> PolicyRule {
        let list = |s: &str| {
            if s.is_empty() { vec![] } else { s.split(',').map(|x| x.trim_matches('_').to_owned()).collect() }
        };
        PolicyRule {
            verbs: list(verbs),
            api_groups: list(groups),
            resources: list(resources),
            resource_names: list(names),
            ..Default::default()
        }
    }

    fn ask(verb: &str, group: &str, resource: &str, name: &str) -> Attributes {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            verb: verb.into(),
            is_resource: true,
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            name: name.into(),
            ..Default::default()
        }
    }

    #[test]
    fn resource_rules() {
        let table = [
            (rule("get", "_", "pods", ""), ask("get", "", "pods", "a"), true),
            (rule("get", "_", "pods", ""), ask("list", "", "pods", ""), false),
            (rule("*", "*", "*", ""), ask("x", "y", "z/w", "a"), true),
            (rule("get", "_", "pods", ""), ask("get", "", "pods/log", "a"), false),
            (rule("get", "_", "pods/log", ""), ask("get", "", "pods/log", "a"), true),
            (rule("get", "_", "*/log", ""), ask("get", "", "pods/log", "a"), true),
            (rule("get", "_", "*/log", ""), ask("get", "", "pods", "a"), false),
            (rule("get", "apps", "pods", ""), ask("get", "", "pods", "a"), false),
            (rule("get", "_", "pods", "b"), ask("get", "", "pods", "a"), false),
            (rule("get", "_", "pods", "a,b"), ask("get", "", "pods", "a"), true),
            (rule("list", "_", "pods", "a"), ask("list", "", "pods", ""), false),
        ];
        for (rule, ask, want) in table {
            assert_eq!(rule.allows(&ask), want, "{rule} {ask:?}");
        }
    }

    #[test]
    fn url_rules() {
        let rule = PolicyRule {
            verbs: vec!["get".into()],
            non_resource_urls: vec!["/healthz".into(), "/apis/*".into()],
            ..Default::default()
        };
        for (path, want) in [("/healthz", true), ("/healthz/x", false), ("/apis/apps", true), ("/apis", false)] {
            let ask = Attributes { verb: "get".into(), path: path.into(), ..Default::default() };
            assert_eq!(rule.allows(&ask), want, "{path}");
        }
    }

    #[test]
    fn covering() {
        let held = [rule("get,list", "_", "pods,*/log", ""), rule("get", "_", "secrets", "a")];
        let covered =
            [rule("get", "_", "pods,pods/log", ""), rule("list", "_", "pods", "x"), rule("get", "_", "secrets", "a")];
        assert_eq!(missing(&held, &covered), []);
        let wanted = [rule("get,delete,update", "_", "pods", ""), rule("get", "_", "secrets", "")];
        let shown: Vec<String> = compact(missing(&held, &wanted)).iter().map(|r| r.to_string()).collect();
        assert_eq!(
            shown,
            [
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete" "update"]}"#,
                r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}"#
            ]
        );
        assert_eq!(missing(&[rule("*", "*", "*", "")], &wanted), []);
    }

    #[test]
    fn reads_null_lists() {
        let rules = PolicyRule::list_of(&json!([{"verbs": ["get"], "apiGroups": null, "nonResourceURLs": ["/x"]}]));
        assert_eq!(rules[0].non_resource_urls, ["/x"]);
        assert_eq!(PolicyRule::list_of(&Value::Null), []);
    }
}
