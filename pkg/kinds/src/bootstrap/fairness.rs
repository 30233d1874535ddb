//! The flow schemas and priority levels that every API server keeps (KEP-1040): the mandatory ones are always as they are
//! here, the suggested ones until somebody says otherwise in [`AUTO_UPDATE`].

use serde_json::{Value, json};

/// The annotation that tells whether the server keeps an object's spec as it would be in a new cluster.
pub const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
/// Flow schema and priority level of those that are never held up.
pub const EXEMPT: &str = "exempt";
/// Flow schema and priority level of what no other schema takes.
pub const CATCH_ALL: &str = "catch-all";

const EVERYBODY: [&str; 2] = ["system:unauthenticated", "system:authenticated"];

/// Flow schemas and priority levels that are stored.
#[derive(Debug, Default)]
pub struct Objects {
    pub levels: Vec<Value>,
    pub schemas: Vec<Value>,
}

/// Without these the server could not tell what to do with some request.
pub fn mandatory() -> Objects {
    let reject = json!({"nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"}});
    let exempt = json!({"nominalConcurrencyShares": 0, "lendablePercent": 0});
    Objects {
        levels: vec![
            level(CATCH_ALL, json!({"type": "Limited", "limited": reject})),
            level(EXEMPT, json!({"type": "Exempt", "exempt": exempt})),
        ],
        schemas: vec![
            schema(EXEMPT, EXEMPT, 1, "", all(groups(&["system:masters"]))),
            schema(CATCH_ALL, CATCH_ALL, 10_000, "ByUser", all(groups(&EVERYBODY))),
        ],
    }
}

/// What serves most clusters well.
pub fn suggested() -> Objects {
    let levels = vec![
        limited("system", 30, 33, 64, 6),
        limited("node-high", 40, 25, 64, 6),
        limited("leader-election", 10, 0, 16, 4),
        limited("workload-high", 40, 50, 128, 6),
        limited("workload-low", 100, 90, 128, 6),
        limited("global-default", 20, 50, 128, 6),
    ];
    let leases = "coordination.k8s.io";
    let nodes = groups(&["system:nodes"]);
    let of_nodes =
        json!([resources(&["*"], "", &["nodes", "nodes/status"], true), resources(&["*"], leases, &["leases"], false)]);
    let kube_system = json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "kube-system"}});
    let electing = json!([user("system:kube-controller-manager"), user("system:kube-scheduler"), kube_system]);
    let elections = json!([resources(&["get", "create", "update"], leases, &["leases"], false)]);
    let health = json!([{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]);
    let one = |subject: Value| json!([subject]);
    let schemas = vec![
        schema("system-nodes", "system", 500, "ByUser", all(nodes.clone())),
        schema("system-node-high", "node-high", 400, "ByUser", json!({"subjects": nodes, "resourceRules": of_nodes})),
        schema("probes", EXEMPT, 2, "", json!({"subjects": groups(&EVERYBODY), "nonResourceRules": health})),
        schema(
            "system-leader-election",
            "leader-election",
            100,
            "ByUser",
            json!({"subjects": electing, "resourceRules": elections}),
        ),
        schema(
            "kube-controller-manager",
            "workload-high",
            800,
            "ByNamespace",
            all(one(user("system:kube-controller-manager"))),
        ),
        schema("kube-scheduler", "workload-high", 800, "ByNamespace", all(one(user("system:kube-scheduler")))),
        schema("kube-system-service-accounts", "workload-high", 900, "ByNamespace", all(one(kube_system))),
        schema("service-accounts", "workload-low", 9000, "ByUser", all(groups(&["system:serviceaccounts"]))),
        schema("global-default", "global-default", 9900, "ByUser", all(groups(&EVERYBODY))),
    ];
    Objects { levels, schemas }
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": kind,
        "metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}}, "spec": spec,
    })
}

fn level(name: &str, spec: Value) -> Value {
    object("PriorityLevelConfiguration", name, spec)
}

fn limited(name: &str, shares: u32, lendable: u32, queues: u32, hand: u32) -> Value {
    let queuing = json!({"queues": queues, "handSize": hand, "queueLengthLimit": 50});
    let limited = json!({
        "nominalConcurrencyShares": shares, "lendablePercent": lendable,
        "limitResponse": {"type": "Queue", "queuing": queuing},
    });
    level(name, json!({"type": "Limited", "limited": limited}))
}

/// `flows`: what tells the flows of the schema apart; empty: it is one flow.
fn schema(name: &str, level: &str, precedence: u32, flows: &str, rule: Value) -> Value {
    let mut spec = json!({
        "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": [rule],
    });
    if !flows.is_empty() {
        spec["distinguisherMethod"] = json!({"type": flows});
    }
    object("FlowSchema", name, spec)
}

/// Everything that these subjects ask for.
fn all(subjects: Value) -> Value {
    json!({
        "subjects": subjects,
        "resourceRules": [resources(&["*"], "*", &["*"], true)],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
    })
}

fn resources(verbs: &[&str], group: &str, resources: &[&str], cluster_scope: bool) -> Value {
    let mut rule = json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
    if cluster_scope {
        rule["clusterScope"] = true.into();
    }
    rule
}

fn groups(names: &[&str]) -> Value {
    names.iter().map(|n| json!({"kind": "Group", "group": {"name": n}})).collect()
}

fn user(name: &str) -> Value {
    json!({"kind": "User", "user": {"name": name}})
}
