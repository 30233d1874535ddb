//! The node authorizer: what a kubelet may do, `plugin/pkg/auth/authorizer/node`. A kubelet reads only what belongs to pods
//! on its node; the rest of its rights are the rules of the ClusterRole `system:node`.
//!
//! What belongs to a node is a graph that is fed with pods, volumes and claims as they change. Decisions read it only.

use crate::rule::PolicyRule;
use crate::{Attributes, Authorizer, Decision, Rules};
use isopod_api::UserInfo;
use parking_lot::RwLock;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};

/// The node that a user is; `Some("")`: a node that does not say which.
pub fn node_of(user: &UserInfo) -> Option<&str> {
    let name = user.name.strip_prefix("system:node:")?;
    user.in_group("system:nodes").then_some(name)
}

/// An object: resource, namespace, name.
type Key = (&'static str, String, String);

#[derive(Default)]
struct Graph {
    /// Pod (namespace, name) → its node and what it refers to.
    pods: HashMap<(String, String), (String, Vec<Key>)>,
    /// Object → the pods that refer to it, on which node.
    needed_by: HashMap<Key, BTreeSet<(String, String)>>,
    /// Claim → volume, volume → the secrets that it mounts with.
    claims: HashMap<(String, String), String>,
    volumes: HashMap<String, Vec<Key>>,
    /// VolumeAttachment and ResourceSlice → node.
    direct: HashMap<Key, String>,
}

/// See the module. Share it in an `Arc`.
pub struct NodeAuthorizer {
    graph: RwLock<Graph>,
    rules: Vec<PolicyRule>,
}

impl Default for NodeAuthorizer {
    fn default() -> Self {
        let role = crate::bootstrap::objects()
            .into_iter()
            .find(|o| o["kind"] == "ClusterRole" && o["metadata"]["name"] == "system:node");
        let rules = role.map(|r| PolicyRule::list_of(&r["rules"])).unwrap_or_default();
        NodeAuthorizer { graph: RwLock::default(), rules }
    }
}

fn text<'a>(v: &'a Value, pointer: &str) -> &'a str {
    v.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(v: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    v.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// Secrets, config maps, claims and the service account that a pod needs.
fn needs(pod: &Value) -> Vec<Key> {
    let namespace = text(pod, "/metadata/namespace");
    let mut keys = Vec::new();
    let mut add = |resource: &'static str, name: &str| {
        if !name.is_empty() {
            keys.push((resource, namespace.to_owned(), name.to_owned()));
        }
    };
    add("serviceaccounts", text(pod, "/spec/serviceAccountName"));
    for secret in list(pod, "/spec/imagePullSecrets") {
        add("secrets", text(secret, "/name"));
    }
    for volume in list(pod, "/spec/volumes") {
        add("secrets", text(volume, "/secret/secretName"));
        add("configmaps", text(volume, "/configMap/name"));
        add("persistentvolumeclaims", text(volume, "/persistentVolumeClaim/claimName"));
        for source in list(volume, "/projected/sources") {
            add("secrets", text(source, "/secret/name"));
            add("configmaps", text(source, "/configMap/name"));
        }
        for plugin in [
            "csi/nodePublishSecretRef",
            "rbd/secretRef",
            "cephfs/secretRef",
            "flexVolume/secretRef",
            "scaleIO/secretRef",
            "iscsi/secretRef",
            "storageos/secretRef",
        ] {
            add("secrets", text(volume, &format!("/{plugin}/name")));
        }
        if volume.get("ephemeral").is_some() {
            add("persistentvolumeclaims", &format!("{}-{}", text(pod, "/metadata/name"), text(volume, "/name")));
        }
    }
    for field in ["containers", "initContainers", "ephemeralContainers"] {
        for container in list(pod, &format!("/spec/{field}")) {
            for from in list(container, "/envFrom") {
                add("secrets", text(from, "/secretRef/name"));
                add("configmaps", text(from, "/configMapRef/name"));
            }
            for env in list(container, "/env") {
                add("secrets", text(env, "/valueFrom/secretKeyRef/name"));
                add("configmaps", text(env, "/valueFrom/configMapKeyRef/name"));
            }
        }
    }
    for claim in list(pod, "/status/resourceClaimStatuses") {
        add("resourceclaims", text(claim, "/resourceClaimName"));
    }
    for claim in list(pod, "/spec/resourceClaims") {
        add("resourceclaims", text(claim, "/resourceClaimName"));
    }
    keys
}

impl NodeAuthorizer {
    /// Takes in a Pod, PersistentVolume, VolumeAttachment or ResourceSlice, new or changed; other kinds are not looked at.
    pub fn apply(&self, kind: &str, object: &Value) {
        let (namespace, name) = (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
        let mut graph = self.graph.write();
        match kind {
            "Pod" => {
                graph.remove_pod(namespace, name);
                let node = text(object, "/spec/nodeName");
                if !node.is_empty() {
                    graph.add_pod(namespace, name, node, needs(object));
                }
            }
            "PersistentVolume" => graph.set_volume(name, object),
            "VolumeAttachment" => graph.set_direct("volumeattachments", name, text(object, "/spec/nodeName")),
            "ResourceSlice" => graph.set_direct("resourceslices", name, text(object, "/spec/nodeName")),
            _ => {}
        }
    }

    /// Forgets all and takes in these objects, each with its kind.
    pub fn replace(&self, objects: &[(&str, Value)]) {
        let new = NodeAuthorizer { graph: RwLock::default(), rules: Vec::new() };
        for (kind, object) in objects {
            new.apply(kind, object);
        }
        *self.graph.write() = new.graph.into_inner();
    }

    /// Forgets an object that was deleted.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) {
        let mut graph = self.graph.write();
        match kind {
            "Pod" => graph.remove_pod(namespace, name),
            "PersistentVolume" => graph.set_volume(name, &Value::Null),
            "VolumeAttachment" => graph.set_direct("volumeattachments", name, ""),
            "ResourceSlice" => graph.set_direct("resourceslices", name, ""),
            _ => {}
        }
    }

    fn related(&self, node: &str, resource: &'static str, a: &Attributes) -> Decision {
        if a.name.is_empty() {
            return no("No Object name found");
        }
        if self.graph.read().reaches(node, resource, &a.namespace, &a.name) {
            return Decision::Allow(String::new());
        }
        no(format!("no relationship found between node '{node}' and this object"))
    }

    fn get(&self, node: &str, resource: &'static str, a: &Attributes) -> Decision {
        if a.verb != "get" {
            return no("can only get individual resources of this type");
        }
        if !a.subresource.is_empty() {
            return no("cannot get subresource");
        }
        self.related(node, resource, a)
    }

    fn read(&self, node: &str, resource: &'static str, a: &Attributes) -> Decision {
        if !matches!(a.verb.as_str(), "get" | "list" | "watch") {
            return no("can only read resources of this type");
        }
        if !a.subresource.is_empty() {
            return no("cannot read subresource");
        }
        if a.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.related(node, resource, a)
    }

    fn service_account(&self, node: &str, a: &Attributes) -> Decision {
        if a.verb == "get" && a.subresource.is_empty() {
            return self.read(node, "serviceaccounts", a);
        }
        if a.verb != "create" || a.name.is_empty() {
            return no("can only create tokens for individual service accounts");
        }
        if a.subresource != "token" {
            return no("can only create token subresource of serviceaccount");
        }
        self.related(node, "serviceaccounts", a)
    }

    fn pod(&self, node: &str, a: &Attributes) -> Decision {
        match (a.subresource.as_str(), a.verb.as_str()) {
            ("", "get") => self.get(node, "pods", a),
            ("", "list" | "watch") => {
                if is_of_node(node, a) {
                    return Decision::Allow(String::new());
                }
                if !a.name.is_empty() {
                    return self.related(node, "pods", a);
                }
                no("can only list/watch pods with spec.nodeName field selector")
            }
            // Mirror pods; NodeRestriction looks at the object.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => {
                Decision::Allow(String::new())
            }
            _ => no(""),
        }
    }

    fn slice(&self, node: &str, a: &Attributes) -> Decision {
        if !a.subresource.is_empty() {
            return no("cannot authorize ResourceSlice subresources");
        }
        match a.verb.as_str() {
            "create" => Decision::Allow(String::new()),
            "get" | "update" | "patch" | "delete" => self.related(node, "resourceslices", a),
            "watch" | "list" | "deletecollection" => {
                if is_of_node(node, a) {
                    return Decision::Allow(String::new());
                }
                no("can only list/watch/deletecollection resourceslices with nodeName field selector")
            }
            _ => no(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, \
                 delete, deletecollection",
            ),
        }
    }
}

/// A list or watch that asks for this node's objects alone.
fn is_of_node(node: &str, a: &Attributes) -> bool {
    a.fields.iter().any(|t| t.equal && t.field == "spec.nodeName" && t.value == node)
}

fn no(reason: impl Into<String>) -> Decision {
    Decision::NoOpinion(reason.into())
}

fn lease(node: &str, a: &Attributes) -> Decision {
    if !matches!(a.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a node lease");
    }
    if a.namespace != "kube-node-lease" {
        return no("can only access leases in the \"kube-node-lease\" system namespace");
    }
    // A create does not tell its name here; NodeRestriction looks at the object.
    if a.verb != "create" && a.name != node {
        return no("can only access node lease with the same name as the requesting node");
    }
    Decision::Allow(String::new())
}

fn csi_node(node: &str, a: &Attributes) -> Decision {
    match a.subresource.as_str() {
        "" if !matches!(a.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") => {
            return no("can only get, create, update, patch, or delete a CSINode");
        }
        "" => {}
        "status" => return no("CSINode status access requires CSIVolumeHealth feature"),
        _ => return no("cannot authorize CSINode subresources"),
    }
    if a.verb != "create" && a.name != node {
        return no("can only access CSINode with the same name as the requesting node");
    }
    Decision::Allow(String::new())
}

fn own_node(node: &str, a: &Attributes) -> Decision {
    match (a.subresource.as_str(), a.verb.as_str()) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Decision::Allow(String::new()),
        // By name and not by the graph: a kubelet reads its node before it creates it.
        ("", "get" | "list" | "watch") if a.name == node => Decision::Allow(String::new()),
        ("", "get" | "list" | "watch") if a.name.is_empty() => {
            no(format!("node '{node}' cannot read all nodes, only its own Node object"))
        }
        ("", "get" | "list" | "watch") => {
            no(format!("node '{node}' cannot read '{}', only its own Node object", a.name))
        }
        _ => no(""),
    }
}

impl Authorizer for NodeAuthorizer {
    fn authorize(&self, a: &Attributes) -> Decision {
        let Some(node) = node_of(&a.user) else { return no("") };
        if node.is_empty() {
            return no(format!("unknown node for user {:?}", a.user.name));
        }
        if a.is_resource {
            match (a.group.as_str(), a.resource.as_str()) {
                ("", "secrets") => return self.read(node, "secrets", a),
                ("", "configmaps") => return self.read(node, "configmaps", a),
                ("", "persistentvolumeclaims") if a.subresource == "status" => {
                    if !matches!(a.verb.as_str(), "update" | "patch") {
                        return no("can only get/update/patch this type");
                    }
                    return self.related(node, "persistentvolumeclaims", a);
                }
                ("", "persistentvolumeclaims") => return self.get(node, "persistentvolumeclaims", a),
                ("", "persistentvolumes") => return self.get(node, "persistentvolumes", a),
                ("resource.k8s.io", "resourceclaims") => return self.get(node, "resourceclaims", a),
                ("storage.k8s.io", "volumeattachments") => return self.get(node, "volumeattachments", a),
                ("", "serviceaccounts") => return self.service_account(node, a),
                ("coordination.k8s.io", "leases") => return lease(node, a),
                ("storage.k8s.io", "csinodes") => return csi_node(node, a),
                ("resource.k8s.io", "resourceslices") => return self.slice(node, a),
                ("certificates.k8s.io", "podcertificaterequests")
                    if matches!(a.verb.as_str(), "list" | "watch") && !is_of_node(node, a) =>
                {
                    return no("can only list/watch podcertificaterequests with nodeName field selector");
                }
                ("", "nodes") => return own_node(node, a),
                ("", "pods") => return self.pod(node, a),
                _ => {}
            }
        }
        if self.rules.iter().any(|r| r.allows(a)) { Decision::Allow(String::new()) } else { no("") }
    }

    fn rules_for(&self, user: &UserInfo, _namespace: &str) -> Rules {
        let mut rules = Rules::default();
        if node_of(user).is_some() {
            rules.errors.push("node authorizer does not support user rule resolution".to_owned());
        }
        rules
    }
}

impl Graph {
    fn add_pod(&mut self, namespace: &str, name: &str, node: &str, needs: Vec<Key>) {
        let pod = (namespace.to_owned(), name.to_owned());
        for key in &needs {
            self.needed_by.entry(key.clone()).or_default().insert(pod.clone());
        }
        self.pods.insert(pod, (node.to_owned(), needs));
    }

    fn remove_pod(&mut self, namespace: &str, name: &str) {
        let pod = (namespace.to_owned(), name.to_owned());
        let Some((_, needs)) = self.pods.remove(&pod) else { return };
        for key in needs {
            if let Some(pods) = self.needed_by.get_mut(&key) {
                pods.remove(&pod);
                if pods.is_empty() {
                    self.needed_by.remove(&key);
                }
            }
        }
    }

    fn set_volume(&mut self, name: &str, volume: &Value) {
        self.volumes.remove(name);
        self.claims.retain(|_, v| v != name);
        let claim = (text(volume, "/spec/claimRef/namespace"), text(volume, "/spec/claimRef/name"));
        if claim.1.is_empty() {
            return;
        }
        let mut secrets = Vec::new();
        for plugin in [
            "csi/nodePublishSecretRef",
            "csi/nodeStageSecretRef",
            "csi/controllerPublishSecretRef",
            "csi/nodeExpandSecretRef",
            "rbd/secretRef",
            "cephfs/secretRef",
            "flexVolume/secretRef",
            "iscsi/secretRef",
            "azureFile",
        ] {
            let pointer = format!("/spec/{plugin}");
            let field = if plugin == "azureFile" { "secretName" } else { "name" };
            let secret = text(volume, &format!("{pointer}/{field}"));
            let own = text(
                volume,
                &format!("{pointer}/{}", if plugin == "azureFile" { "secretNamespace" } else { "namespace" }),
            );
            if !secret.is_empty() {
                let namespace = if own.is_empty() { claim.0 } else { own };
                secrets.push(("secrets", namespace.to_owned(), secret.to_owned()));
            }
        }
        self.volumes.insert(name.to_owned(), secrets);
        self.claims.insert((claim.0.to_owned(), claim.1.to_owned()), name.to_owned());
    }

    fn set_direct(&mut self, resource: &'static str, name: &str, node: &str) {
        let key = (resource, String::new(), name.to_owned());
        if node.is_empty() {
            self.direct.remove(&key);
        } else {
            self.direct.insert(key, node.to_owned());
        }
    }

    fn pod_needs(&self, node: &str, key: &Key) -> bool {
        let pods = self.needed_by.get(key).into_iter().flatten();
        pods.filter_map(|pod| self.pods.get(pod)).any(|(n, _)| n == node)
    }

    /// Does a chain lead from the object to the node?
    fn reaches(&self, node: &str, resource: &'static str, namespace: &str, name: &str) -> bool {
        let key: Key = (resource, namespace.to_owned(), name.to_owned());
        let volume_reaches = |volume: &str| {
            let mut claims = self.claims.iter().filter(|(_, v)| *v == volume);
            claims.any(|((ns, c), _)| self.pod_needs(node, &("persistentvolumeclaims", ns.clone(), c.clone())))
        };
        match resource {
            "pods" => self.pods.get(&(key.1, key.2)).is_some_and(|(n, _)| n == node),
            "volumeattachments" | "resourceslices" => self.direct.get(&key).is_some_and(|n| n == node),
            "persistentvolumes" => volume_reaches(name),
            "secrets" => {
                self.pod_needs(node, &key)
                    || self.volumes.iter().any(|(v, secrets)| secrets.contains(&key) && volume_reaches(v))
            }
            _ => self.pod_needs(node, &key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_api::selector::FieldTerm;
    use serde_json::json;

    fn ask(verb: &str, what: &str, namespace: &str, name: &str) -> Attributes {
        let (group, resource) = what.split_once(':').unwrap_or(("", what));
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            user: UserInfo::new("system:node:n1", &["system:nodes"]),
            verb: verb.into(),
            is_resource: true,
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_kubelet_reads_what_its_pods_need() {
        let nodes = NodeAuthorizer::default();
        let pod = |name: &str, node: &str, secret: &str| {
            json!({"metadata": {"namespace": "a", "name": name}, "spec": {
                "nodeName": node, "serviceAccountName": "sa",
                "imagePullSecrets": [{"name": format!("pull-{secret}")}],
                "containers": [{"env": [{"valueFrom": {"configMapKeyRef": {"name": "conf"}}}]}],
                "volumes": [{"name": "v", "secret": {"secretName": secret}},
                    {"name": "p", "persistentVolumeClaim": {"claimName": "claim"}}]}})
        };
        nodes.apply("Pod", &pod("p1", "n1", "s1"));
        nodes.apply("Pod", &pod("p2", "n2", "s2"));
        nodes.apply(
            "PersistentVolume",
            &json!({"metadata": {"name": "pv"}, "spec": {
            "claimRef": {"namespace": "a", "name": "claim"},
            "csi": {"nodeStageSecretRef": {"namespace": "csi", "name": "stage"}}}}),
        );
        let table = [
            (ask("get", "secrets", "a", "s1"), true),
            (ask("watch", "secrets", "a", "pull-s1"), true),
            (ask("get", "secrets", "a", "s2"), false),
            (ask("list", "secrets", "a", ""), false),
            (ask("update", "secrets", "a", "s1"), false),
            (ask("get", "secrets", "b", "s1"), false),
            (ask("get", "configmaps", "a", "conf"), true),
            (ask("get", "persistentvolumeclaims", "a", "claim"), true),
            (ask("get", "persistentvolumes", "", "pv"), true),
            (ask("get", "secrets", "csi", "stage"), true),
            (ask("create", "serviceaccounts/token", "a", "sa"), true),
            (ask("create", "serviceaccounts/token", "a", "other"), false),
            (ask("get", "pods", "a", "p1"), true),
            (ask("get", "pods", "a", "p2"), false),
            (ask("patch", "pods/status", "a", "p1"), true),
            (ask("list", "pods", "", ""), false),
            (ask("get", "nodes", "", "n1"), true),
            (ask("get", "nodes", "", "n2"), false),
            (ask("patch", "nodes/status", "", "n1"), true),
            (ask("delete", "nodes", "", "n1"), false),
            (ask("update", "coordination.k8s.io:leases", "kube-node-lease", "n1"), true),
            (ask("update", "coordination.k8s.io:leases", "kube-node-lease", "n2"), false),
            (ask("list", "services", "", ""), true),
            (ask("create", "events", "a", ""), true),
            (ask("create", "apps:deployments", "a", ""), false),
        ];
        for (a, want) in table {
            let got = matches!(nodes.authorize(&a), Decision::Allow(_));
            assert_eq!(got, want, "{} {} {}/{}", a.verb, a.resource, a.namespace, a.name);
        }
        let mut mine = ask("watch", "pods", "", "");
        mine.fields = vec![FieldTerm { field: "spec.nodeName".into(), equal: true, value: "n1".into() }];
        assert!(matches!(nodes.authorize(&mine), Decision::Allow(_)));
        nodes.remove("Pod", "a", "p1");
        assert!(matches!(nodes.authorize(&ask("get", "secrets", "a", "s1")), Decision::NoOpinion(_)));
        let mut user = ask("get", "nodes", "", "n1");
        user.user.groups.clear();
        assert_eq!(nodes.authorize(&user), Decision::NoOpinion(String::new()), "not in system:nodes");
    }
}
