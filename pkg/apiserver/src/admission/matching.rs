//! Which requests a webhook or a policy is about (`apiserver/pkg/admission/plugin/webhook/predicates` and
//! `plugin/policy/matching`).

use super::subject::Subject;
use crate::ApiServer;
use isopod_api::selector::LabelSelector;
use isopod_api::{Gvk, Gvr, Status};
use isopod_kinds::Kind;
use isopod_kinds::access::Access;
use serde_json::Value;
use std::sync::Arc;

/// One of `rules`. `*` stands for all.
#[derive(Debug, PartialEq)]
pub struct Rule {
    /// Names of objects; empty: of all names.
    names: Vec<String>,
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    scope: Scope,
}

#[derive(Debug, PartialEq)]
enum Scope {
    All,
    Namespaced,
    Cluster,
}

impl Rule {
    pub fn new(rule: &Value) -> Self {
        let list = |key: &str| rule.list(key).iter().filter_map(Value::as_str).map(str::to_owned).collect();
        Rule {
            names: list("resourceNames"),
            operations: list("operations"),
            groups: list("apiGroups"),
            versions: list("apiVersions"),
            resources: list("resources"),
            scope: match rule.text("scope") {
                "Namespaced" => Scope::Namespaced,
                "Cluster" => Scope::Cluster,
                _ => Scope::All,
            },
        }
    }

    /// `namespace`: that of the request; a Namespace object is in none.
    pub fn matches(&self, operation: &str, gvr: &Gvr, subresource: &str, namespace: &str) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|i| i == "*" || i == wanted);
        let scope = match self.scope {
            Scope::All => true,
            Scope::Namespaced => !namespace.is_empty(),
            Scope::Cluster => namespace.is_empty(),
        };
        let resource = |rule: &String| {
            let (resource, sub) = rule.split_once('/').unwrap_or((rule, ""));
            (resource == "*" || resource == gvr.resource) && (sub == "*" || sub == subresource)
        };
        scope
            && has(&self.operations, operation)
            && has(&self.groups, &gvr.group)
            && has(&self.versions, &gvr.version)
            && self.resources.iter().any(resource)
    }
}

/// As what a request is seen.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    pub gvk: Gvk,
    pub gvr: Gvr,
}

/// What a webhook, a policy or a binding says about which requests it is for.
pub struct Criteria {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    /// Without rules, all requests are meant.
    all_without_rules: bool,
    /// `matchPolicy: Equivalent`: other versions of what the rules name count too.
    equivalent: bool,
    namespaces: LabelSelector,
    objects: LabelSelector,
}

impl Criteria {
    /// Of a webhook.
    pub fn of_webhook(hook: &Value) -> Self {
        Criteria {
            rules: hook.list("rules").iter().map(Rule::new).collect(),
            excluded: Vec::new(),
            all_without_rules: false,
            equivalent: hook.text("matchPolicy") != "Exact",
            namespaces: selector(hook.get("namespaceSelector")),
            objects: selector(hook.get("objectSelector")),
        }
    }

    /// `matchConstraints` or `matchResources`; where there are none, they mean all.
    pub fn of_policy(resources: &Value) -> Self {
        Criteria {
            rules: resources.list("resourceRules").iter().map(Rule::new).collect(),
            excluded: resources.list("excludeResourceRules").iter().map(Rule::new).collect(),
            all_without_rules: true,
            equivalent: resources.text("matchPolicy") != "Exact",
            namespaces: selector(resources.get("namespaceSelector")),
            objects: selector(resources.get("objectSelector")),
        }
    }

    /// How the request is seen. `None`: it is not meant.
    pub async fn view(
        &self,
        server: &ApiServer,
        subject: &Subject<'_>,
        new: Option<&Value>,
    ) -> Result<Option<View>, Status> {
        if self.by_rules(&self.excluded, server, subject).is_some() {
            return Ok(None);
        }
        let own = || View { gvk: subject.gvk.clone(), gvr: subject.intent().kind.gvr() };
        let view = match self.rules.is_empty() && self.all_without_rules {
            true => Some(own()),
            false => self.by_rules(&self.rules, server, subject),
        };
        let Some(view) = view else { return Ok(None) };
        let labelled = |o: &Option<&Value>| o.is_some_and(|o| self.objects.matches(o));
        if !self.objects.is_everything() && ![new, subject.old].iter().any(labelled) {
            return Ok(None);
        }
        if !self.namespaces.is_everything() && !self.in_namespace(server, subject, new).await? {
            return Ok(None);
        }
        subject.convert(new, &view).await?;
        Ok(Some(view))
    }

    fn by_rules(&self, rules: &[Rule], server: &ApiServer, subject: &Subject<'_>) -> Option<View> {
        // A Namespace is no object of the namespace that it is.
        let namespace = if subject.is_namespace() { "" } else { &subject.namespace };
        let matches = |gvr: &Gvr| {
            let named = |r: &Rule| r.names.is_empty() || r.names.contains(&subject.name);
            rules.iter().any(|r| r.matches(subject.operation, gvr, subject.subresource(), namespace) && named(r))
        };
        let kind = &subject.intent().kind;
        let gvr = kind.gvr();
        if matches(&gvr) {
            return Some(View { gvk: subject.gvk.clone(), gvr });
        }
        if !self.equivalent {
            return None;
        }
        let registry = server.registry.load();
        let same = |k: &&Arc<Kind>| k.storage.prefix == kind.storage.prefix && k.gvr() != gvr;
        let other = registry.all().iter().filter(same).find(|k| matches(&k.gvr()))?;
        // The kind of a subresource is the same in every version.
        let gvk = if subject.gvk == kind.gvk { other.gvk.clone() } else { subject.gvk.clone() };
        Some(View { gvk, gvr: other.gvr() })
    }

    /// Whether the request's namespace has the labels that are wanted. What is in no namespace is always meant.
    async fn in_namespace(
        &self,
        server: &ApiServer,
        subject: &Subject<'_>,
        new: Option<&Value>,
    ) -> Result<bool, Status> {
        if subject.namespace.is_empty() {
            return Ok(true);
        }
        // A write of a Namespace brings its labels with it.
        if subject.is_namespace()
            && subject.subresource().is_empty()
            && let Some(new) = new
        {
            return Ok(self.namespaces.matches(new));
        }
        let namespace = server.read("", "namespaces", "", &subject.namespace).await?;
        let missing = || Status::not_found(&Gvr::new("", "v1", "namespaces"), &subject.namespace);
        Ok(self.namespaces.matches(&*namespace.ok_or_else(missing)?))
    }
}

/// Where nothing is said, everything is meant.
fn selector(selector: Option<&Value>) -> LabelSelector {
    match selector.filter(|s| !s.is_null()) {
        None => LabelSelector::everything(),
        some => LabelSelector::from_object(some).unwrap_or_else(|_| LabelSelector::nothing()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules() {
        let rule = |extra: Value| {
            let mut rule = json!({"operations": ["CREATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]});
            for (k, v) in extra.as_object().unwrap() {
                rule[k] = v.clone();
            }
            Rule::new(&rule)
        };
        let gvr = Gvr::new("apps", "v1", "deployments");
        for (extra, operation, subresource, namespace, wanted) in [
            (json!({}), "CREATE", "", "n", true),
            (json!({}), "UPDATE", "", "n", false),
            (json!({"operations": ["*"]}), "CONNECT", "", "n", true),
            (json!({"apiGroups": ["", "extensions"]}), "CREATE", "", "n", false),
            (json!({"apiGroups": ["*"], "apiVersions": ["*"]}), "CREATE", "", "n", true),
            (json!({"apiVersions": ["v1beta1"]}), "CREATE", "", "n", false),
            (json!({}), "CREATE", "scale", "n", false),
            (json!({"resources": ["deployments/scale"]}), "CREATE", "scale", "n", true),
            (json!({"resources": ["deployments/scale"]}), "CREATE", "", "n", false),
            (json!({"resources": ["deployments/*"]}), "CREATE", "scale", "n", true),
            (json!({"resources": ["*/scale"]}), "CREATE", "scale", "n", true),
            (json!({"resources": ["*"]}), "CREATE", "scale", "n", false),
            (json!({"resources": ["*/*"]}), "CREATE", "", "n", true),
            (json!({"scope": "Namespaced"}), "CREATE", "", "", false),
            (json!({"scope": "Cluster"}), "CREATE", "", "n", false),
            (json!({"scope": "Cluster"}), "CREATE", "", "", true),
        ] {
            assert_eq!(
                rule(extra.clone()).matches(operation, &gvr, subresource, namespace),
                wanted,
                "{extra} {operation} {subresource}"
            );
        }
    }
}
