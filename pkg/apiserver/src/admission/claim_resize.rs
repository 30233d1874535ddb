//! `PersistentVolumeClaimResize`: a claim grows only when it is bound and its storage class allows it.

use super::{Operation, Plugin, Request};
use async_trait::async_trait;
use isopod_api::Status;
use isopod_api::quantity::Quantity;
use isopod_kinds::access::Access;
use isopod_kinds::quota::claim::storage_class;
use serde_json::Value;

pub struct PersistentVolumeClaimResize;

#[async_trait]
impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    async fn validate(&self, request: &Request<'_>, new: Option<&Value>) -> Result<(), Status> {
        let (Some(new), Some(old)) = (new, request.old) else { return Ok(()) };
        if request.operation != Operation::Update || !request.is("persistentvolumeclaims") || size(new) <= size(old) {
            return Ok(());
        }
        if old.text("status.phase") != "Bound" {
            return Err(request.forbidden(Some(new), "Only bound persistent volume claims can be expanded"));
        }
        let class = storage_class(new);
        let class = if class == storage_class(old) { class } else { "" };
        let found = match class {
            "" => None,
            name => request.read("storage.k8s.io", "storageclasses", "", name).await?,
        };
        if found.is_some_and(|c| c.flag("allowVolumeExpansion")) {
            return Ok(());
        }
        let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
        Err(request.forbidden(Some(new), why))
    }
}

fn size(claim: &Value) -> Quantity {
    Quantity::parse(claim.text("spec.resources.requests.storage")).unwrap_or_default()
}
