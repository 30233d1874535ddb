//! `TaintNodesByCondition`: a new node is tainted as not ready until the node lifecycle controller has seen that it is.

use super::{Operation, Plugin, Request};
use async_trait::async_trait;
use isopod_api::Status;
use serde_json::{Value, json};

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub struct TaintNodesByCondition;

#[async_trait]
impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    async fn mutate(&self, request: &Request<'_>, new: &mut Value) -> Result<(), Status> {
        if request.operation != Operation::Create || !request.is("nodes") {
            return Ok(());
        }
        let taint = json!({"key": NOT_READY, "effect": "NoSchedule"});
        match new["spec"]["taints"].as_array_mut() {
            Some(taints) if taints.iter().any(|t| t["key"] == NOT_READY && t["effect"] == "NoSchedule") => {}
            Some(taints) => taints.push(taint),
            None => new["spec"]["taints"] = json!([taint]),
        }
        Ok(())
    }
}
