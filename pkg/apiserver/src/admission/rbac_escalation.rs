//! Nobody gives away more than they hold. Upstream keeps this check in the storage of the four RBAC kinds; here it is one
//! plugin among the others.

use super::{Operation, Plugin, Request};
use async_trait::async_trait;
use isopod_api::Status;
use isopod_auth::escalation::{self, Refused};
use serde_json::Value;

pub struct RbacEscalation;

#[async_trait]
impl Plugin for RbacEscalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    async fn validate(&self, request: &Request<'_>, new: Option<&Value>) -> Result<(), Status> {
        let intent = request.intent;
        let (Some(new), Some(access)) = (new, &request.server.config.access) else { return Ok(()) };
        if request.operation == Operation::Delete || intent.kind.gvk.group != "rbac.authorization.k8s.io" {
            return Ok(());
        }
        let kind = &intent.kind.gvk.kind;
        let Some(right) = escalation::right(&intent.user, kind, new, request.old) else { return Ok(()) };
        if request.server.config.authorizer.authorize(&right).await.is_allowed() {
            return Ok(());
        }
        let checked = escalation::check(&access.rbac, &intent.user, kind, new, request.old);
        checked.map_err(|refused| match refused {
            Refused::Forbidden(why) => {
                let name = new["metadata"]["name"].as_str().unwrap_or_default();
                Status::forbidden(&intent.kind.gvr(), name, why)
            }
            Refused::NotFound(message) => Status::new(404, "NotFound", message),
        })
    }
}
