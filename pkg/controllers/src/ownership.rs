//! Who controls an object: adopting orphans that a selector matches, and letting go of objects that it no longer matches.

use crate::op::Op;
use isopod_client::views::{LabelSelector, Meta};
use isopod_client::{Patch, Resource};
use serde_json::{Value, json};

/// What an owner has to do about an object before it counts as its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    Owned,
    Adopt,
    Release,
    NotOurs,
}

/// `owner` and `object` must be in one namespace.
pub fn claim(owner: &Meta, selector: &LabelSelector, object: &Meta) -> Claim {
    let matches = selector.matches(&object.labels);
    match object.controller() {
        Some(c) if c.uid != owner.uid => Claim::NotOurs,
        Some(_) if matches => Claim::Owned,
        Some(_) if owner.is_being_deleted() => Claim::NotOurs,
        Some(_) => Claim::Release,
        None if owner.is_being_deleted() || object.is_being_deleted() || !matches => Claim::NotOurs,
        None => Claim::Adopt,
    }
}

/// The owner reference by which `owner` controls what it makes.
pub fn controller_reference(api_version: &str, kind: &str, owner: &Meta) -> Value {
    json!({
        "apiVersion": api_version, "kind": kind, "name": owner.name, "uid": owner.uid,
        "controller": true, "blockOwnerDeletion": true,
    })
}

/// The patch that makes `reference` (its controller) one of the owners of `object`.
pub fn adopt(resource: Resource, object: &Meta, reference: Value) -> Op {
    let patch = json!({"metadata": {"ownerReferences": [reference], "uid": object.uid}});
    Op::patch(resource, &object.namespace, &object.name, Patch::Strategic(patch))
}

/// The patch that takes the owner out of the owners of `object`.
pub fn release(resource: Resource, object: &Meta, owner_uid: &str) -> Op {
    let patch = json!({"metadata": {"ownerReferences": [{"$patch": "delete", "uid": owner_uid}], "uid": object.uid}});
    Op::patch(resource, &object.namespace, &object.name, Patch::Strategic(patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims() {
        let selector: LabelSelector = serde_json::from_str(r#"{"matchLabels":{"app":"a"}}"#).unwrap();
        let owner = |extra: &str| -> Meta { serde_json::from_str(&format!(r#"{{"uid":"me"{extra}}}"#)).unwrap() };
        let gone = r#","deletionTimestamp":"2026-01-01T00:00:00Z""#;
        for (owner, object, want) in [
            (owner(""), r#"{"labels":{"app":"a"}}"#, Claim::Adopt),
            (owner(gone), r#"{"labels":{"app":"a"}}"#, Claim::NotOurs),
            (owner(""), r#"{"labels":{"app":"b"}}"#, Claim::NotOurs),
            (owner(""), r#"{"labels":{"app":"a"},"ownerReferences":[{"uid":"me","controller":true}]}"#, Claim::Owned),
            (owner(""), r#"{"labels":{"app":"b"},"ownerReferences":[{"uid":"me","controller":true}]}"#, Claim::Release),
            (owner(""), r#"{"labels":{"app":"a"},"ownerReferences":[{"uid":"x","controller":true}]}"#, Claim::NotOurs),
            (owner(""), r#"{"labels":{"app":"a"},"ownerReferences":[{"uid":"x"}]}"#, Claim::Adopt),
            (owner(""), r#"{"labels":{"app":"a"},"deletionTimestamp":"2026-01-01T00:00:00Z"}"#, Claim::NotOurs),
        ] {
            let object: Meta = serde_json::from_str(object).unwrap();
            assert_eq!(claim(&owner, &selector, &object), want, "{object:?}");
        }
    }
}
