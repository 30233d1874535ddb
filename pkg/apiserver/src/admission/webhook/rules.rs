//! Which requests a webhook is about (`apiserver/pkg/admission/plugin/webhook/predicates`).

use super::Subject;
use super::configuration::Hook;
use crate::ApiServer;
use isopod_api::{Gvk, Gvr, Status};
use isopod_kinds::Kind;
use isopod_kinds::access::Access;
use serde_json::Value;
use std::sync::Arc;

/// One of a webhook's `rules`. `*` stands for all.
#[derive(Debug, PartialEq)]
pub struct Rule {
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

/// As what a webhook wants to see a request.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    pub gvk: Gvk,
    pub gvr: Gvr,
}

/// How `hook` sees the request. `None`: it is not about it.
pub async fn view(
    server: &ApiServer,
    hook: &Hook,
    subject: &Subject<'_>,
    new: Option<&Value>,
) -> Result<Option<View>, Status> {
    let Some(view) = by_rules(server, hook, subject) else { return Ok(None) };
    let objects = [new, subject.old];
    let labelled = |o: &Option<&Value>| o.is_some_and(|o| hook.objects.matches(o));
    if !hook.objects.is_everything() && !objects.iter().any(labelled) {
        return Ok(None);
    }
    if !hook.namespaces.is_everything() && !in_namespace(server, hook, subject, new).await? {
        return Ok(None);
    }
    Ok(Some(view))
}

fn by_rules(server: &ApiServer, hook: &Hook, subject: &Subject<'_>) -> Option<View> {
    // A Namespace is no object of the namespace that it is.
    let namespace = if subject.is_namespace() { "" } else { &subject.namespace };
    let matches =
        |gvr: &Gvr| hook.rules.iter().any(|r| r.matches(subject.operation, gvr, subject.subresource(), namespace));
    let gvr = subject.intent().kind.gvr();
    if matches(&gvr) {
        return Some(View { gvk: subject.gvk.clone(), gvr });
    }
    if !hook.equivalent {
        return None;
    }
    let registry = server.registry.load();
    let same = |k: &&Arc<Kind>| k.storage.prefix == subject.intent().kind.storage.prefix && k.gvr() != gvr;
    let other = registry.all().iter().filter(same).find(|k| matches(&k.gvr()))?;
    // The kind of a subresource is the same in every version.
    let own = subject.gvk == subject.intent().kind.gvk;
    let gvk = if own { other.gvk.clone() } else { subject.gvk.clone() };
    Some(View { gvk, gvr: other.gvr() })
}

/// Whether the labels of the request's namespace are those that `hook` wants. What is in no namespace is always meant.
async fn in_namespace(
    server: &ApiServer,
    hook: &Hook,
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
        return Ok(hook.namespaces.matches(new));
    }
    let namespace = server.read("", "namespaces", "", &subject.namespace).await?;
    let namespace =
        namespace.ok_or_else(|| Status::not_found(&Gvr::new("", "v1", "namespaces"), &subject.namespace))?;
    Ok(hook.namespaces.matches(&namespace))
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
