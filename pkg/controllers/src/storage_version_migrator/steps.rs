//! What is to be done about a migration, and what its status and that of its definition say then. Pure functions.

use serde_json::{Value, json};

#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Nothing,
    /// It is its turn.
    Begin,
    /// The revision up to which objects are to be written is not known yet.
    Locate,
    /// Objects up to this revision are to be written.
    Migrate(u64),
    /// It has ended but does not say so.
    End,
}

/// How a migration ended.
pub enum Outcome {
    Succeeded,
    Failed(String),
}

pub fn is(object: &Value, condition: &str) -> bool {
    find(object, condition).is_some_and(|c| c["status"] == "True")
}

fn find<'a>(object: &'a Value, condition: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == condition)
}

fn has_ended(migration: &Value) -> bool {
    is(migration, "Succeeded") || is(migration, "Failed")
}

/// The next step; `all` are the migrations of the same resource.
pub fn next<'a>(migration: &Value, all: impl Iterator<Item = &'a Value>) -> Step {
    match (is(migration, "Running"), has_ended(migration)) {
        (true, true) => Step::End,
        (false, true) => Step::Nothing,
        (true, false) => match migration["status"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()) {
            Some(revision) => Step::Migrate(revision),
            None => Step::Locate,
        },
        (false, false) => {
            let order = |m: &Value| {
                let of = |key: &str| m["metadata"][key].as_str().unwrap_or_default().to_owned();
                (of("creationTimestamp"), of("name"))
            };
            let before = |m: &Value| is(m, "Running") || order(m) < order(migration);
            let mut all = all.filter(|m| !has_ended(m));
            if all.any(before) { Step::Nothing } else { Step::Begin }
        }
    }
}

/// Whether a call that failed with this code is made again later.
pub fn is_passing(code: Option<u16>) -> bool {
    code.is_none_or(|c| matches!(c, 429 | 500 | 503 | 504))
}

/// Sets a condition; its time changes with its status.
fn set(object: &mut Value, condition: Value, now: &str) {
    let mut condition = condition;
    condition["lastTransitionTime"] = now.into();
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    if !object["status"]["conditions"].is_array() {
        object["status"]["conditions"] = json!([]);
    }
    let Some(all) = object["status"]["conditions"].as_array_mut() else { return };
    match all.iter_mut().find(|c| c["type"] == condition["type"]) {
        None => all.push(condition),
        Some(known) => {
            if known["status"] == condition["status"] {
                condition["lastTransitionTime"] = known["lastTransitionTime"].clone();
            }
            *known = condition;
        }
    }
}

fn condition(ty: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": ty, "status": status, "reason": reason, "message": message})
}

pub fn begin(migration: &mut Value, now: &str) {
    set(migration, condition("Running", "True", "MigrationRunning", "The migration is running"), now);
}

/// How far it is: `left` of the objects are still to be written.
pub fn progress(migration: &mut Value, left: usize, total: usize, passing: Option<&str>, now: &str) {
    let mut message = "The migration is running".to_owned();
    match (left, total) {
        (_, 0) => {}
        (0, total) => message.push_str(&format!(", {total} objects verified migrated")),
        (left, total) => message.push_str(&format!(", {left}/{total} objects not yet migrated")),
    }
    if let Some(why) = passing {
        message.push_str(&format!("; transient error: {why}"));
    }
    set(migration, condition("Running", "True", "MigrationRunning", &message), now);
}

pub fn failed(migration: &mut Value, why: &str, now: &str) {
    set(migration, condition("Failed", "True", "StorageVersionMigrationFailed", why), now);
}

pub fn finish(migration: &mut Value, left: usize, total: usize, outcome: &Outcome, now: &str) {
    progress(migration, left, total, None, now);
    match outcome {
        Outcome::Succeeded => {
            set(
                migration,
                condition("Succeeded", "True", "StorageVersionMigrationSucceeded", "Migration completed"),
                now,
            );
        }
        Outcome::Failed(why) => failed(migration, why, now),
    }
}

pub fn end(migration: &mut Value, now: &str) {
    let mut ended = condition("Running", "False", "MigrationCompleted", "Migration completed");
    if let Some(generation) = migration["metadata"].get("generation") {
        ended["observedGeneration"] = generation.clone();
    }
    set(migration, ended, now);
}

fn migrating(definition: &mut Value, status: &str, reason: &str, message: &str, now: &str) {
    let mut told = condition("StorageMigrating", status, reason, message);
    told["observedGeneration"] = definition["metadata"]["generation"].clone();
    set(definition, told, now);
}

/// The definition's objects are being migrated.
pub fn begun(definition: &mut Value, message: &str, now: &str) {
    migrating(definition, "True", "MigrationRunning", message, now);
}

/// They were. If the definition has not changed since, no older version is stored any more.
pub fn ended(definition: &mut Value, succeeded: bool, now: &str) {
    let generation = definition["metadata"]["generation"].clone();
    let same = find(definition, "StorageMigrating").is_some_and(|c| c["observedGeneration"] == generation);
    let (reason, message) = match (succeeded, same) {
        (true, true) => ("MigrationSucceeded", "The migration has succeeded and the stored versions have been updated"),
        (true, false) => (
            "MigrationSucceeded",
            "The migration has succeeded but the stored versions have not been updated due to a generation mismatch",
        ),
        (false, _) => ("MigrationFailed", "The migration has failed"),
    };
    migrating(definition, "False", reason, message, now);
    let versions = definition["spec"]["versions"].as_array();
    let stored = versions.into_iter().flatten().find(|v| v["storage"] == true).map(|v| v["name"].clone());
    if let Some(stored) = stored.filter(|_| same && succeeded) {
        definition["status"]["storedVersions"] = json!([stored]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migration(name: &str, made: &str, conditions: &[&str], revision: &str) -> Value {
        let conditions: Vec<Value> = conditions.iter().map(|c| condition(c, "True", "R", "")).collect();
        json!({"metadata": {"name": name, "creationTimestamp": made},
            "status": {"conditions": conditions, "resourceVersion": revision}})
    }

    #[test]
    fn the_oldest_runs_alone() {
        let old = migration("b", "2026-01-01T00:00:00Z", &[], "");
        let same = migration("a", "2026-01-01T00:00:00Z", &[], "");
        let new = migration("0", "2026-01-02T00:00:00Z", &[], "");
        let running = migration("z", "2026-01-03T00:00:00Z", &["Running"], "");
        let done = migration("d", "2025-01-01T00:00:00Z", &["Running", "Succeeded"], "5");
        let all = [old.clone(), same.clone(), new.clone(), done.clone()];
        for (m, want) in [(&old, Step::Nothing), (&same, Step::Begin), (&new, Step::Nothing), (&done, Step::End)] {
            assert_eq!(next(m, all.iter()), want, "{m}");
        }
        let all = [same.clone(), running.clone()];
        assert_eq!((next(&same, all.iter()), next(&running, all.iter())), (Step::Nothing, Step::Locate));
        assert_eq!(next(&migration("r", "", &["Running"], "7"), [].iter()), Step::Migrate(7));
        assert_eq!(next(&migration("f", "", &["Failed"], "7"), [].iter()), Step::Nothing);
    }

    #[test]
    fn what_is_said_of_it() {
        let mut m = migration("a", "", &[], "");
        begin(&mut m, "t1");
        progress(&mut m, 2, 5, Some("slow"), "t2");
        let running = find(&m, "Running").cloned().unwrap_or_default();
        assert_eq!(running["message"], "The migration is running, 2/5 objects not yet migrated; transient error: slow");
        assert_eq!(running["lastTransitionTime"], "t1");
        finish(&mut m, 0, 5, &Outcome::Succeeded, "t3");
        assert!(is(&m, "Succeeded") && is(&m, "Running"));
        end(&mut m, "t4");
        assert_eq!(find(&m, "Running").map(|c| &c["lastTransitionTime"]), Some(&json!("t4")));
    }

    #[test]
    fn stored_versions_are_forgotten_if_nothing_changed_meanwhile() {
        let definition = || {
            json!({"metadata": {"generation": 3}, "spec": {"versions": [{"name": "v1"}, {"name": "v2", "storage": true}]},
                "status": {"storedVersions": ["v1", "v2"]}})
        };
        for (succeeded, changes, want) in
            [(true, false, json!(["v2"])), (true, true, json!(["v1", "v2"])), (false, false, json!(["v1", "v2"]))]
        {
            let mut d = definition();
            begun(&mut d, "m", "t");
            if changes {
                d["metadata"]["generation"] = 4.into();
            }
            ended(&mut d, succeeded, "t2");
            assert_eq!(d["status"]["storedVersions"], want, "{d}");
            assert!(!is(&d, "StorageMigrating"));
        }
    }
}
