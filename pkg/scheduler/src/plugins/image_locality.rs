//! `ImageLocality`: prefers nodes that have large images of the pod already.

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{Normalize, Plugin, Score, Wake};
use crate::pod::PodInfo;

pub struct ImageLocality;

/// Below this sum of sizes a node scores 0; at `MAX` for each container, 100.
const MIN: i64 = 23 << 20;
const MAX: i64 = 1000 << 20;

fn has(node: &NodeInfo, image: &str) -> Option<i64> {
    node.node.status.images.iter().find(|i| i.names.iter().any(|n| same(n, image))).map(|i| i.size_bytes)
}

/// An image without a tag is `latest`.
fn same(name: &str, image: &str) -> bool {
    name == image
        || (!image.rsplit('/').next().unwrap_or(image).contains(':') && name.strip_suffix(":latest") == Some(image))
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }
    fn wakes_on(&self) -> Wake {
        0
    }
    fn score<'a>(&self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<(i64, Score<'a>)> {
        let containers = &pod.pod.spec.containers;
        let nodes = cluster.nodes().len().max(1) as i64;
        // An image that few nodes have counts less, so that not all pods crowd there.
        let spread: Vec<i64> = containers
            .iter()
            .map(|c| cluster.nodes().iter().filter(|n| has(n, &c.image).is_some()).count() as i64)
            .collect();
        let of = Box::new(move |node: &NodeInfo| {
            let sum: i64 =
                containers.iter().zip(&spread).filter_map(|(c, n)| Some(has(node, &c.image)? * n / nodes)).sum();
            let top = MAX * (containers.len().max(1) as i64);
            100 * (sum.clamp(MIN, top) - MIN) / (top - MIN)
        });
        Some((1, Score { of, normalize: Normalize::No }))
    }
}
