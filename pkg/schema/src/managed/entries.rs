//! `metadata.managedFields`: entries read into sets by manager, and written again in upstream's order.
//!
//! Invariant: what was written here is read and written again byte for byte.

use super::set::Set;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// So many managers of updates are kept apart; the oldest of more are one.
const MAX_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// Who owns fields. One that applies is the same manager in every version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ManagerId {
    pub manager: String,
    pub operation: Operation,
    /// Empty for [`Operation::Apply`].
    pub api_version: String,
    pub subresource: String,
}

impl ManagerId {
    pub fn new(manager: &str, operation: Operation, api_version: &str, subresource: &str) -> Self {
        let api_version = if operation == Operation::Apply { "" } else { api_version };
        ManagerId {
            manager: manager.to_owned(),
            operation,
            api_version: api_version.to_owned(),
            subresource: subresource.to_owned(),
        }
    }
}

/// What a manager owns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    pub set: Set,
    pub api_version: String,
    /// RFC 3339, in UTC: text order is time order.
    pub time: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Managers(pub BTreeMap<ManagerId, Owner>);

impl Managers {
    /// Reads `metadata.managedFields`.
    pub fn from_json(entries: &Value) -> Result<Self, String> {
        let mut managers = BTreeMap::new();
        for (i, entry) in entries.as_array().into_iter().flatten().enumerate() {
            let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
            let operation = match text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return Err("operation must be `Apply` or `Update`".into()),
            };
            let api_version = text("apiVersion");
            if api_version.is_empty() {
                return Err("apiVersion must not be empty".into());
            }
            match text("fieldsType") {
                "FieldsV1" => {}
                "" => return Err(format!("missing fieldsType in managed fields entry {i}")),
                other => return Err(format!("invalid fieldsType {other:?} in managed fields entry {i}")),
            }
            let set = Set::from_json(entry.get("fieldsV1").unwrap_or(&Value::Null));
            let set = set.map_err(|e| format!("error decoding set: {e}"))?;
            let time = entry.get("time").and_then(Value::as_str).filter(|t| !t.is_empty()).map(str::to_owned);
            let id = ManagerId::new(text("manager"), operation, api_version, text("subresource"));
            managers.insert(id, Owner { set, api_version: api_version.to_owned(), time });
        }
        Ok(Managers(managers))
    }

    /// `metadata.managedFields`: appliers first, then by time, then by name. `None`: nobody owns anything.
    pub fn to_json(&self) -> Option<Value> {
        if self.0.is_empty() {
            return None;
        }
        let mut all: Vec<(&ManagerId, &Owner)> = self.0.iter().collect();
        all.sort_by(|(a, x), (b, y)| {
            let key =
                |id: &ManagerId, o: &Owner| (id.operation, o.time.clone().unwrap_or_default(), id.manager.clone());
            let rest = || x.api_version.cmp(&y.api_version).then_with(|| a.subresource.cmp(&b.subresource));
            key(a, x).cmp(&key(b, y)).then_with(rest)
        });
        Some(all.into_iter().map(|(id, owner)| entry(id, owner)).collect())
    }

    pub(super) fn union_into(&mut self, id: ManagerId, mut owner: Owner) {
        if let Some(old) = self.0.get(&id) {
            owner.set = owner.set.union(&old.set);
        }
        self.0.insert(id, owner);
    }

    /// Folds the oldest managers of updates into one for each version until there are few enough.
    pub(super) fn cap(&mut self) {
        let mut updaters: Vec<(Option<String>, ManagerId)> = self
            .0
            .iter()
            .filter(|(id, _)| id.operation == Operation::Update)
            .map(|(id, o)| (o.time.clone(), id.clone()))
            .collect();
        let mut count = updaters.len();
        if count <= MAX_UPDATERS {
            return;
        }
        updaters.sort();
        let mut first_of: BTreeMap<String, ManagerId> = BTreeMap::new();
        for (_, id) in updaters {
            if count <= MAX_UPDATERS {
                return;
            }
            let version = id.api_version.clone();
            let Some(first) = first_of.get(&version) else {
                first_of.insert(version, id);
                continue;
            };
            let bucket = ManagerId::new(ANCIENT, Operation::Update, &version, "");
            if !self.0.contains_key(&bucket)
                && let Some(owner) = self.0.remove(first)
            {
                self.0.insert(bucket.clone(), owner);
            }
            // The time of the one that is folded in: it is the later one.
            if let Some(owner) = self.0.remove(&id) {
                self.union_into(bucket, owner);
            }
            count -= 1;
        }
    }
}

fn entry(id: &ManagerId, owner: &Owner) -> Value {
    let mut map = Map::new();
    let mut put = |key: &str, value: &str| {
        if !value.is_empty() {
            map.insert(key.to_owned(), value.into());
        }
    };
    put("manager", &id.manager);
    put("operation", id.operation.name());
    put("apiVersion", &owner.api_version);
    put("time", owner.time.as_deref().unwrap_or_default());
    put("fieldsType", "FieldsV1");
    put("subresource", &id.subresource);
    map.insert("fieldsV1".into(), owner.set.to_json());
    Value::Object(map)
}

/// The request wants to forget all owners: an empty list, or one empty entry.
pub(super) fn is_reset(entries: &Value) -> bool {
    entries.as_array().is_some_and(|list| list.is_empty() || *list == [json!({})])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(manager: &str, time: &str, field: &str) -> Value {
        json!({"manager": manager, "operation": "Update", "apiVersion": "v1", "time": time, "fieldsType": "FieldsV1",
            "fieldsV1": {(format!("f:{field}")): {}}})
    }

    #[test]
    fn written_in_order() {
        let mut applied = update("z", "2026-01-02T00:00:00Z", "a");
        applied["operation"] = json!("Apply");
        let mut status = update("a", "2026-01-02T00:00:00Z", "s");
        status["subresource"] = json!("status");
        let mut timeless = update("b", "", "t");
        timeless.as_object_mut().unwrap().remove("time");
        let sorted = json!([
            applied,
            timeless,
            update("c", "2026-01-01T00:00:00Z", "c"),
            update("a", "2026-01-02T00:00:00Z", "b"),
            status
        ]);
        let mut shuffled = sorted.clone();
        shuffled.as_array_mut().unwrap().reverse();
        assert_eq!(Managers::from_json(&shuffled).unwrap().to_json(), Some(sorted));
        assert_eq!(Managers::default().to_json(), None);
    }

    #[test]
    fn the_oldest_updaters_become_one() {
        let entries: Vec<Value> = (0..12)
            .map(|i| update(&format!("m{i:02}"), &format!("2026-01-01T00:00:{i:02}Z"), &format!("f{i}")))
            .collect();
        let mut managers = Managers::from_json(&json!(entries)).unwrap();
        managers.cap();
        let capped = managers.to_json().unwrap();
        assert_eq!(capped.as_array().unwrap().len(), 10);
        assert_eq!(
            capped[0],
            json!({"manager": "ancient-changes", "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:02Z",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:f0": {}, "f:f1": {}, "f:f2": {}}})
        );
        let again = Managers::from_json(&capped).unwrap();
        let mut twice = again.clone();
        twice.cap();
        assert_eq!(twice, again);
    }

    #[test]
    fn malformed_entries() {
        for (key, value, why) in [
            ("operation", json!("Patch"), "operation must be `Apply` or `Update`"),
            ("apiVersion", json!(""), "apiVersion must not be empty"),
            ("fieldsType", json!(""), "missing fieldsType in managed fields entry 0"),
            ("fieldsType", json!("X"), "invalid fieldsType \"X\" in managed fields entry 0"),
            ("fieldsV1", json!({"a": {}}), "error decoding set: key must be 2 characters long:"),
        ] {
            let mut entry = update("m", "2026-01-01T00:00:00Z", "a");
            entry[key] = value;
            assert_eq!(Managers::from_json(&json!([entry])).unwrap_err(), why);
        }
        assert!(is_reset(&json!([])) && is_reset(&json!([{}])));
        assert!(!is_reset(&Value::Null) && !is_reset(&json!([{"manager": "x"}])) && !is_reset(&json!([{}, {}])));
    }
}
