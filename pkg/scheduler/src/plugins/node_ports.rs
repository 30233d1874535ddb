//! `NodePorts`: a host port is taken once for each protocol and address.

use crate::cluster::Cluster;
use crate::framework::{Filter, NODE_ADDED, POD_GONE, Plugin, Wake, refuse};
use crate::pod::PodInfo;

pub struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }
    fn wakes_on(&self) -> Wake {
        NODE_ADDED | POD_GONE
    }
    fn filter<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Filter<'a>> {
        if pod.ports.is_empty() {
            return None;
        }
        Some(Box::new(move |node| {
            let mut taken = node.pods.values().flat_map(|p| &p.ports);
            if taken.any(|t| pod.ports.iter().any(|p| p.conflicts_with(t))) {
                return refuse("node(s) didn't have free ports for the requested pod ports");
            }
            Ok(())
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::*;
    use serde_json::{Value, json};

    #[test]
    fn ports_conflict_by_protocol_and_address() {
        let port = |p: Value| json!({"containers": [{"ports": [p]}]});
        let mut bound = port(json!({"hostPort": 80, "hostIP": "127.0.0.1"}));
        bound["nodeName"] = "n".into();
        let c = cluster(&[node("n", json!({}))], &[json!({"spec": bound})]);
        for (wanted, fits) in [
            (json!({"hostPort": 80}), false),
            (json!({"hostPort": 80, "hostIP": "127.0.0.1"}), false),
            (json!({"hostPort": 80, "hostIP": "127.0.0.2"}), true),
            (json!({"hostPort": 80, "protocol": "UDP"}), true),
            (json!({"hostPort": 81}), true),
        ] {
            let p = pod(port(wanted.clone()));
            let filter = NodePorts.filter(&p, &c).unwrap();
            assert_eq!(filter(c.node("n").unwrap()).is_ok(), fits, "{wanted}");
        }
        assert!(NodePorts.filter(&pod(port(json!({"containerPort": 80}))), &c).is_none());
    }
}
