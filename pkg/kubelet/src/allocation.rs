//! What a node has granted a pod: the resources with which it was admitted, or to which it was resized (KEP-1287). The pod's
//! spec says what is wanted; everything that the kubelet makes and counts is made from what is granted.
//!
//! Invariant: what was granted is on disk before anything is made from it, so that a restarted kubelet grants the same.

use crate::pod::PodExt;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

const FILE: &str = "allocation.json";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    /// Of the pod as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<ResourceRequirements>,
    /// By container.
    containers: BTreeMap<String, ResourceRequirements>,
}

impl Allocation {
    /// What the pod asks for.
    pub fn wanted(pod: &Pod) -> Self {
        let spec = pod.spec();
        let all = spec.init_containers.iter().flatten().chain(&spec.containers);
        let containers = all.map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default())).collect();
        Allocation { pod: spec.resources.clone(), containers }
    }

    /// The pod with what it was granted in place of what it asks for.
    pub fn of(&self, pod: &Pod) -> Pod {
        let mut pod = pod.clone();
        let Some(spec) = pod.spec.as_mut() else { return pod };
        spec.resources.clone_from(&self.pod);
        let grant = |c: &mut Container| {
            if let Some(granted) = self.containers.get(&c.name) {
                c.resources = Some(granted.clone());
            }
        };
        spec.init_containers.iter_mut().flatten().for_each(grant);
        spec.containers.iter_mut().for_each(grant);
        pod
    }

    /// `None`: nothing was granted yet.
    pub fn load(pod_dir: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(pod_dir.join(FILE)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub fn save(&self, pod_dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(pod_dir)?;
        let next = pod_dir.join(format!(".{FILE}"));
        std::fs::write(&next, serde_json::to_vec(self)?)?;
        std::fs::rename(next, pod_dir.join(FILE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_grant_outlives_what_is_wanted_later() {
        let pod = |cpu: &str| -> Pod {
            let resources = json!({"requests": {"cpu": cpu}});
            serde_json::from_value(json!({"spec": {
                "initContainers": [{"name": "i", "resources": resources}], "containers": [{"name": "c", "resources": resources}]}}))
            .unwrap()
        };
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Allocation::load(dir.path()).unwrap(), None);
        Allocation::wanted(&pod("1")).save(dir.path()).unwrap();
        let granted = Allocation::load(dir.path()).unwrap().unwrap();
        assert_ne!(granted, Allocation::wanted(&pod("2")));
        assert_eq!(granted.of(&pod("2")), pod("1"));
    }
}
