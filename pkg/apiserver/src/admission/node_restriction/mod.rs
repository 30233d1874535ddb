//! `NodeRestriction`: a kubelet changes only its own node, its pods and what belongs to these. The node authorizer decides what it
//! may ask for; here is decided by the object, which an authorizer does not see.

mod node;
mod pod;

use super::{Operation, Plugin, Request};
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use isopod_api::Status;
use isopod_auth::certificate::requested_name;
use isopod_auth::node::node_of;
use isopod_base::errors::Chain;
use serde_json::Value;

const LEASES: &str = "kube-node-lease";

pub struct NodeRestriction;

#[async_trait]
impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    async fn mutate(&self, request: &Request<'_>, new: &mut Value) -> Result<(), Status> {
        check(request, Some(new)).await
    }

    async fn validate(&self, request: &Request<'_>, new: Option<&Value>) -> Result<(), Status> {
        // Deletes have no mutating step.
        if request.operation == Operation::Delete { check(request, new).await } else { Ok(()) }
    }
}

async fn check(request: &Request<'_>, new: Option<&Value>) -> Result<(), Status> {
    let Some(node) = node_of(&request.intent.user) else { return Ok(()) };
    let asker = Asker { request, node, object: new };
    if node.is_empty() {
        return asker.refuse(format!("could not determine node from user {:?}", request.intent.user.name));
    }
    let subresource = request.intent.subresource.as_str();
    match (request.intent.kind.gvr().qualified().as_str(), subresource) {
        ("pods", "") => pod::whole(&asker).await,
        ("pods", "status") => pod::status(&asker),
        ("pods", "eviction") => Ok(()),
        ("pods", other) => {
            asker.refuse(format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"))
        }
        ("nodes", _) => node::admit(&asker),
        ("persistentvolumeclaims", "status") => claim_status(&asker),
        ("persistentvolumeclaims", _) => asker.refuse("may only update PVC status".into()),
        ("serviceaccounts", "token") => pod::token(&asker).await,
        ("podcertificaterequests.certificates.k8s.io", _) => pod::certificate(&asker).await,
        ("leases.coordination.k8s.io", _) => lease(&asker),
        ("csinodes.storage.k8s.io", _) => csi_node(&asker),
        ("resourceslices.resource.k8s.io", _) => resource_slice(&asker),
        ("certificatesigningrequests.certificates.k8s.io", "") => signing_request(&asker),
        _ => Ok(()),
    }
}

/// A node that asks for a write.
struct Asker<'a> {
    request: &'a Request<'a>,
    node: &'a str,
    /// What is to be written; `None` for a delete.
    object: Option<&'a Value>,
}

impl Asker<'_> {
    fn refuse(&self, why: String) -> Result<(), Status> {
        Err(self.request.forbidden(self.object, why))
    }

    fn written(&self) -> &Value {
        self.object.unwrap_or(&Value::Null)
    }

    fn old(&self) -> &Value {
        self.request.old.unwrap_or(&Value::Null)
    }

    /// The object's name: a create may say it in the body alone.
    fn name(&self) -> &str {
        let named = [self.written(), self.old()].into_iter().find_map(|o| o["metadata"]["name"].as_str());
        named.unwrap_or(&self.request.intent.name)
    }
}

fn lease(asker: &Asker) -> Result<(), Status> {
    if asker.request.intent.namespace != LEASES {
        return asker.refuse(format!("can only access leases in the {LEASES:?} system namespace"));
    }
    if asker.name() != asker.node {
        return asker.refuse("can only access node lease with the same name as the requesting node".into());
    }
    Ok(())
}

fn csi_node(asker: &Asker) -> Result<(), Status> {
    if asker.name() != asker.node {
        return asker.refuse("can only access CSINode with the same name as the requesting node".into());
    }
    Ok(())
}

fn resource_slice(asker: &Asker) -> Result<(), Status> {
    let (object, verb) = match asker.request.operation {
        Operation::Create => (asker.written(), "create"),
        Operation::Delete | Operation::Connect => (asker.old(), "delete"),
        Operation::Update => return Ok(()),
    };
    if object["spec"]["nodeName"] != asker.node {
        return asker.refuse(format!("can only {verb} ResourceSlice with the same NodeName as the requesting node"));
    }
    Ok(())
}

/// A node asks for certificates in its own name only.
fn signing_request(asker: &Asker) -> Result<(), Status> {
    const SIGNERS: [&str; 2] = ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet"];
    let spec = &asker.written()["spec"];
    if asker.request.operation != Operation::Create || !SIGNERS.iter().any(|s| spec["signerName"] == *s) {
        return Ok(());
    }
    let wanted = format!("system:node:{}", asker.node);
    let pem = BASE64.decode(spec["request"].as_str().unwrap_or_default()).unwrap_or_default();
    match requested_name(&pem) {
        Err(why) => asker.refuse(format!("unable to parse csr: {}", Chain(&why))),
        Ok(name) if name != wanted => asker.refuse(format!("can only create a node CSR with CN={wanted}")),
        Ok(_) => Ok(()),
    }
}

/// Of a claim, a node writes capacity, conditions and the progress of a resize.
fn claim_status(asker: &Asker) -> Result<(), Status> {
    let rest = |claim: &Value| {
        let mut rest = claim.clone();
        for (part, key) in [
            ("metadata", "resourceVersion"),
            ("metadata", "managedFields"),
            ("status", "capacity"),
            ("status", "conditions"),
            ("status", "allocatedResources"),
            ("status", "allocatedResourceStatuses"),
        ] {
            if let Some(fields) = rest[part].as_object_mut() {
                fields.remove(key);
            }
        }
        rest
    };
    if rest(asker.old()) == rest(asker.written()) {
        return Ok(());
    }
    let node = asker.node;
    asker.refuse(format!(
        "node {node:?} is not allowed to update fields other than status.quantity and status.conditions"
    ))
}
