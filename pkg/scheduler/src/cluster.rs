//! The scheduler's picture of the cluster: nodes with what runs on them, kept by changes and by assumed pods.

use crate::amounts::Amounts;
use crate::pod::PodInfo;
use isopod_api::quantity::Quantity;
use isopod_client::views::{Labels, Node, Pod};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A node and the sum of what runs on it.
pub struct NodeInfo {
    pub node: Arc<Node>,
    pub allocatable: Amounts,
    pub max_pods: i64,
    pub requested: Amounts,
    pub nonzero: Amounts,
    pub pods: BTreeMap<String, Arc<PodInfo>>,
    /// How many of the pods have rules about other pods.
    pub with_affinity: usize,
}

impl NodeInfo {
    fn new(node: Arc<Node>) -> Self {
        let mut info = NodeInfo {
            node: node.clone(),
            allocatable: Amounts::default(),
            max_pods: 0,
            requested: Amounts::default(),
            nonzero: Amounts::default(),
            pods: BTreeMap::new(),
            with_affinity: 0,
        };
        info.set(node);
        info
    }

    fn set(&mut self, node: Arc<Node>) {
        self.allocatable = Amounts::read(&node.status.allocatable);
        let pods = node.status.allocatable.get("pods").and_then(|q| Quantity::parse(&q.text()).ok());
        self.max_pods = pods.map_or(0, |q| q.value());
        self.node = node;
    }

    pub fn name(&self) -> &str {
        &self.node.metadata.name
    }
    pub fn labels(&self) -> &Labels {
        &self.node.metadata.labels
    }

    fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.nonzero.add(&pod.nonzero);
        self.with_affinity += usize::from(pod.has_pod_affinity());
        self.pods.insert(pod.uid().to_owned(), pod);
    }

    fn remove(&mut self, uid: &str) {
        if let Some(pod) = self.pods.remove(uid) {
            self.requested.sub(&pod.requests);
            self.nonzero.sub(&pod.nonzero);
            self.with_affinity -= usize::from(pod.has_pod_affinity());
        }
    }
}

/// All nodes, and where each pod is.
#[derive(Default)]
pub struct Cluster {
    nodes: Vec<NodeInfo>,
    by_name: HashMap<String, usize>,
    /// By uid: the node's name, and the pod, which waits here when its node is not known (yet).
    places: HashMap<String, (String, Arc<PodInfo>)>,
    /// Pods that wait for others to leave a node, by uid: the room there is theirs.
    nominated: BTreeMap<String, (String, Arc<PodInfo>)>,
    /// Labels of namespaces, for namespace selectors.
    pub namespaces: HashMap<String, Labels>,
}

impl Cluster {
    pub fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    /// Adds or updates a node.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone();
        if let Some(i) = self.by_name.get(&name) {
            self.nodes[*i].set(node);
            return;
        }
        let mut info = NodeInfo::new(node);
        for (place, pod) in self.places.values() {
            if *place == name {
                info.add(pod.clone());
            }
        }
        self.by_name.insert(name, self.nodes.len());
        self.nodes.push(info);
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(i) = self.by_name.remove(name) else { return };
        self.nodes.swap_remove(i);
        if let Some(moved) = self.nodes.get(i) {
            self.by_name.insert(moved.name().to_owned(), i);
        }
    }

    /// The pod counts on `node` from now on: assumed, or seen bound.
    pub fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove_pod(pod.uid());
        if let Some(i) = self.by_name.get(node) {
            self.nodes[*i].add(pod.clone());
        }
        self.places.insert(pod.uid().to_owned(), (node.to_owned(), pod));
    }

    /// Takes a pod off its node: deleted, finished, or its binding failed. Tells whether it was there.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some((node, _)) = self.places.remove(uid) else { return false };
        if let Some(i) = self.by_name.get(&node) {
            self.nodes[*i].remove(uid);
        }
        true
    }

    /// The pods that count on a node.
    pub fn pods_on(&self, node: &str) -> Vec<Arc<PodInfo>> {
        let node = self.by_name.get(node).map(|i| &self.nodes[*i]);
        node.map(|n| n.pods.values().cloned().collect()).unwrap_or_default()
    }

    /// The node that a pod waits for.
    pub fn nominated(&self, uid: &str) -> Option<&str> {
        self.nominated.get(uid).map(|(node, _)| node.as_str())
    }

    /// Keeps the room that others leave on `node` for a pod.
    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.nominated.insert(pod.uid().to_owned(), (node.to_owned(), pod));
    }

    pub fn withdraw(&mut self, uid: &str) {
        self.nominated.remove(uid);
    }

    /// The pods of lower priority that wait for the same node.
    pub fn outranked(&self, pod: &PodInfo, node: &str) -> Vec<Arc<PodInfo>> {
        let lower = |p: &PodInfo| p.pod.spec.priority < pod.pod.spec.priority && p.uid() != pod.uid();
        self.nominated.values().filter(|(at, p)| at == node && lower(p)).map(|(_, p)| p.clone()).collect()
    }

    /// Lets those that wait for a node and may not be overtaken by `pod` count there, while `look` looks.
    pub fn with_nominated<T>(&mut self, pod: &PodInfo, look: impl FnOnce(&Self) -> T) -> T {
        let ahead = |p: &PodInfo| p.pod.spec.priority >= pod.pod.spec.priority && p.uid() != pod.uid();
        let seated: Vec<(String, Arc<PodInfo>)> =
            self.nominated.values().filter(|(_, p)| ahead(p) && !self.places.contains_key(p.uid())).cloned().collect();
        seated.iter().for_each(|(node, p)| self.place(p.clone(), node));
        let found = look(self);
        for (_, p) in &seated {
            self.remove_pod(p.uid());
        }
        found
    }

    pub fn is_placed(&self, uid: &str) -> bool {
        self.places.contains_key(uid)
    }

    /// Takes in a pod that the API shows on a node. A finished pod uses nothing.
    pub fn observe(&mut self, pod: &Arc<Pod>) {
        if pod.is_terminal() {
            self.remove_pod(&pod.metadata.uid);
        } else {
            self.place(Arc::new(PodInfo::new(pod.clone())), &pod.spec.node_name);
        }
    }
}

#[cfg(test)]
pub mod testing {
    use super::*;

    impl Cluster {
        pub fn node(&self, name: &str) -> Option<&NodeInfo> {
            self.by_name.get(name).map(|i| &self.nodes[*i])
        }
    }

    /// A cluster from JSON nodes, and pods that are bound by their `spec.nodeName`.
    pub fn cluster(nodes: &[serde_json::Value], pods: &[serde_json::Value]) -> Cluster {
        let mut c = Cluster::default();
        for n in nodes {
            c.set_node(Arc::new(serde_json::from_value(n.clone()).unwrap()));
        }
        for (i, p) in pods.iter().enumerate() {
            let mut p = p.clone();
            if p["metadata"]["uid"].is_null() {
                p["metadata"]["uid"] = format!("bound-{i}").into();
            }
            c.observe(&Arc::new(serde_json::from_value(p).unwrap()));
        }
        c
    }

    /// A node with 4 cores and 8 GiB, further fields merged over it.
    pub fn node(name: &str, more: serde_json::Value) -> serde_json::Value {
        let mut n = serde_json::json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}});
        isopod_client::calls::merge(&mut n, &more);
        n
    }

    pub fn pod(spec: serde_json::Value) -> PodInfo {
        let mut p = serde_json::json!({"metadata": {"name": "p", "namespace": "default", "uid": "new", "labels": {"app": "web"}}});
        p["spec"] = spec;
        PodInfo::new(Arc::new(serde_json::from_value(p).unwrap()))
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;
    use serde_json::json;

    #[test]
    fn room_is_kept_for_those_that_wait_for_it() {
        let mut c = cluster(&[node("n", json!({}))], &[]);
        let waiting = pod(json!({"priority": 10, "containers": [{"resources": {"requests": {"cpu": "3"}}}]}));
        c.nominate(Arc::new(waiting), "n");
        let other = |priority: i32| {
            let mut p = (*pod(json!({"priority": priority})).pod).clone();
            p.metadata.uid = "other".into();
            PodInfo::new(Arc::new(p))
        };
        let used = |c: &Cluster| c.node("n").unwrap().requested.cpu;
        assert_eq!(c.with_nominated(&other(10), used), 3000);
        assert_eq!(c.with_nominated(&other(11), used), 0);
        assert_eq!((used(&c), c.outranked(&other(11), "n").len(), c.outranked(&other(10), "n").len()), (0, 1, 0));
        c.withdraw("new");
        assert_eq!(c.with_nominated(&other(10), used), 0);
    }

    #[test]
    fn sums_follow_the_pods() {
        let bound = json!({"metadata": {"uid": "a"}, "spec": {"nodeName": "n", "containers": [{"resources": {"requests": {"cpu": "1"}}}]}});
        let mut c = cluster(&[node("n", json!({}))], std::slice::from_ref(&bound));
        assert_eq!(c.node("n").unwrap().requested.cpu, 1000);
        // Seen again, it counts once.
        c.observe(&Arc::new(serde_json::from_value(bound.clone()).unwrap()));
        assert_eq!(c.node("n").unwrap().requested.cpu, 1000);
        // A node that comes back finds its pods.
        c.remove_node("n");
        c.set_node(Arc::new(serde_json::from_value(node("n", json!({}))).unwrap()));
        assert_eq!(c.node("n").unwrap().requested.cpu, 1000);
        let mut done = bound;
        done["status"] = json!({"phase": "Succeeded"});
        c.observe(&Arc::new(serde_json::from_value(done).unwrap()));
        assert!(c.node("n").unwrap().requested.is_zero());
    }
}
