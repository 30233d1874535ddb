//! `Priority`: a pod's priority class becomes its priority number and preemption policy.

use super::{Operation, Plugin, Request};
use async_trait::async_trait;
use isopod_api::{Gvr, Status};
use serde_json::Value;

pub struct Priority;

#[async_trait]
impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    async fn mutate(&self, request: &Request<'_>, new: &mut Value) -> Result<(), Status> {
        if !request.is("pods") {
            return Ok(());
        }
        if request.operation == Operation::Update {
            // The class of a pod cannot change, so its numbers stay too.
            if let Some(old) = request.old {
                for field in ["priority", "preemptionPolicy"] {
                    if new["spec"][field].is_null() && !old["spec"][field].is_null() {
                        new["spec"][field] = old["spec"][field].clone();
                    }
                }
            }
            return Ok(());
        }
        let named = new["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
        let (name, priority, policy) = if named.is_empty() {
            default_class(request).await?
        } else {
            let class = request.read("scheduling.k8s.io", "priorityclasses", "", &named).await?;
            let Some(class) = class else {
                return Err(request.forbidden(Some(new), format!("no PriorityClass with name {named} was found")));
            };
            numbers(&class)
        };
        if let Some(given) = new["spec"]["priority"].as_i64().filter(|g| *g != priority) {
            let why = format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
            );
            return Err(request.forbidden(Some(new), why));
        }
        if let Some(given) = new["spec"]["preemptionPolicy"].as_str().filter(|g| *g != policy) {
            let why = format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            );
            return Err(request.forbidden(Some(new), why));
        }
        if named.is_empty() && !name.is_empty() {
            new["spec"]["priorityClassName"] = name.into();
        }
        new["spec"]["priority"] = priority.into();
        new["spec"]["preemptionPolicy"] = policy.into();
        Ok(())
    }

    async fn validate(&self, request: &Request<'_>, new: Option<&Value>) -> Result<(), Status> {
        let (true, Some(new)) = (request.is("priorityclasses.scheduling.k8s.io"), new) else { return Ok(()) };
        if new["globalDefault"] != true {
            return Ok(());
        }
        let name = &new["metadata"]["name"];
        let classes = request.read_all("scheduling.k8s.io", "priorityclasses", "").await?;
        if let Some(other) = classes.iter().find(|c| c["globalDefault"] == true && c["metadata"]["name"] != *name) {
            let other = other["metadata"]["name"].as_str().unwrap_or_default();
            let gvr = Gvr::new("scheduling.k8s.io", "v1", "priorityclasses");
            let why = format!("PriorityClass {other} is already marked as globalDefault. Only one default can exist");
            return Err(Status::forbidden(&gvr, name.as_str().unwrap_or_default(), why));
        }
        Ok(())
    }
}

fn numbers(class: &Value) -> (String, i64, String) {
    let name = class["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let policy = class["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority").to_owned();
    (name, class["value"].as_i64().unwrap_or(0), policy)
}

/// The default class with the lowest value, or no class and priority 0.
async fn default_class(request: &Request<'_>) -> Result<(String, i64, String), Status> {
    let classes = request.read_all("scheduling.k8s.io", "priorityclasses", "").await?;
    let default = classes.iter().filter(|c| c["globalDefault"] == true).min_by_key(|c| c["value"].as_i64());
    Ok(default.map(|class| numbers(class)).unwrap_or((String::new(), 0, "PreemptLowerPriority".into())))
}
