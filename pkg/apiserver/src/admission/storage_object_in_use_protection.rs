//! `StorageObjectInUseProtection`: volumes, claims and volume attributes classes get the finalizer that keeps them while they are
//! used; the protection controllers take it away.

use super::{Operation, Plugin, Request};
use async_trait::async_trait;
use isopod_api::Status;
use serde_json::{Value, json};

/// Resource, and the finalizer of its protection controller.
const PROTECTED: [(&str, &str); 3] = [
    ("persistentvolumes", "kubernetes.io/pv-protection"),
    ("persistentvolumeclaims", "kubernetes.io/pvc-protection"),
    ("volumeattributesclasses.storage.k8s.io", "kubernetes.io/vac-protection"),
];

pub struct StorageObjectInUseProtection;

#[async_trait]
impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    async fn mutate(&self, request: &Request<'_>, new: &mut Value) -> Result<(), Status> {
        if request.operation != Operation::Create {
            return Ok(());
        }
        let Some((_, finalizer)) = PROTECTED.iter().find(|(resource, _)| request.is(resource)) else { return Ok(()) };
        match new["metadata"]["finalizers"].as_array_mut() {
            Some(list) if list.iter().any(|f| f == finalizer) => {}
            Some(list) => list.push((*finalizer).into()),
            None => new["metadata"]["finalizers"] = json!([finalizer]),
        }
        Ok(())
    }
}
