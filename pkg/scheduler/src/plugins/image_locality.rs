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
        let spec = &pod.pod.spec;
        let images: Vec<&str> = spec.init_containers.iter().chain(&spec.containers).map(|c| c.image.as_str()).collect();
        let nodes = cluster.nodes().len().max(1) as i64;
        // An image that few nodes have counts less, so that not all pods crowd there.
        let spread: Vec<i64> =
            images.iter().map(|i| cluster.nodes().iter().filter(|n| has(n, i).is_some()).count() as i64).collect();
        let of = Box::new(move |node: &NodeInfo| {
            let sum: i64 = images.iter().zip(&spread).filter_map(|(i, n)| Some(has(node, i)? * n / nodes)).sum();
            let top = MAX * (images.len().max(1) as i64);
            100 * (sum.clamp(MIN, top) - MIN) / (top - MIN)
        });
        Some((1, Score { of, normalize: Normalize::No }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::*;
    use serde_json::{Value, json};

    #[test]
    fn large_images_that_are_there_count() {
        let with = |name: &str, images: &[(&str, i64)]| {
            let images: Vec<Value> =
                images.iter().map(|(n, mib)| json!({"names": [n], "sizeBytes": mib << 20})).collect();
            node(name, json!({"status": {"images": images}}))
        };
        let c = cluster(
            &[
                with("a", &[("reg.example/app:1", 500), ("tools:latest", 300)]),
                with("b", &[("tools:latest", 300), ("small:1", 20)]),
                with("c", &[("huge@sha256:00", 9000)]),
                with("d", &[]),
            ],
            &[],
        );
        let of = |image: &str| json!({"image": image});
        for (spec, want) in [
            // On one node of four: a quarter of its size counts.
            (json!({"containers": [of("reg.example/app:1")]}), [10, 0, 0, 0]),
            (json!({"containers": [of("reg.example/app:2")]}), [0, 0, 0, 0]),
            // No tag means `latest`; on two nodes of four, half counts.
            (json!({"containers": [of("tools")]}), [12, 12, 0, 0]),
            (json!({"containers": [of("small:1")]}), [0, 0, 0, 0]),
            (json!({"containers": [of("huge@sha256:00")]}), [0, 0, 100, 0]),
            // Init containers' images are pulled too; the scale grows with the number of images.
            (json!({"initContainers": [of("tools")], "containers": [of("reg.example/app:1")]}), [12, 6, 0, 0]),
        ] {
            let p = pod(spec.clone());
            let (weight, score) = ImageLocality.score(&p, &c).unwrap();
            assert_eq!(weight, 1);
            let got: Vec<i64> = c.nodes().iter().map(|n| (score.of)(n)).collect();
            assert_eq!(got, want, "{spec}");
        }
    }
}
