//! `NodeName`: a pod that names its node goes there and nowhere else.

use crate::cluster::Cluster;
use crate::framework::{Filter, NODE_ADDED, Plugin, Wake, refuse};
use crate::pod::PodInfo;

pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }
    fn wakes_on(&self) -> Wake {
        NODE_ADDED
    }
    fn filter<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Filter<'a>> {
        let wanted = pod.pod.spec.node_name.as_str();
        if wanted.is_empty() {
            return None;
        }
        Some(Box::new(move |node| {
            if node.name() == wanted { Ok(()) } else { refuse("node(s) didn't match the requested node name") }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::*;
    use serde_json::json;

    #[test]
    fn only_the_named_node_takes_the_pod() {
        let c = cluster(&[node("a", json!({})), node("b", json!({}))], &[]);
        let p = pod(json!({"nodeName": "b"}));
        let filter = NodeName.filter(&p, &c).unwrap();
        assert_eq!(filter(c.node("a").unwrap()).unwrap_err(), ["node(s) didn't match the requested node name"]);
        assert!(filter(c.node("b").unwrap()).is_ok());
        assert!(NodeName.filter(&pod(json!({})), &c).is_none(), "a pod that names none goes anywhere");
    }
}
