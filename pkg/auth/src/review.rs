//! The reviews: TokenReview, the access reviews and SelfSubjectRulesReview as functions from the client's object and a
//! decision to the answer (`pkg/registry/{authentication,authorization}`).

use crate::{Attributes, Decision, Rules, aggregate_text};
use isopod_api::{
    FieldError, FieldErrors, Path, UserInfo,
    selector::{FieldSelector, FieldTerm, LabelSelector, Operator, Requirement},
};
use serde_json::{Map, Value, json};

/// Which of the access reviews an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessReview {
    Subject,
    LocalSubject,
    SelfSubject,
}

fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v[key].as_str().unwrap_or_default()
}

fn strings(v: &Value) -> Vec<String> {
    v.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn given(v: &Value) -> Option<&Value> {
    Some(v).filter(|v| !v.is_null())
}

/// What is wrong with a review. Its namespace (of a local one) must have been filled in from the path.
pub fn validate(review: &Value, kind: AccessReview) -> FieldErrors {
    let spec = &review["spec"];
    let path = Path::new("spec");
    let mut errors = FieldErrors::new();
    let (resource, other) = (given(&spec["resourceAttributes"]), given(&spec["nonResourceAttributes"]));
    if resource.is_some() == other.is_some() {
        let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.push(FieldError::invalid(&path, other.map(non_resource).unwrap_or_default(), why));
    }
    if kind != AccessReview::SelfSubject && text(spec, "user").is_empty() && strings(&spec["groups"]).is_empty() {
        errors.push(FieldError::invalid(&path.child("user"), "", "at least one of user or group must be specified"));
    }
    for (selector, check) in [("fieldSelector", field_requirement as Check), ("labelSelector", label_requirement)] {
        let given = resource.map_or(&Value::Null, |r| &r[selector]);
        errors.extend(selector_errors(given, &path.child("resourceAttributes").child(selector), check));
    }
    let mut metadata = review["metadata"].as_object().cloned().unwrap_or_default();
    metadata.remove("managedFields");
    metadata.remove("creationTimestamp");
    if kind == AccessReview::LocalSubject {
        metadata.remove("namespace");
    }
    if !metadata.is_empty() {
        let why =
            if kind == AccessReview::LocalSubject { "must be empty except for namespace" } else { "must be empty" };
        errors.push(FieldError::invalid(&Path::new("metadata"), review["metadata"].clone(), why));
    }
    if kind == AccessReview::LocalSubject {
        let namespace = text(&review["metadata"], "namespace");
        if let Some(r) = resource.filter(|r| text(r, "namespace") != namespace) {
            let path = path.child("resourceAttributes").child("namespace");
            errors.push(FieldError::invalid(&path, text(r, "namespace"), "must match metadata.namespace"));
        }
        if let Some(other) = other {
            let path = path.child("nonResourceAttributes");
            errors.push(FieldError::invalid(&path, non_resource(other), "disallowed on this kind of request"));
        }
    }
    errors
}

/// As upstream prints it in errors: the Go type's fields.
fn non_resource(attributes: &Value) -> Value {
    json!({ "Path": text(attributes, "path"), "Verb": text(attributes, "verb") })
}

/// What is wrong with one requirement of a selector.
type Check = fn(&Value, &Path) -> FieldErrors;

fn selector_errors(selector: &Value, path: &Path, check: Check) -> FieldErrors {
    let Some(selector) = given(selector) else { return FieldErrors::new() };
    let (raw, requirements) = (text(selector, "rawSelector"), selector["requirements"].as_array());
    let requirements = requirements.map(Vec::as_slice).unwrap_or_default();
    let mut errors = FieldErrors::new();
    if !raw.is_empty() && !requirements.is_empty() {
        let why = "may not specified at the same time as requirements";
        errors.push(FieldError::invalid(&path.child("rawSelector"), raw, why));
    }
    if raw.is_empty() && requirements.is_empty() {
        let why = format!("when {path} is specified, requirements or rawSelector is required");
        errors.push(FieldError::required(&path.child("requirements"), why));
    }
    for (i, requirement) in requirements.iter().enumerate() {
        errors.extend(check(requirement, &path.child("requirements").index(i)));
    }
    errors
}

/// An operator that is not known is a newer client's, and is left out when the review is answered.
fn requirement(requirement: &Value, path: &Path) -> FieldErrors {
    let values = requirement["values"].as_array().map_or(0, Vec::len);
    let path = path.child("values");
    match text(requirement, "operator") {
        "In" | "NotIn" if values == 0 => {
            vec![FieldError::required(&path, "must be specified when `operator` is 'In' or 'NotIn'")]
        }
        "Exists" | "DoesNotExist" if values > 0 => {
            vec![FieldError::forbidden(&path, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")]
        }
        _ => FieldErrors::new(),
    }
}

fn field_requirement(of: &Value, path: &Path) -> FieldErrors {
    let mut errors = requirement(of, path);
    if text(of, "key").is_empty() {
        errors.push(FieldError::required(&path.child("key"), "must be specified"));
    }
    errors
}

fn label_requirement(of: &Value, path: &Path) -> FieldErrors {
    let mut errors = requirement(of, path);
    let key = text(of, "key");
    let faults = isopod_api::names::qualified_name(key);
    errors.extend(faults.into_iter().map(|why| FieldError::invalid(&path.child("key"), key, why)));
    errors
}

/// The user that a (local) SubjectAccessReview asks about.
pub fn subject(spec: &Value) -> UserInfo {
    let extra = spec["extra"].as_object().into_iter().flatten();
    UserInfo {
        name: text(spec, "user").to_owned(),
        uid: text(spec, "uid").to_owned(),
        groups: strings(&spec["groups"]),
        extra: extra.map(|(k, v)| (k.clone(), strings(v))).collect(),
    }
}

/// What the review asks an authorizer.
pub fn attributes(spec: &Value, user: UserInfo) -> Attributes {
    let Some(r) = given(&spec["resourceAttributes"]) else {
        let r = &spec["nonResourceAttributes"];
        return Attributes { user, verb: text(r, "verb").into(), path: text(r, "path").into(), ..Default::default() };
    };
    let version = text(r, "version");
    Attributes {
        user,
        verb: text(r, "verb").to_owned(),
        is_resource: true,
        group: text(r, "group").to_owned(),
        version: if version.is_empty() { "*" } else { version }.to_owned(),
        resource: text(r, "resource").to_owned(),
        subresource: text(r, "subresource").to_owned(),
        namespace: text(r, "namespace").to_owned(),
        name: text(r, "name").to_owned(),
        path: String::new(),
        fields: fields(&r["fieldSelector"]),
        labels: labels(&r["labelSelector"]),
    }
}

/// The terms of a field selector; what cannot be read is left out, which only widens what is asked for.
fn fields(selector: &Value) -> Vec<FieldTerm> {
    let requirements = selector["requirements"].as_array().map(Vec::as_slice).unwrap_or_default();
    if requirements.is_empty() {
        return FieldSelector::parse(text(selector, "rawSelector")).map(|s| s.terms).unwrap_or_default();
    }
    let term = |r: &Value| {
        let equal = match text(r, "operator") {
            "In" => true,
            "NotIn" => false,
            _ => return None,
        };
        match &strings(&r["values"])[..] {
            [value] => Some(FieldTerm { field: text(r, "key").to_owned(), equal, value: value.clone() }),
            _ => None,
        }
    };
    requirements.iter().filter_map(term).collect()
}

/// The same for a label selector.
fn labels(selector: &Value) -> Vec<Requirement> {
    let requirements = selector["requirements"].as_array().map(Vec::as_slice).unwrap_or_default();
    if requirements.is_empty() {
        let parsed = LabelSelector::parse(text(selector, "rawSelector"));
        return parsed.map(|s| s.requirements().to_vec()).unwrap_or_default();
    }
    let requirement = |r: &Value| {
        let operator = match text(r, "operator") {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            _ => return None,
        };
        Requirement::new(text(r, "key"), operator, strings(&r["values"])).ok()
    };
    requirements.iter().filter_map(requirement).collect()
}

/// What of the selectors of a review could not be used, in upstream's words; `""`: nothing.
pub fn unused_selectors(spec: &Value) -> String {
    let r = &spec["resourceAttributes"];
    let mut all = Vec::new();
    for (name, usable) in [("fieldSelector", usable_field as fn(&Value) -> bool), ("labelSelector", usable_label)] {
        let raw = text(&r[name], "rawSelector");
        let broken = match name {
            "fieldSelector" => FieldSelector::parse(raw).is_err(),
            _ => LabelSelector::parse(raw).is_err(),
        };
        let requirements = r[name]["requirements"].as_array().map(Vec::as_slice).unwrap_or_default();
        let used = requirements.iter().filter(|r| usable(r)).count();
        match used {
            n if n == requirements.len() && !broken => {}
            0 => all.push(format!("spec.resourceAttributes.{name} ignored due to parse error")),
            _ => all.push(format!("spec.resourceAttributes.{name} partially ignored due to parse error")),
        }
    }
    all.join("; ")
}

fn usable_field(requirement: &Value) -> bool {
    let one = requirement["values"].as_array().is_some_and(|v| v.len() == 1);
    one && matches!(text(requirement, "operator"), "In" | "NotIn")
}

fn usable_label(requirement: &Value) -> bool {
    matches!(text(requirement, "operator"), "In" | "NotIn" | "Exists" | "DoesNotExist")
}

/// The status of an access review. `error`: what went wrong, and what could not be looked at.
pub fn access_status(decision: &Decision, error: &str) -> Value {
    let (allowed, denied, reason) = match decision {
        Decision::Allow(reason) => (true, false, reason),
        Decision::Deny(reason) => (false, true, reason),
        Decision::NoOpinion(reason) => (false, false, reason),
    };
    let mut status = json!({ "allowed": allowed });
    if denied {
        status["denied"] = true.into();
    }
    if !reason.is_empty() {
        status["reason"] = reason.as_str().into();
    }
    if !error.is_empty() {
        status["evaluationError"] = error.into();
    }
    status
}

/// The status of a SelfSubjectRulesReview.
pub fn rules_status(Rules { rules, errors }: &Rules) -> Value {
    let mut resource = Vec::new();
    let mut other = Vec::new();
    for rule in rules {
        if !rule.resources.is_empty() {
            let mut r = json!({ "verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources });
            if !rule.resource_names.is_empty() {
                r["resourceNames"] = json!(rule.resource_names);
            }
            resource.push(r);
        }
        if !rule.non_resource_urls.is_empty() {
            other.push(json!({ "verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls }));
        }
    }
    let mut status = json!({ "resourceRules": resource, "nonResourceRules": other, "incomplete": !errors.is_empty() });
    if !errors.is_empty() {
        status["evaluationError"] = aggregate_text(errors).into();
    }
    status
}

/// A user as reviews show it (`authentication.k8s.io/v1 UserInfo`).
pub fn user_json(user: &UserInfo) -> Value {
    let mut v = Map::new();
    let mut set = |key: &str, value: Value| {
        let empty = matches!(&value, Value::String(s) if s.is_empty())
            || matches!(&value, Value::Array(a) if a.is_empty())
            || matches!(&value, Value::Object(o) if o.is_empty());
        if !empty {
            v.insert(key.to_owned(), value);
        }
    };
    set("username", user.name.as_str().into());
    set("uid", user.uid.as_str().into());
    set("groups", json!(user.groups));
    set("extra", json!(user.extra));
    v.into()
}

/// The status of a TokenReview: `Ok` the user and the audiences that the token is good for.
pub fn token_status(outcome: Result<(&UserInfo, &[String]), String>) -> Value {
    match outcome {
        Ok((user, audiences)) => {
            let mut status = json!({ "authenticated": true, "user": user_json(user) });
            if !audiences.is_empty() {
                status["audiences"] = json!(audiences);
            }
            status
        }
        Err(error) => {
            let mut status = json!({ "user": {} });
            if !error.is_empty() {
                status["error"] = error.into();
            }
            status
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::PolicyRule;

    #[test]
    fn asks_what_the_spec_says() {
        let spec = json!({"user": "jane", "groups": ["dev"], "extra": {"k": ["v"]},
            "resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "a", "subresource": "log",
                "fieldSelector": {"requirements": [
                    {"key": "spec.nodeName", "operator": "In", "values": ["n"]},
                    {"key": "a", "operator": "NotIn", "values": ["b"]},
                    {"key": "a", "operator": "Exists"}]},
                "labelSelector": {"rawSelector": "tier notin (x),!old"}}});
        let a = attributes(&spec, subject(&spec));
        assert_eq!((a.user.name.as_str(), a.version.as_str(), a.subresource.as_str()), ("jane", "*", "log"));
        let term = |field: &str, equal, value: &str| FieldTerm { field: field.into(), equal, value: value.into() };
        assert_eq!(a.fields, [term("spec.nodeName", true, "n"), term("a", false, "b")]);
        let labels: Vec<String> = a.labels.iter().map(ToString::to_string).collect();
        assert_eq!(labels, ["!old", "tier notin (x)"]);
        let spec = json!({"nonResourceAttributes": {"verb": "get", "path": "/version"}});
        let a = attributes(&spec, UserInfo::anonymous());
        assert!(!a.is_resource && a.path == "/version");
    }

    #[test]
    fn validation() {
        let shown =
            |review: Value, kind| -> Vec<String> { validate(&review, kind).iter().map(|e| e.to_string()).collect() };
        let resource = json!({"verb": "get", "resource": "pods", "namespace": "a"});
        assert_eq!(
            shown(json!({"spec": {"user": "x", "resourceAttributes": resource}}), AccessReview::Subject),
            [""; 0]
        );
        let neither = shown(json!({"spec": {}}), AccessReview::Subject);
        assert_eq!(neither.len(), 2, "{neither:?}");
        let local = json!({"metadata": {"namespace": "b"}, "spec": {"user": "x", "resourceAttributes": resource}});
        assert_eq!(
            shown(local, AccessReview::LocalSubject),
            [r#"spec.resourceAttributes.namespace: Invalid value: "a": must match metadata.namespace"#]
        );
        let named = json!({"metadata": {"name": "x"}, "spec": {"resourceAttributes": resource}});
        assert!(shown(named, AccessReview::SelfSubject)[0].ends_with("must be empty"));
    }

    #[test]
    fn selectors_of_reviews() {
        let unused = |attributes: Value| unused_selectors(&json!({ "resourceAttributes": attributes }));
        let field = |operator: &str, values: &[&str]| json!({"key": "a", "operator": operator, "values": values});
        let (good, bad) = (field("In", &["b"]), field("Near", &[]));
        for (requirements, wanted) in [
            (json!([good]), ""),
            (json!([bad]), "spec.resourceAttributes.fieldSelector ignored due to parse error"),
            (json!([good, bad]), "spec.resourceAttributes.fieldSelector partially ignored due to parse error"),
        ] {
            assert_eq!(unused(json!({"fieldSelector": {"requirements": requirements}})), wanted);
        }
        let broken = unused(json!({"labelSelector": {"rawSelector": "a in"}}));
        assert_eq!(broken, "spec.resourceAttributes.labelSelector ignored due to parse error");

        let path = Path::new("s");
        let faults = |selector: Value, check: Check| -> Vec<String> {
            selector_errors(&selector, &path, check).iter().map(|e| e.field.clone()).collect()
        };
        assert_eq!(faults(json!({}), label_requirement), ["s.requirements"]);
        assert_eq!(faults(json!({"rawSelector": "a=b", "requirements": [good]}), label_requirement), ["s.rawSelector"]);
        assert_eq!(
            faults(json!({"requirements": [field("In", &[])]}), label_requirement),
            ["s.requirements[0].values"]
        );
        assert_eq!(faults(json!({"requirements": [bad]}), label_requirement), Vec::<String>::new());
    }

    #[test]
    fn answers() {
        assert_eq!(access_status(&Decision::Allow("r".into()), ""), json!({"allowed": true, "reason": "r"}));
        let denied = access_status(&Decision::Deny(String::new()), "e");
        assert_eq!(denied, json!({"allowed": false, "denied": true, "evaluationError": "e"}));
        let rule = PolicyRule { verbs: vec!["*".into()], resources: vec!["*".into()], ..Default::default() };
        let status = rules_status(&Rules { rules: vec![rule], errors: vec![] });
        assert_eq!(status["resourceRules"][0]["resources"], json!(["*"]));
        assert_eq!(status["incomplete"], false);
        let user = UserInfo { name: "x".into(), ..Default::default() };
        let status = token_status(Ok((&user, &["api".to_owned()])));
        assert_eq!(status, json!({"authenticated": true, "user": {"username": "x"}, "audiences": ["api"]}));
        assert_eq!(token_status(Err("no".into())), json!({"user": {}, "error": "no"}));
    }
}
