//! `NamespaceLifecycle`: nothing is created in a namespace that is not there or is going, and the system's own namespaces
//! cannot be deleted.

use super::{Operation, Plugin, Request};
use crate::objects;
use async_trait::async_trait;
use isopod_api::{Cause, Gvr, Status};
use serde_json::Value;

/// Namespaces that must not be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub struct NamespaceLifecycle;

#[async_trait]
impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    async fn mutate(&self, request: &Request<'_>, new: &mut Value) -> Result<(), Status> {
        let intent = request.intent;
        // Who may only ask what is allowed in a namespace is not told whether there is one.
        let is_question = request.is("localsubjectaccessreviews.authorization.k8s.io");
        if !intent.kind.namespaced || request.operation != Operation::Create || is_question {
            return Ok(());
        }
        if let Some(why) = objects::bad_segment(&intent.namespace) {
            return Err(Status::internal(format!("invalid resource name {:?}: [{why}]", intent.namespace)));
        }
        let namespaces = Gvr::new("", "v1", "namespaces");
        let found = request.read("", "namespaces", "", &intent.namespace).await?;
        let Some(namespace) = found else { return Err(Status::not_found(&namespaces, &intent.namespace)) };
        let gone =
            namespace["status"]["phase"] == "Terminating" || namespace["metadata"]["deletionTimestamp"].is_string();
        if !gone {
            return Ok(());
        }
        let ns = &intent.namespace;
        let why = format!("unable to create new content in namespace {ns} because it is being terminated");
        let mut status = request.forbidden(Some(new), why);
        status.details.get_or_insert_default().causes.push(Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {ns} is being terminated"),
            field: "metadata.namespace".into(),
        });
        Err(status)
    }

    async fn validate(&self, request: &Request<'_>, _new: Option<&Value>) -> Result<(), Status> {
        let name = request.intent.name.as_str();
        if request.operation == Operation::Delete && request.is("namespaces") && IMMORTAL.contains(&name) {
            return Err(request.forbidden(None, "this namespace may not be deleted"));
        }
        Ok(())
    }
}
