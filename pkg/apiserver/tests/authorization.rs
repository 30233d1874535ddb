//! Chains of authorizers end to end: webhooks of the test's own between the built-in ones, what of them is kept, what happens
//! when they fail, and files that change.

#![allow(clippy::unwrap_used)]

mod webhook_server;

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use isopod_api::UserInfo;
use isopod_apiserver::authorization::{AuthorizerChain, Builtins, Flags};
use isopod_apiserver::{Access, Config};
use isopod_testkit::TestServer;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tower::ServiceExt;
use webhook_server::WebhookServer;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Says what the name of the user asks for.
fn by_name(_: &str, review: &Value) -> Value {
    let user = review["spec"]["user"].as_str().unwrap_or_default();
    let status = match user {
        "yes" => json!({"allowed": true, "reason": "it says so"}),
        "no" => json!({"allowed": false, "denied": true, "reason": "never"}),
        "both" => json!({"allowed": true, "denied": true}),
        "broken" => return json!({"kind": "Status", "status": "Failure", "message": "out of order", "code": 500}),
        _ => json!({"allowed": false, "reason": "it does not know"}),
    };
    json!({"apiVersion": review["apiVersion"], "kind": "SubjectAccessReview", "status": status})
}

fn kubeconfig(dir: &Path, hook: &WebhookServer) -> PathBuf {
    let file = dir.join("webhook.kubeconfig");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("{}/authorize", hook.url), "certificate-authority-data": hook.ca}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
    });
    std::fs::write(&file, text.to_string()).unwrap();
    file
}

/// A configuration with RBAC after the webhook.
fn configuration(kubeconfig: &Path, change: Value) -> String {
    let mut webhook = json!({
        "timeout": "3s", "subjectAccessReviewVersion": "v1", "failurePolicy": "NoOpinion",
        "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": kubeconfig},
    });
    webhook.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration",
        "authorizers": [
            {"type": "Webhook", "name": "hook.example.com", "webhook": webhook}, {"type": "RBAC", "name": "rbac"},
        ],
    })
    .to_string()
}

struct Setup {
    s: TestServer,
    chain: Arc<AuthorizerChain>,
    hook: WebhookServer,
    file: PathBuf,
    kubeconfig: PathBuf,
    _dir: tempfile::TempDir,
}

async fn start(change: Value) -> Setup {
    let hook = WebhookServer::start(by_name).await;
    let dir = tempfile::tempdir().unwrap();
    let (kubeconfig, file) = (kubeconfig(dir.path(), &hook), dir.path().join("authorization.yaml"));
    std::fs::write(&file, configuration(&kubeconfig, change)).unwrap();
    let access = Access::new();
    let builtins = Builtins { access: access.clone(), policy_file: None, identity: "apiserver-a".into() };
    let chain = AuthorizerChain::from_file(&file, &builtins).unwrap();
    let s = TestServer::start_with(|config: &mut Config| {
        config.authorizer = chain.clone();
        config.access = Some(access);
    })
    .await;
    Setup { s, chain, hook, file, kubeconfig, _dir: dir }
}

async fn send(s: &TestServer, user: &str, method: &str, uri: &str, body: Value) -> (u16, String) {
    let bytes = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let request = Request::builder().method(method).uri(uri).header("content-type", "application/json");
    let request = request.extension(UserInfo::new(user, &[])).body(bytes).unwrap();
    let response = s.server.service().oneshot(request).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, String::from_utf8_lossy(&bytes).into_owned())
}

async fn get(s: &TestServer, user: &str) -> (u16, String) {
    send(s, user, "GET", MAPS, Value::Null).await
}

fn message(body: &str) -> String {
    serde_json::from_str::<Value>(body).unwrap()["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_webhook_decides_before_the_others_and_its_answers_are_kept() {
    let Setup { s, hook, .. } = start(json!({})).await;
    assert_eq!(get(&s, "yes").await.0, 200);
    assert_eq!(get(&s, "yes").await.0, 200);
    let asked = hook.taken();
    assert_eq!(asked.len(), 1, "the answer is kept");
    let (path, review) = &asked[0];
    assert_eq!((path.as_str(), &review["apiVersion"]), ("/authorize", &json!("authorization.k8s.io/v1")));
    assert_eq!(
        review["spec"],
        json!({"user": "yes", "groups": ["system:authenticated"], "resourceAttributes": {
            "namespace": "default", "verb": "list", "version": "v1", "resource": "configmaps"}})
    );
    let (code, said) = get(&s, "no").await;
    assert_eq!(code, 403);
    assert!(message(&said).ends_with("in the namespace \"default\": never"), "{said}");
    let (code, said) = get(&s, "who").await;
    assert_eq!(code, 403);
    assert!(message(&said).ends_with("in the namespace \"default\": hook.example.com: it does not know"), "{said}");
    // What has a selector is another question.
    hook.taken();
    let uri = format!("{MAPS}?labelSelector=app%3Dweb,x%3E3&fieldSelector=metadata.name!%3Da");
    assert_eq!(send(&s, "yes", "GET", &uri, Value::Null).await.0, 200);
    let asked = hook.taken();
    let attributes = &asked[0].1["spec"]["resourceAttributes"];
    let labels = json!([{"key": "app", "operator": "In", "values": ["web"]}]);
    let fields = json!([{"key": "metadata.name", "operator": "NotIn", "values": ["a"]}]);
    assert_eq!(
        (&attributes["labelSelector"]["requirements"], &attributes["fieldSelector"]["requirements"]),
        (&labels, &fields)
    );
    assert_eq!(hook.connections(), 1, "calls share a connection");
    // Administrators do not depend on it.
    assert_eq!(s.get(MAPS).await.code, 200);
    assert!(hook.taken().is_empty());
}

#[tokio::test]
async fn reviews_and_rules_go_through_the_chain() {
    let Setup { s, .. } = start(json!({})).await;
    let review =
        |user: &str| json!({"spec": {"user": user, "resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let ask = async |user: &str| {
        let uri = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        s.post(uri, review(user)).await.json["status"].clone()
    };
    assert_eq!(ask("yes").await, json!({"allowed": true, "reason": "it says so"}));
    assert_eq!(ask("no").await, json!({"allowed": false, "denied": true, "reason": "never"}));
    assert_eq!(ask("who").await, json!({"allowed": false, "reason": "hook.example.com: it does not know"}));
    let both = "webhook subject access review returned both allow and deny response";
    assert_eq!(ask("both").await, json!({"allowed": false, "denied": true, "evaluationError": both}));
    assert_eq!(ask("broken").await, json!({"allowed": false, "evaluationError": "out of order"}));
    let rules = s.post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", json!({"spec": {"namespace": "a"}}));
    let status = rules.await.json["status"].clone();
    let why = "webhook authorizer does not support user rule resolution";
    assert_eq!((&status["incomplete"], &status["evaluationError"]), (&json!(true), &json!(why)));
}

#[tokio::test]
async fn one_that_cannot_be_asked_is_passed_over_or_refuses() {
    let Setup { s, .. } = start(json!({})).await;
    let (code, said) = get(&s, "broken").await;
    assert_eq!((code, said.as_str()), (500, format!("Internal Server Error: {MAPS:?}: out of order\n").as_str()));
    let group = "rbac.authorization.k8s.io";
    let role = json!({"metadata": {"name": "r"}, "rules": [{"verbs": ["list"], "apiGroups": [""], "resources": ["configmaps"]}]});
    let binding = json!({
        "metadata": {"name": "b"}, "subjects": [{"kind": "User", "name": "broken", "apiGroup": group}],
        "roleRef": {"apiGroup": group, "kind": "Role", "name": "r"},
    });
    for (resource, object) in [("roles", role), ("rolebindings", binding)] {
        let made = s.post(&format!("/apis/{group}/v1/namespaces/default/{resource}"), object).await;
        assert_eq!(made.code, 201, "{}", made.text);
    }
    assert_eq!(get(&s, "broken").await.0, 200, "RBAC is asked after it");
    let page = s.get("/metrics").await.text;
    for line in [
        "apiserver_authorization_decisions_total{type=\"RBAC\",name=\"rbac\",decision=\"allowed\"} 1",
        "apiserver_authorization_webhook_evaluations_fail_open_total{name=\"hook.example.com\",result=\"error\"}",
        "apiserver_authorization_webhook_evaluations_total{name=\"hook.example.com\",result=\"error\"}",
    ] {
        assert!(page.contains(line), "{line}\n{page}");
    }
    let Setup { s, .. } = start(json!({"failurePolicy": "Deny"})).await;
    assert_eq!(get(&s, "broken").await.0, 500);
}

#[tokio::test]
async fn conditions_tell_what_it_is_asked() {
    let conditions = json!({
        "matchConditionSubjectAccessReviewVersion": "v1",
        "matchConditions": [
            {"expression": "has(request.resourceAttributes)"},
            {"expression": "request.resourceAttributes.resource == 'configmaps'"},
        ],
    });
    let Setup { s, hook, .. } = start(conditions).await;
    assert_eq!(get(&s, "yes").await.0, 200);
    assert_eq!(hook.taken().len(), 1);
    assert_eq!(send(&s, "yes", "GET", "/api/v1/pods", Value::Null).await.0, 403);
    assert_eq!(send(&s, "yes", "GET", "/logs", Value::Null).await.0, 403);
    assert!(hook.taken().is_empty());
    let page = s.get("/metrics").await.text;
    let name = "type=\"Webhook\",name=\"hook.example.com\"";
    assert!(page.contains(&format!("apiserver_authorization_match_condition_exclusions_total{{{name}}}")), "{page}");
}

#[tokio::test]
async fn expressions_of_policies_wait_for_it() {
    let Setup { s, hook, .. } = start(json!({})).await;
    let group = "/apis/admissionregistration.k8s.io/v1";
    let check = "authorizer.serviceAccount('default', 'x').group('').resource('pods').check('get')";
    let spec = json!({
        "matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]},
        "variables": [{"name": "said", "expression": format!("{check}.reason()")}],
        "validations": [{"expression": "variables.said == ''", "message": "it has said something"}],
    });
    let made =
        s.post(&format!("{group}/validatingadmissionpolicies"), json!({"metadata": {"name": "p"}, "spec": spec})).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}});
    assert_eq!(s.post(&format!("{group}/validatingadmissionpolicybindings"), binding).await.code, 201);
    hook.taken();
    let refused = s.post(MAPS, json!({"metadata": {"name": "x"}})).await;
    assert_eq!(refused.code, 422, "{}", refused.text);
    assert!(refused.text.contains("denied request: it has said something"), "{}", refused.text);
    let users: Vec<Value> = hook.taken().into_iter().map(|(_, review)| review["spec"]["user"].clone()).collect();
    assert_eq!(users, ["system:serviceaccount:default:x"]);
}

#[tokio::test]
async fn a_file_that_changes_is_taken_in_and_a_bad_one_is_not() {
    let Setup { s, chain, hook, file, kubeconfig, _dir } = start(json!({})).await;
    assert_eq!(get(&s, "yes").await.0, 200);
    assert!(!chain.look().unwrap(), "nothing has changed");
    let config = |authorizers: Value| {
        json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration", "authorizers": authorizers})
            .to_string()
    };
    let rbac = json!({"type": "RBAC", "name": "rbac"});
    for (bad, why) in [
        ("kind: [".to_owned(), "failed to load AuthorizationConfiguration from file: "),
        (config(json!([])), "authorizers: Required value"),
        (config(json!([{"type": "AlwaysAllow", "name": "alwaysallow"}])), "missing required types: [RBAC]"),
        (
            config(json!([rbac, {"type": "Node", "name": "node"}])),
            "authorizer type Node is not allowed if it was not enabled at initial server startup",
        ),
    ] {
        std::fs::write(&file, bad).unwrap();
        let error = chain.look().unwrap_err().to_string();
        assert!(error.starts_with(why), "{error}");
        assert_eq!(get(&s, "yes").await.0, 200);
        assert!(!chain.look().unwrap(), "it is told once");
    }
    std::fs::write(&file, config(json!([rbac]))).unwrap();
    assert!(chain.look().unwrap());
    hook.taken();
    assert_eq!(get(&s, "yes").await.0, 403);
    assert!(hook.taken().is_empty());
    std::fs::write(&file, configuration(&kubeconfig, json!({"subjectAccessReviewVersion": "v1beta1"}))).unwrap();
    assert!(chain.look().unwrap());
    assert_eq!(get(&s, "yes").await.0, 200);
    assert_eq!(hook.taken()[0].1["spec"]["group"], json!(["system:authenticated"]));
    let page = s.get("/metrics").await.text;
    for line in [
        "automatic_reloads_total{status=\"success\"",
        "automatic_reloads_total{status=\"failure\"",
        "last_config_info{",
    ] {
        assert!(page.contains(&format!("apiserver_authorization_config_controller_{line}")), "{line}\n{page}");
    }
}

#[tokio::test]
async fn flags_order_the_chain() {
    let hook = WebhookServer::start(by_name).await;
    let dir = tempfile::tempdir().unwrap();
    let (access, policies) = (Access::new(), dir.path().join("policies"));
    std::fs::write(&policies, "{\"user\":\"old\",\"namespace\":\"default\"}\n").unwrap();
    let builtins = Builtins { access, policy_file: Some(policies.clone()), identity: String::new() };
    let flags = Flags {
        modes: ["ABAC", "Webhook", "AlwaysDeny"].map(str::to_owned).to_vec(),
        policy_file: Some(policies),
        webhook_config_file: Some(kubeconfig(dir.path(), &hook)),
        authorized_ttl: Some(std::time::Duration::ZERO),
        ..Flags::default()
    };
    let chain = AuthorizerChain::from_flags(&flags, &builtins).unwrap();
    let s = TestServer::start_with(|config| config.authorizer = chain).await;
    assert_eq!(get(&s, "old").await.0, 200);
    assert!(hook.taken().is_empty(), "the policies have decided");
    assert_eq!(get(&s, "yes").await.0, 200);
    assert_eq!(get(&s, "yes").await.0, 200);
    assert_eq!(hook.taken().len(), 2, "nothing is kept");
    let (_, said) = get(&s, "who").await;
    let reasons = "abac: No policy matched.\ndefault: it does not know\nalwaysdeny: Everything is forbidden.";
    assert!(message(&said).ends_with(reasons), "{said}");
}
