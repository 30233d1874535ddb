//! `DefaultTolerationSeconds`: a pod stays for five minutes on a node that is not ready or not reachable, unless it says
//! something else about these taints.

use super::{Operation, Plugin, Request};
use async_trait::async_trait;
use isopod_api::Status;
use serde_json::{Value, json};

const SECONDS: i64 = 300;
const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

pub struct DefaultTolerationSeconds;

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    async fn mutate(&self, request: &Request<'_>, new: &mut Value) -> Result<(), Status> {
        if request.is("pods") && request.operation != Operation::Delete {
            add(new);
        }
        Ok(())
    }
}

fn add(pod: &mut Value) {
    let none = Vec::new();
    let list = pod["spec"]["tolerations"].as_array().unwrap_or(&none);
    let tolerated = |taint: &str| {
        list.iter().any(|t| {
            let key = t["key"].as_str().unwrap_or_default();
            let effect = t["effect"].as_str().unwrap_or_default();
            (key == taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        })
    };
    let missing: Vec<Value> = TAINTS
        .into_iter()
        .filter(|t| !tolerated(t))
        .map(|t| json!({"key": t, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS}))
        .collect();
    if missing.is_empty() {
        return;
    }
    let mut all = list.clone();
    all.extend(missing);
    pod["spec"]["tolerations"] = all.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_are_added_once() {
        let check = |given: Value, want: usize| {
            let mut pod = json!({"spec": {"tolerations": given}});
            add(&mut pod);
            assert_eq!(pod["spec"]["tolerations"].as_array().map_or(0, Vec::len), want, "{pod}");
        };
        check(Value::Null, 2);
        check(json!([{"operator": "Exists"}]), 1);
        check(json!([{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}]), 2);
        check(json!([{"key": "other", "operator": "Exists"}]), 3);
    }
}
