//! APIServices for what is served here: of built-in groups they are looked after at the start, of custom resources always. So
//! everything that is served has one, and its priorities order discovery.

use crate::ApiServer;
use crate::candidate::update::Edit;
use crate::deletion;
use crate::options::DeleteOptions;
use crate::pipeline;
use crate::registry::Registry;
use isopod_api::Status;
use isopod_kinds::access::Access;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Who looks after an APIService: nobody, the start of a server (`onstart`), or always a server (`true`).
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
const ON_START: &str = "onstart";
const ALWAYS: &str = "true";

/// Priorities of group and version, of custom resources.
pub const CUSTOM: (i64, i64) = (1000, 100);

/// Built-in groups: group, its priority, its versions with theirs (upstream's table). `apiregistration.k8s.io` stands before all
/// and has no APIService.
const PRIORITIES: [(&str, i64, &[(&str, i64)]); 23] = [
    ("apiregistration.k8s.io", 20000, &[("v1", 18)]),
    ("", 18000, &[("v1", 1)]),
    ("apps", 17800, &[("v1", 15)]),
    ("events.k8s.io", 17750, &[("v1", 15)]),
    ("authentication.k8s.io", 17700, &[("v1", 15), ("v1beta1", 9), ("v1alpha1", 1)]),
    ("authorization.k8s.io", 17600, &[("v1", 15)]),
    ("autoscaling", 17500, &[("v2", 30), ("v1", 15)]),
    ("batch", 17400, &[("v1", 15)]),
    ("certificates.k8s.io", 17300, &[("v1", 15), ("v1beta1", 9), ("v1alpha1", 1)]),
    ("networking.k8s.io", 17200, &[("v1", 15), ("v1beta1", 9)]),
    ("policy", 17100, &[("v1", 15)]),
    ("rbac.authorization.k8s.io", 17000, &[("v1", 15)]),
    ("storage.k8s.io", 16800, &[("v1", 15), ("v1beta1", 9), ("v1alpha1", 1)]),
    ("admissionregistration.k8s.io", 16700, &[("v1", 15), ("v1beta1", 12), ("v1alpha1", 9)]),
    ("apiextensions.k8s.io", 16700, &[("v1", 15)]),
    ("scheduling.k8s.io", 16600, &[("v1", 15), ("v1beta1", 9), ("v1alpha3", 3)]),
    ("coordination.k8s.io", 16500, &[("v1", 15), ("v1beta1", 13), ("v1alpha2", 12)]),
    ("node.k8s.io", 16300, &[("v1", 15)]),
    ("discovery.k8s.io", 16200, &[("v1", 15)]),
    ("resource.k8s.io", 16200, &[("v1", 21), ("v1beta2", 15), ("v1beta1", 9), ("v1alpha3", 1)]),
    ("flowcontrol.apiserver.k8s.io", 16100, &[("v1", 21)]),
    ("internal.apiserver.k8s.io", 16000, &[("v1alpha1", 9)]),
    ("storagemigration.k8s.io", 15800, &[("v1", 15), ("v1beta1", 9)]),
];

/// The priorities of what is served here, whatever its APIService says.
pub fn priorities(group: &str, version: &str) -> Option<(i64, i64)> {
    let (_, priority, versions) = PRIORITIES.iter().find(|(g, _, _)| *g == group)?;
    versions.iter().find(|(v, _)| *v == version).map(|(_, own)| (*priority, *own))
}

/// The name of a group version's APIService.
pub fn name_of(group: &str, version: &str) -> String {
    format!("{version}.{group}")
}

/// What has been done so far.
#[derive(Default)]
pub struct Progress {
    /// Those that were there when the server started.
    at_start: BTreeSet<String>,
    /// Those that need nothing more from the start.
    done: BTreeSet<String>,
    begun: bool,
}

/// The APIServices that should be there, by name.
fn desired(registry: &Registry) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for (group, versions) in registry.groups() {
        for (version, kinds) in versions {
            let custom = kinds.iter().any(|k| k.schema.custom);
            let found = if custom { Some(CUSTOM) } else { priorities(group, version) };
            let Some((group_priority, own)) = found.filter(|_| group != "apiregistration.k8s.io") else { continue };
            let (name, managed) = (name_of(group, version), if custom { ALWAYS } else { ON_START });
            let mut spec = json!({"version": version, "groupPriorityMinimum": group_priority, "versionPriority": own});
            if !group.is_empty() {
                spec["group"] = group.into();
            }
            let object = json!({
                "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                "metadata": {"name": name, "labels": {MANAGED: managed}}, "spec": spec,
            });
            all.insert(name, object);
        }
    }
    all
}

#[derive(Debug, PartialEq)]
enum Action {
    Nothing,
    Create,
    Update,
    Delete,
}

fn managed(object: Option<&Value>) -> &str {
    object.map(|o| o.entry_text("metadata.labels", MANAGED)).unwrap_or_default()
}

/// kube-aggregator's table of what is wanted and what is there.
fn decide(desired: Option<&Value>, current: Option<&Value>, done: bool, at_start: bool) -> Action {
    if managed(desired) == ON_START && done {
        return Action::Nothing;
    }
    let Some(current) = current else {
        return if desired.is_some() { Action::Create } else { Action::Nothing };
    };
    let on_start = managed(Some(current)) == ON_START;
    if !matches!(managed(Some(current)), ON_START | ALWAYS) || on_start && (!at_start || done) {
        return Action::Nothing;
    }
    match desired {
        None => Action::Delete,
        Some(desired) if desired.at("spec") == current.at("spec") => Action::Nothing,
        Some(_) => Action::Update,
    }
}

/// Makes, mends and removes APIServices. True: something could not be written.
pub async fn act(server: &ApiServer, progress: &mut Progress, current: &BTreeMap<String, Arc<Value>>) -> bool {
    if !progress.begun {
        progress.at_start = current.keys().cloned().collect();
        progress.begun = true;
    }
    let desired = desired(&server.registry.load());
    let names: BTreeSet<&String> = desired.keys().chain(current.keys()).collect();
    let work = names.into_iter().map(|name| {
        let (wanted, there) = (desired.get(name), current.get(name).map(|o| &**o));
        let action = decide(wanted, there, progress.done.contains(name), progress.at_start.contains(name));
        async move { (name, carry_out(server, name, action, wanted, there).await) }
    });
    // They wait for one commit of the store together.
    let outcomes = futures::future::join_all(work).await;
    let mut behind = false;
    for (name, outcome) in outcomes {
        match outcome {
            Ok(()) => drop(progress.done.insert(name.clone())),
            Err(e) => {
                tracing::warn!(name, error = %e, "cannot look after an APIService");
                behind = true;
            }
        }
    }
    behind
}

async fn carry_out(
    server: &ApiServer,
    name: &str,
    action: Action,
    wanted: Option<&Value>,
    there: Option<&Value>,
) -> Result<(), Status> {
    let Some(kind) = super::kind(server) else { return Ok(()) };
    let intent = server.intent(&kind, "", name);
    let outcome = match (action, wanted, there) {
        (Action::Create, Some(wanted), _) => pipeline::create(server, &intent, wanted).await,
        (Action::Update, Some(wanted), _) => {
            let edit = Edit(|object: &mut Value| {
                object["spec"] = wanted["spec"].clone();
                Ok(())
            });
            pipeline::update(server, &intent, &edit).await
        }
        (Action::Delete, _, Some(there)) => {
            let uid = Some(there.text("metadata.uid").to_owned());
            deletion::delete(server, &intent, &DeleteOptions { uid, ..Default::default() }).await
        }
        _ => return Ok(()),
    };
    match outcome {
        // Somebody else was faster: the change wakes us again.
        Err(e) if !matches!(e.code, 404 | 409) => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(managed: &str, priority: i64) -> Value {
        json!({"metadata": {"labels": {MANAGED: managed}}, "spec": {"versionPriority": priority}})
    }

    #[test]
    fn what_is_done_with_an_api_service() {
        use Action::*;
        let (start, always, own) = (object(ON_START, 1), object(ALWAYS, 1), object("", 2));
        let (start2, always2) = (object(ON_START, 2), object(ALWAYS, 2));
        for (desired, current, done, at_start, want) in [
            (None, None, false, false, Nothing),
            (Some(&start), None, false, false, Create),
            (Some(&start), None, true, false, Nothing),
            (Some(&always), None, true, false, Create),
            (None, Some(&own), false, true, Nothing),
            (Some(&start), Some(&own), false, true, Nothing),
            (Some(&always), Some(&own), true, true, Nothing),
            (None, Some(&start), false, false, Nothing),
            (None, Some(&start), false, true, Delete),
            (None, Some(&start), true, true, Nothing),
            (Some(&start), Some(&start2), false, true, Update),
            (Some(&start), Some(&start2), true, true, Nothing),
            (None, Some(&always), true, false, Delete),
            (Some(&always), Some(&always2), true, false, Update),
            (Some(&always), Some(&always), true, false, Nothing),
        ] {
            let got = decide(desired, current, done, at_start);
            assert_eq!(got, want, "{desired:?} {current:?} {done} {at_start}");
        }
    }

    #[test]
    fn every_built_in_version_has_priorities() {
        let registry = Registry::new(isopod_kinds::table::builtin());
        for (group, versions) in registry.groups() {
            for (version, _) in versions {
                assert!(priorities(group, version).is_some(), "{group}/{version}");
            }
        }
        let all = desired(&registry);
        assert_eq!(all["v1."]["spec"], json!({"version": "v1", "groupPriorityMinimum": 18000, "versionPriority": 1}));
        assert!(!all.contains_key("v1.apiregistration.k8s.io"));
    }
}
