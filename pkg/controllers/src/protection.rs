//! Keeps what is in use from being deleted: claims, volumes and volume attributes classes carry a finalizer that goes only
//! when they are being deleted and nothing uses them.
//!
//! Invariant: a list of finalizers is written only over the revision that it was computed from, so that no other writer's
//! finalizer is lost.

pub mod claims;
pub mod classes;
pub mod volumes;

use crate::op::Op;
use isopod_client::Resource;
use isopod_client::views::Meta;
use serde_json::json;

/// What an object's finalizer needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    Add,
    /// To be removed, if the object is not in use.
    RemoveIfUnused,
}

fn need(object: &Meta, finalizer: &str) -> Need {
    match (object.is_being_deleted(), object.finalizers.iter().any(|f| f == finalizer)) {
        (false, false) => Need::Add,
        (true, true) => Need::RemoveIfUnused,
        _ => Need::Nothing,
    }
}

fn add(resource: Resource, object: &Meta, finalizer: &str) -> Op {
    let mut finalizers = object.finalizers.clone();
    finalizers.push(finalizer.to_owned());
    write(resource, object, &finalizers)
}

fn remove(resource: Resource, object: &Meta, finalizer: &str) -> Op {
    let left: Vec<String> = object.finalizers.iter().filter(|f| *f != finalizer).cloned().collect();
    write(resource, object, &left)
}

fn write(resource: Resource, object: &Meta, finalizers: &[String]) -> Op {
    let change = json!({"metadata": {"finalizers": finalizers}});
    Op::modify(resource, &object.namespace, &object.name, change).if_unchanged(&object.resource_version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_client::views::PersistentVolume;

    #[test]
    fn finalizers_of_others_stay() {
        let gone = r#""deletionTimestamp":"2026-01-01T00:00:00Z","#;
        for (deleted, finalizers, want, written) in [
            ("", r#"["other"]"#, Need::Add, r#"["other","mine"]"#),
            ("", r#"["mine"]"#, Need::Nothing, ""),
            (gone, r#"["mine","other"]"#, Need::RemoveIfUnused, r#"["other"]"#),
            (gone, r#"["other"]"#, Need::Nothing, ""),
        ] {
            let meta: Meta =
                serde_json::from_str(&format!(r#"{{"name":"a",{deleted}"finalizers":{finalizers}}}"#)).unwrap();
            let need = need(&meta, "mine");
            assert_eq!(need, want);
            let op = match need {
                Need::Add => add(PersistentVolume::resource(), &meta, "mine"),
                Need::RemoveIfUnused => remove(PersistentVolume::resource(), &meta, "mine"),
                Need::Nothing => continue,
            };
            assert!(op.to_string().ends_with(&format!(r#"{{"metadata":{{"finalizers":{written}}}}}"#)), "{op}");
        }
    }
}
