//! Webhooks and admission policies, as clients and webhooks see them.

#![allow(clippy::unwrap_used)]

mod webhook_server;

use base64::Engine;
use isopod_store::{Op, Txn};
use isopod_testkit::TestServer;
use serde_json::{Value, json};
use webhook_server::WebhookServer;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";

type Answer = fn(path: &str, request: &Value) -> Value;

/// A server of admission webhooks that answers as one of these tests wants.
struct Hooks(WebhookServer);

/// `answer` says what the response is to a request.
async fn hooks(answer: Answer) -> Hooks {
    let review = move |path: &str, review: &Value| {
        let mut response = answer(path, &review["request"]);
        response["uid"] = review["request"]["uid"].clone();
        json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response})
    };
    Hooks(WebhookServer::start(review).await)
}

impl Hooks {
    /// A webhook for config maps; `more` overrides.
    fn hook(&self, path: &str, more: Value) -> Value {
        let mut hook = json!({
            "name": format!("{}.example.com", path.trim_start_matches('/')),
            "clientConfig": {"url": format!("{}{path}", self.0.url), "caBundle": self.0.ca},
            "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
        });
        for (key, value) in more.as_object().unwrap() {
            hook[key] = value.clone();
        }
        hook
    }

    fn taken(&self) -> Vec<Value> {
        let asked = self.0.taken().into_iter().map(|(path, review)| {
            let mut request = review["request"].clone();
            request["path"] = path.into();
            request
        });
        asked.collect()
    }

    fn paths(&self) -> Vec<String> {
        self.taken().iter().map(|r| r["path"].as_str().unwrap().to_owned()).collect()
    }
}

async fn configure(s: &TestServer, resource: &str, webhooks: Vec<Value>) {
    let configuration = json!({"metadata": {"name": resource}, "webhooks": webhooks});
    let made = s.post(&format!("{GROUP}/{resource}"), configuration).await;
    assert_eq!(made.code, 201, "{}", made.text);
}

fn config_map(name: &str, data: Value) -> Value {
    json!({"metadata": {"name": name}, "data": data})
}

fn patch(operations: Value) -> Value {
    let patch = base64::engine::general_purpose::STANDARD.encode(operations.to_string());
    json!({"allowed": true, "patchType": "JSONPatch", "patch": patch})
}

#[tokio::test]
async fn objects_are_changed_one_after_another_and_shown_again() {
    let hooks = hooks(|path, request| match path {
        "/first" if request["operation"] == "CREATE" && request["object"]["data"]["second"].is_null() => {
            patch(json!([{"op": "add", "path": "/data/first", "value": "yes"}]))
        }
        "/second" if request["operation"] == "CREATE" => {
            patch(json!([{"op": "add", "path": "/data/second", "value": "after-".to_owned() + request["object"]["data"]["first"].as_str().unwrap()}]))
        }
        _ => json!({"allowed": true, "warnings": [format!("seen by {path}")]}),
    })
    .await;
    let s = TestServer::start().await;
    let first = hooks.hook("/first", json!({"reinvocationPolicy": "IfNeeded"}));
    configure(&s, "mutatingwebhookconfigurations", vec![first, hooks.hook("/second", json!({}))]).await;
    let made = s.post(CONFIG_MAPS, config_map("a", json!({"own": "1"}))).await;
    assert_eq!(made.json["data"], json!({"own": "1", "first": "yes", "second": "after-yes"}), "{}", made.text);
    assert_eq!(
        hooks.paths(),
        ["/first", "/second", "/first"],
        "the first is asked again, the second does not want that"
    );
    // Nothing of it is written by a dry run, and an update is asked about with what there was.
    let mut changed = made.json.clone();
    changed["data"]["own"] = "2".into();
    let updated = s.put(&format!("{CONFIG_MAPS}/a"), changed).await;
    assert_eq!(updated.code, 200, "{}", updated.text);
    let asked = hooks.taken();
    let request = &asked[0];
    assert_eq!((&request["operation"], &request["name"]), (&json!("UPDATE"), &json!("a")));
    assert_eq!((&request["oldObject"]["data"]["own"], &request["object"]["data"]["own"]), (&json!("1"), &json!("2")));
    assert_eq!(request["requestKind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
    assert_eq!(request["options"]["kind"], "UpdateOptions");
    assert_eq!(s.delete(&format!("{CONFIG_MAPS}/a")).await.code, 200);
    let asked = hooks.taken();
    assert_eq!(asked[0]["operation"], "DELETE");
    assert_eq!((&asked[0]["object"], &asked[0]["oldObject"]["data"]["own"]), (&Value::Null, &json!("2")));
}

/// Puts a slice into the store as a controller would, but that it leads to this machine, which no client may say.
async fn put_slice(s: &TestServer, name: &str, service: &str, port: u64, endpoints: Value) {
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints, "ports": [{"name": "web", "port": port, "protocol": "TCP"}]});
    let put = Op::put(format!("/registry/endpointslices/default/{name}"), slice.to_string());
    s.store.txn(Txn { success: vec![put], ..Txn::default() }).await.unwrap();
}

#[tokio::test]
async fn a_service_leads_to_its_own_ready_endpoints() {
    let hooks = hooks(|_, _| json!({"allowed": true})).await;
    let port: u64 = hooks.0.url.rsplit_once(':').unwrap().1.parse().unwrap();
    let s = TestServer::start().await;
    let ports = json!([{"name": "other", "port": 80}, {"name": "web", "port": 443}]);
    let service = json!({"metadata": {"name": "hook"}, "spec": {"ports": ports}});
    assert_eq!(s.post("/api/v1/namespaces/default/services", service).await.code, 201);
    let config = json!({"service": {"namespace": "default", "name": "hook", "path": "/it"}, "caBundle": hooks.0.ca});
    configure(&s, "validatingwebhookconfigurations", vec![hooks.hook("/it", json!({"clientConfig": config}))]).await;

    let here = |ready: bool| json!({"addresses": ["127.0.0.1"], "conditions": {"ready": ready}});
    let a_pod = json!({"addresses": ["127.0.0.1"], "conditions": {}, "targetRef": {"kind": "Pod", "namespace": "default", "name": "none"}});
    put_slice(&s, "others", "another", port, json!([here(true)])).await;
    put_slice(&s, "hook-1", "hook", port, json!([here(false), a_pod])).await;
    let failed = s.post(CONFIG_MAPS, config_map("a", json!({}))).await;
    assert_eq!(failed.code, 500, "{}", failed.text);
    assert!(failed.text.contains("no endpoints available for service"), "{}", failed.text);
    put_slice(&s, "hook-2", "hook", port, json!([here(false), here(true)])).await;
    let made = s.post(CONFIG_MAPS, config_map("a", json!({}))).await;
    assert_eq!((made.code, hooks.paths()), (201, vec!["/it".to_owned()]), "{}", made.text);
}

#[tokio::test]
async fn refusals_failures_and_who_is_not_asked() {
    let hooks = hooks(|_, request| {
        let bad = request["object"]["data"]["bad"] == "yes" || request["operation"] == "DELETE";
        let status = json!({"code": 418, "reason": "Teapot", "message": "no coffee"});
        if bad { json!({"allowed": false, "status": status}) } else { json!({"allowed": true}) }
    })
    .await;
    let s = TestServer::start().await;
    let dead = json!({"url": "https://127.0.0.1:9/", "caBundle": hooks.0.ca});
    let conditions =
        json!([{"name": "not-skipped", "expression": "!request.name.startsWith('skip') || object.data.zzz == ''"}]);
    let webhooks = vec![
        hooks.hook("/check", json!({"sideEffects": "NoneOnDryRun", "matchConditions": conditions})),
        hooks.hook("/dead", json!({"clientConfig": dead, "failurePolicy": "Ignore"})),
        hooks.hook("/selected", json!({"clientConfig": dead, "objectSelector": {"matchLabels": {"strict": "yes"}}})),
    ];
    configure(&s, "validatingwebhookconfigurations", webhooks).await;
    assert_eq!(s.post(CONFIG_MAPS, config_map("good", json!({}))).await.code, 201);
    let refused = s.post(CONFIG_MAPS, config_map("a", json!({"bad": "yes"}))).await;
    let why = "admission webhook \"check.example.com\" denied the request: no coffee";
    assert_eq!((refused.code, &refused.json["message"], &refused.json["reason"]), (418, &json!(why), &json!("Teapot")));
    assert_eq!(s.delete(&format!("{CONFIG_MAPS}/good")).await.code, 418);
    let mut strict = config_map("b", json!({}));
    strict["metadata"]["labels"] = json!({"strict": "yes"});
    let failed = s.post(CONFIG_MAPS, strict).await;
    let text = failed.json["message"].as_str().unwrap();
    assert!(
        failed.code == 500
            && text.contains("failed calling webhook \"selected.example.com\": failed to call webhook: Post"),
        "{text}"
    );
    hooks.taken();
    // A condition that fails where it does not hold otherwise refuses, as failures do here.
    let unclear = s.post(CONFIG_MAPS, config_map("skip", json!({"bad": "yes"}))).await;
    assert!(unclear.code == 403 && unclear.text.contains("no such key: zzz"), "{}", unclear.text);
    let skipped = s.post(CONFIG_MAPS, config_map("skip", json!({"bad": "yes", "zzz": "x"}))).await;
    assert_eq!((skipped.code, hooks.taken().len()), (201, 0), "{}", skipped.text);
    // What configures webhooks can always be taken away.
    assert_eq!(
        s.delete(&format!("{GROUP}/validatingwebhookconfigurations/validatingwebhookconfigurations")).await.code,
        200
    );
    assert_eq!(s.delete(&format!("{CONFIG_MAPS}/good")).await.code, 200);
}

async fn policy(s: &TestServer, kind: &str, spec: Value, binding: Value) {
    let resource = format!("{kind}admissionpolicies");
    let made = s.post(&format!("{GROUP}/{resource}"), json!({"metadata": {"name": "p"}, "spec": spec})).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let mut spec = json!({"policyName": "p"});
    spec.as_object_mut().unwrap().extend(binding.as_object().unwrap().clone());
    let made = s
        .post(&format!("{GROUP}/{kind}admissionpolicybindings"), json!({"metadata": {"name": "b"}, "spec": spec}))
        .await;
    assert_eq!(made.code, 201, "{}", made.text);
}

fn config_maps() -> Value {
    json!({"resourceRules": [{"operations": ["CREATE", "UPDATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]})
}

#[tokio::test]
async fn policies_check_with_parameters_and_variables() {
    let s = TestServer::start().await;
    assert_eq!(s.post(CONFIG_MAPS, config_map("limits", json!({"most": "2"}))).await.code, 201);
    let spec = json!({
        "matchConstraints": config_maps(), "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "variables": [{"name": "n", "expression": "has(object.data) ? object.data.size() : 0"}],
        "matchConditions": [{"name": "others", "expression": "object.metadata.name != 'free'"}],
        "validations": [
            {"expression": "variables.n <= int(params.data.most)", "messageExpression": "'has ' + string(variables.n)", "reason": "Forbidden"},
            {"expression": "authorizer.group('').resource('pods').namespace('default').check('get').allowed()"},
            {"expression": "namespaceObject.metadata.name == 'default' && oldObject == null || request.operation == 'UPDATE'"},
        ],
    });
    let reference = json!({"paramRef": {"name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny"}, "validationActions": ["Deny"]});
    policy(&s, "validating", spec, reference).await;
    let three = json!({"a": "1", "b": "2", "c": "3"});
    assert_eq!(s.post(CONFIG_MAPS, config_map("small", json!({"a": "1"}))).await.code, 201);
    assert_eq!(s.post(CONFIG_MAPS, config_map("free", three.clone())).await.code, 201);
    let refused = s.post(CONFIG_MAPS, config_map("large", three.clone())).await;
    let why = "configmaps \"large\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: has 3";
    assert_eq!(
        (refused.code, &refused.json["message"], &refused.json["reason"]),
        (403, &json!(why), &json!("Forbidden"))
    );
    // A parameter that is gone refuses everything, as the binding says.
    assert_eq!(s.delete(&format!("{CONFIG_MAPS}/limits")).await.code, 200);
    let refused = s.post(CONFIG_MAPS, config_map("any", json!({}))).await;
    assert!(
        refused.code == 422 && refused.text.contains("failed to configure binding: no params found"),
        "{}",
        refused.text
    );
}

#[tokio::test]
async fn policies_change_objects() {
    let s = TestServer::start().await;
    let apply = "Object{metadata: Object.metadata{labels: {'made-by': request.userInfo.username}}}";
    let patch =
        "has(object.data) ? [JSONPatch{op: 'add', path: '/data/' + jsonpatch.escapeKey('a/b'), value: 'c'}] : []";
    let spec = json!({
        "matchConstraints": config_maps(), "reinvocationPolicy": "Never", "failurePolicy": "Fail",
        "mutations": [
            {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": apply}},
            {"patchType": "JSONPatch", "jsonPatch": {"expression": patch}},
        ],
    });
    policy(&s, "mutating", spec, json!({})).await;
    // A key with a slash is no valid key: what policies make is validated as what clients send.
    let refused = s.post(CONFIG_MAPS, config_map("a", json!({"x": "1"}))).await;
    assert!(refused.code == 422 && refused.text.contains("a/b"), "{}", refused.text);
    let made = s.post(CONFIG_MAPS, json!({"metadata": {"name": "a", "labels": {"own": "1"}}})).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let labels = &made.json["metadata"]["labels"];
    assert!(labels["own"] == "1" && labels["made-by"].is_string(), "{labels}");
}

#[tokio::test]
async fn connections_are_used_again() {
    let hooks = hooks(|_, _| json!({"allowed": true})).await;
    let s = TestServer::start().await;
    let webhooks = vec![hooks.hook("/a", json!({})), hooks.hook("/b", json!({}))];
    configure(&s, "mutatingwebhookconfigurations", webhooks).await;
    for n in 0..10 {
        assert_eq!(s.post(CONFIG_MAPS, config_map(&format!("c{n}"), json!({}))).await.code, 201);
    }
    assert_eq!((hooks.taken().len(), hooks.0.connections()), (20, 1));
}

#[tokio::test]
async fn questions_are_asked_about_too() {
    let hooks = hooks(|path, request| match (path, request["object"]["spec"]["user"].as_str()) {
        ("/change", Some("alias")) => patch(json!([{"op": "replace", "path": "/spec/user", "value": "jane"}])),
        ("/check", Some("mallory")) => json!({"allowed": false, "status": {"message": "not about mallory"}}),
        _ => json!({"allowed": true}),
    })
    .await;
    let s = TestServer::start().await;
    let all = ["subjectaccessreviews", "localsubjectaccessreviews", "selfsubjectrulesreviews"];
    let rules = json!([{"operations": ["CREATE"], "apiGroups": ["authorization.k8s.io"], "apiVersions": ["v1"], "resources": all}]);
    let hook = |path: &str| hooks.hook(path, json!({ "rules": rules }));
    configure(&s, "mutatingwebhookconfigurations", vec![hook("/change")]).await;
    configure(&s, "validatingwebhookconfigurations", vec![hook("/check")]).await;
    let group = "/apis/authorization.k8s.io/v1";
    let about = |user: &str| json!({"spec": {"user": user, "nonResourceAttributes": {"path": "/x", "verb": "get"}}});
    let answer = s.post(&format!("{group}/subjectaccessreviews"), about("alias")).await;
    assert_eq!((answer.code, &answer.json["spec"]["user"]), (201, &json!("jane")), "{}", answer.text);
    let refused = s.post(&format!("{group}/subjectaccessreviews"), about("mallory")).await;
    assert!(refused.code == 400 && refused.text.contains("denied the request: not about mallory"), "{}", refused.text);
    hooks.taken();
    // What cannot be answered is not asked about by those who only check; a namespace that is not there does not matter.
    let invalid = s.post(&format!("{group}/subjectaccessreviews"), json!({"spec": {}})).await;
    assert_eq!((invalid.code, hooks.paths()), (422, vec!["/change".to_owned()]), "{}", invalid.text);
    let path = format!("{group}/namespaces/nowhere/localsubjectaccessreviews");
    let local = json!({"spec": {"user": "jane", "resourceAttributes": {"namespace": "nowhere", "verb": "get", "resource": "pods"}}});
    let answer = s.post(&path, local).await;
    assert_eq!(answer.code, 201, "{}", answer.text);
    assert_eq!(hooks.paths(), ["/change", "/check"]);
}

#[tokio::test]
async fn admission_is_measured() {
    let hooks = hooks(|path, _| match path {
        "/refuse" => json!({"allowed": false, "status": {"code": 418}}),
        _ => json!({"allowed": true}),
    })
    .await;
    let s = TestServer::start().await;
    let gone = json!({"clientConfig": {"url": "https://127.0.0.1:1/"}, "failurePolicy": "Ignore"});
    let not_here = json!({"matchConditions": [{"name": "x", "expression": "object.metadata.name != 'a'"}]});
    configure(&s, "mutatingwebhookconfigurations", vec![hooks.hook("/gone", gone), hooks.hook("/skipped", not_here)])
        .await;
    configure(&s, "validatingwebhookconfigurations", vec![hooks.hook("/refuse", json!({}))]).await;
    let expression = json!({"expression": "object.data.own == '1'"});
    let binding = json!({"validationActions": ["Warn"]});
    policy(&s, "validating", json!({"matchConstraints": config_maps(), "validations": [expression]}), binding).await;
    assert_eq!(s.post(CONFIG_MAPS, config_map("a", json!({"own": "2"}))).await.code, 418);
    let page = s.get("/metrics").await.text;
    for (name, labels, value) in [
        ("step_admission_duration_seconds_count", r#"operation="CREATE",rejected="true",type="validate""#, "1"),
        (
            "controller_admission_duration_seconds_count",
            r#"name="ValidatingAdmissionWebhook",operation="CREATE",rejected="true",type="validate""#,
            "1",
        ),
        (
            "webhook_request_total",
            r#"code="503",name="gone.example.com",operation="CREATE",rejected="false",type="admit""#,
            "1",
        ),
        ("webhook_fail_open_count", r#"name="gone.example.com",type="admit""#, "1"),
        (
            "webhook_rejection_count",
            r#"error_type="no_error",name="refuse.example.com",operation="CREATE",rejection_code="418",type="validating""#,
            "1",
        ),
        (
            "match_condition_exclusions_total",
            r#"kind="webhook",name="skipped.example.com",operation="CREATE",type="admit""#,
            "1",
        ),
    ] {
        let line = format!("apiserver_admission_{name}{{{labels}}} {value}");
        assert!(page.lines().any(|l| l == line), "{line}\n{page}");
    }
    let warned =
        r#"apiserver_validating_admission_policy_check_total{enforcement_action="warn",error_type="invalid_error""#;
    assert!(page.contains(warned), "{page}");
    let plugin = r#"name="LimitRanger",operation="CREATE",rejected="false",type="admit",le="0.005"}"#;
    assert!(page.contains(plugin), "{page}");
}
