//! Keeps the mandatory and suggested objects as they should be, as far as their annotation allows it (upstream's
//! `pkg/registry/flowcontrol/ensurer`).

use crate::ApiServer;
use crate::candidate::update::Edit;
use crate::deletion;
use crate::pipeline;
use isopod_api::Status;
use isopod_kinds::access::{Access, set};
use isopod_kinds::bootstrap::fairness::{self, AUTO_UPDATE, EXEMPT};
use serde_json::{Value, json};

/// Who owns what is written here.
const PRODUCER: &str = "api-priority-and-fairness-config-producer-v1";

/// Creates, corrects and removes what is not as it should be. `stored`: all levels and schemas.
pub async fn ensure(server: &ApiServer, levels: &[Value], schemas: &[Value]) -> Result<(), Status> {
    let (suggested, mandatory) = (fairness::suggested(), fairness::mandatory());
    for (wanted, stored, always) in [
        (&suggested.levels, levels, false),
        (&suggested.schemas, schemas, false),
        (&mandatory.levels, levels, true),
        (&mandatory.schemas, schemas, true),
    ] {
        for object in wanted {
            let current = stored.iter().find(|o| o.text("metadata.name") == object.text("metadata.name"));
            write(server, object, current, always).await?;
        }
    }
    for (ours, stored) in
        [([&mandatory.schemas, &suggested.schemas], schemas), ([&mandatory.levels, &suggested.levels], levels)]
    {
        let kept = |o: &&Value| ours.iter().any(|l| l.iter().any(|w| w["metadata"]["name"] == o["metadata"]["name"]));
        for object in stored.iter().filter(|o| !kept(o) && auto_update(o) == Some(true)) {
            remove(server, object).await?;
        }
    }
    Ok(())
}

async fn write(server: &ApiServer, wanted: &Value, current: Option<&Value>, always: bool) -> Result<(), Status> {
    let Some(mut intent) = server.own_intent(wanted) else { return Ok(()) };
    intent.manager = PRODUCER.to_owned();
    if current.is_none() {
        return match pipeline::create(server, &intent, wanted).await {
            Err(e) if e.reason != "AlreadyExists" => Err(e),
            _ => Ok(()),
        };
    }
    if current.is_some_and(|c| revised(c, wanted, always).is_none()) {
        return Ok(());
    }
    // Looked at again: somebody may have changed it meanwhile.
    let edit = Edit(|object: &mut Value| {
        if let Some(revised) = revised(object, wanted, always) {
            *object = revised;
        }
        Ok(())
    });
    match pipeline::update(server, &intent, &edit).await {
        Err(e) if e.code != 404 => Err(e),
        _ => Ok(()),
    }
}

async fn remove(server: &ApiServer, object: &Value) -> Result<(), Status> {
    let Some(intent) = server.own_intent(object) else { return Ok(()) };
    match deletion::delete(server, &intent, &Default::default()).await {
        Err(e) if e.code != 404 => Err(e),
        _ => Ok(()),
    }
}

/// What the annotation says, if it says it in a way that Go understands.
fn auto_update(object: &Value) -> Option<bool> {
    match object["metadata"]["annotations"][AUTO_UPDATE].as_str()? {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The object as it should be; `None`: as it is. Where the annotation says nothing, a spec that nobody has changed is kept.
fn revised(current: &Value, wanted: &Value, always: bool) -> Option<Value> {
    let said = auto_update(current);
    let auto = always || said.unwrap_or(current.int("metadata.generation") == Some(1));
    let spec = wanted_spec(current, wanted);
    let changed = auto && current["spec"] != spec;
    if !changed && said == Some(auto) {
        return None;
    }
    let mut revised = current.clone();
    if changed {
        revised["spec"] = wanted["spec"].clone();
    }
    if said != Some(auto) {
        let mut annotations = current["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
        annotations.insert(AUTO_UPDATE.to_owned(), auto.to_string().into());
        set(&mut revised, "metadata.annotations", annotations);
    }
    Some(revised)
}

/// How much is reserved for exempt requests is for operators to say.
fn wanted_spec(current: &Value, wanted: &Value) -> Value {
    let mut spec = wanted["spec"].clone();
    let own = &current["spec"]["exempt"];
    if wanted["kind"] == "PriorityLevelConfiguration" && wanted["metadata"]["name"] == EXEMPT && own.is_object() {
        spec["exempt"] = json!(own);
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(mut object: Value, generation: i64, annotation: Option<&str>) -> Value {
        object["metadata"]["generation"] = generation.into();
        object["metadata"]["annotations"] = match annotation {
            Some(said) => json!({AUTO_UPDATE: said}),
            None => Value::Null,
        };
        object
    }

    #[test]
    fn the_annotation_decides_about_suggested_objects() {
        let wanted = fairness::suggested().levels.remove(0);
        let mut changed = wanted.clone();
        changed["spec"]["limited"]["nominalConcurrencyShares"] = 7.into();
        assert_eq!(revised(&stored(wanted.clone(), 1, Some("true")), &wanted, false), None);
        assert_eq!(revised(&stored(changed.clone(), 2, Some("false")), &wanted, false), None);
        let corrected = revised(&stored(changed.clone(), 2, Some("true")), &wanted, false).unwrap();
        assert_eq!(corrected["spec"], wanted["spec"]);
        // Without it, what was changed is the operator's from now on, and what was not is ours.
        let theirs = revised(&stored(changed.clone(), 2, None), &wanted, false).unwrap();
        assert_eq!((&theirs["spec"], auto_update(&theirs)), (&changed["spec"], Some(false)));
        let ours = revised(&stored(wanted.clone(), 1, Some("maybe")), &wanted, false).unwrap();
        assert_eq!(auto_update(&ours), Some(true));
    }

    #[test]
    fn mandatory_objects_are_always_corrected() {
        let wanted = fairness::mandatory().schemas.remove(1);
        let mut changed = wanted.clone();
        changed["spec"]["matchingPrecedence"] = 5.into();
        let corrected = revised(&stored(changed, 2, Some("false")), &wanted, true).unwrap();
        assert_eq!((&corrected["spec"], auto_update(&corrected)), (&wanted["spec"], Some(true)));
        let level = fairness::mandatory().levels.remove(1);
        let mut reserved = level.clone();
        reserved["spec"]["exempt"]["nominalConcurrencyShares"] = 10.into();
        assert_eq!(revised(&stored(reserved, 2, Some("true")), &level, true), None);
    }
}
