//! A request as a `SubjectAccessReview`: what webhooks are sent, and what their conditions speak of.

use isopod_api::selector::{FieldTerm, Operator, Requirement};
use isopod_auth::Attributes;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// `SubjectAccessReviewSpec`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_attributes: Option<Resource<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    non_resource_attributes: Option<Path<'a>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    user: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    groups: &'a [String],
    /// As v1beta1 spells it.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    group: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: &'a BTreeMap<String, Vec<String>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'a str,
}

#[derive(Serialize)]
struct Path<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    path: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    verb: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Resource<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    verb: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    group: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    resource: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    subresource: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field_selector: Option<Selector<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label_selector: Option<Selector<'a>>,
}

#[derive(Serialize)]
struct Selector<'a> {
    requirements: Vec<Term<'a>>,
}

#[derive(Serialize)]
struct Term<'a> {
    key: &'a str,
    operator: &'static str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    values: &'a [String],
}

fn field_term(term: &FieldTerm) -> Term<'_> {
    let operator = if term.equal { "In" } else { "NotIn" };
    Term { key: &term.field, operator, values: std::slice::from_ref(&term.value) }
}

/// `None`: reviews have no such operator. Leaving a term out only widens what is asked for.
fn label_term(of: &Requirement) -> Option<Term<'_>> {
    let operator = match of.operator {
        Operator::In | Operator::Equals | Operator::DoubleEquals => "In",
        Operator::NotIn | Operator::NotEquals => "NotIn",
        Operator::Exists => "Exists",
        Operator::DoesNotExist => "DoesNotExist",
        Operator::GreaterThan | Operator::LessThan => return None,
    };
    Some(Term { key: &of.key, operator, values: &of.values })
}

fn selector(requirements: Vec<Term<'_>>) -> Option<Selector<'_>> {
    (!requirements.is_empty()).then_some(Selector { requirements })
}

impl<'a> Spec<'a> {
    /// `version`: `v1` or `v1beta1`.
    pub fn new(a: &'a Attributes, version: &str) -> Self {
        let resource = a.is_resource.then(|| Resource {
            namespace: &a.namespace,
            verb: &a.verb,
            group: &a.group,
            version: &a.version,
            resource: &a.resource,
            subresource: &a.subresource,
            name: &a.name,
            field_selector: selector(a.fields.iter().map(field_term).collect()),
            label_selector: selector(a.labels.iter().filter_map(label_term).collect()),
        });
        let (groups, group): (&[String], &[String]) =
            if version == "v1" { (&a.user.groups, &[]) } else { (&[], &a.user.groups) };
        Spec {
            resource_attributes: resource,
            non_resource_attributes: (!a.is_resource).then_some(Path { path: &a.path, verb: &a.verb }),
            user: &a.user.name,
            groups,
            group,
            extra: &a.user.extra,
            uid: &a.user.uid,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Review<'a> {
    kind: &'static str,
    api_version: String,
    metadata: Empty,
    spec: Spec<'a>,
    status: Status,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct Status {
    allowed: bool,
}

impl<'a> Review<'a> {
    pub fn new(a: &'a Attributes, version: &str) -> Self {
        Review {
            kind: "SubjectAccessReview",
            api_version: format!("authorization.k8s.io/{version}"),
            metadata: Empty {},
            spec: Spec::new(a, version),
            status: Status { allowed: false },
        }
    }
}

/// The `request` of match conditions: every text is there, also an empty one.
pub fn described(a: &Attributes) -> Value {
    let user = &a.user;
    let mut request = json!({"user": user.name, "groups": user.groups, "uid": user.uid, "extra": user.extra});
    if !a.is_resource {
        request["nonResourceAttributes"] = json!({"verb": a.verb, "path": a.path});
        return request;
    }
    let mut resource = json!({
        "namespace": a.namespace, "verb": a.verb, "group": a.group, "version": a.version,
        "resource": a.resource, "subresource": a.subresource, "name": a.name,
    });
    let fields: Vec<Value> = a.fields.iter().map(|t| shown(&field_term(t))).collect();
    let labels: Vec<Value> = a.labels.iter().filter_map(label_term).map(|t| shown(&t)).collect();
    for (name, requirements) in [("fieldSelector", fields), ("labelSelector", labels)] {
        if !requirements.is_empty() {
            resource[name] = json!({ "requirements": requirements });
        }
    }
    request["resourceAttributes"] = resource;
    request
}

fn shown(term: &Term<'_>) -> Value {
    json!({"key": term.key, "operator": term.operator, "values": term.values})
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_api::UserInfo;
    use isopod_api::selector::{FieldSelector, LabelSelector};

    #[test]
    fn reviews_say_what_is_asked() {
        let mut user = UserInfo::new("jane", &["dev"]);
        user.extra.insert("k".into(), vec!["v".into()]);
        let a = Attributes {
            user,
            verb: "list".into(),
            is_resource: true,
            version: "v1".into(),
            resource: "pods".into(),
            fields: FieldSelector::parse("spec.nodeName=n,a!=b").unwrap().terms,
            labels: LabelSelector::parse("app=web,n>3,!old").unwrap().requirements().to_vec(),
            ..Default::default()
        };
        let want = r#"{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1","metadata":{},"spec":{"resourceAttributes":{"verb":"list","version":"v1","resource":"pods","fieldSelector":{"requirements":[{"key":"a","operator":"NotIn","values":["b"]},{"key":"spec.nodeName","operator":"In","values":["n"]}]},"labelSelector":{"requirements":[{"key":"app","operator":"In","values":["web"]},{"key":"old","operator":"DoesNotExist"}]}},"user":"jane","groups":["dev","system:authenticated"],"extra":{"k":["v"]}},"status":{"allowed":false}}"#;
        assert_eq!(serde_json::to_string(&Review::new(&a, "v1")).unwrap(), want);
        let old = serde_json::to_value(Spec::new(&a, "v1beta1")).unwrap();
        assert_eq!((&old["group"], &old["groups"]), (&json!(["dev", "system:authenticated"]), &Value::Null));
        let request = described(&a);
        assert_eq!(request["resourceAttributes"]["namespace"], "");
        assert_eq!(request["resourceAttributes"]["labelSelector"]["requirements"][1]["values"], json!([]));
        let a = Attributes { verb: "get".into(), path: "/version".into(), ..Default::default() };
        assert_eq!(described(&a)["nonResourceAttributes"]["path"], "/version");
        assert!(described(&a).get("resourceAttributes").is_none());
    }
}
