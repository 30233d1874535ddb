//! `NodeUnschedulable`: a cordoned node takes only pods that tolerate its taint.

use super::taint_toleration::tolerates;
use crate::cluster::Cluster;
use crate::framework::{Filter, NODE_TAINTS, Plugin, Wake, refuse};
use crate::pod::PodInfo;
use isopod_client::views::Taint;

pub struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }
    fn wakes_on(&self) -> Wake {
        NODE_TAINTS
    }
    fn filter<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Filter<'a>> {
        let taint =
            Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Default::default() };
        if pod.pod.spec.tolerations.iter().any(|t| tolerates(t, &taint)) {
            return None;
        }
        Some(Box::new(|node| if node.node.spec.unschedulable { refuse("node(s) were unschedulable") } else { Ok(()) }))
    }
}
