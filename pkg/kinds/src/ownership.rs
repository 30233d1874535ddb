//! Which fields a request can own (KEP-555, "reset fields"): those that its strategy resets it cannot change, and what it
//! says about them is nobody's. Strategies choose one of these functions; a kind with other rules has its own.
//!
//! Invariant: what stands here is what `prepare_update` and the pipeline keep from the old object.

use isopod_schema::managed::{Filter, Set};

fn without(paths: &[&[&str]]) -> Filter {
    Filter::Without(Set::of(paths))
}

/// The object does not own `status`, a write through `status` does not own `spec`.
pub fn spec_or_status(subresource: &str) -> Filter {
    match subresource {
        "" => without(&[&["status"]]),
        "status" => without(&[&["spec"]]),
        _ => Filter::All,
    }
}

/// A write through `status` owns no metadata either.
pub fn status_alone(subresource: &str) -> Filter {
    match subresource {
        "status" => without(&[&["spec"], &["metadata"]]),
        other => spec_or_status(other),
    }
}

/// Labels belong to the object.
pub fn deployment(subresource: &str) -> Filter {
    match subresource {
        "status" => without(&[&["spec"], &["metadata", "labels"]]),
        other => spec_or_status(other),
    }
}

pub fn namespace(subresource: &str) -> Filter {
    spec_or_status(if subresource == "finalize" { "" } else { subresource })
}

pub fn pod(subresource: &str) -> Filter {
    match subresource {
        "status" => without(&[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]]),
        "ephemeralcontainers" => Filter::Only(&[&["spec", "ephemeralContainers"]]),
        "resize" => Filter::Only(&[
            &["spec", "containers", "*", "resources"],
            &["spec", "containers", "*", "resizePolicy"],
            &["spec", "initContainers", "*", "resources"],
            &["spec", "initContainers", "*", "resizePolicy"],
        ]),
        other => spec_or_status(other),
    }
}

/// A request's spec is written once; its conditions through `approval`, its certificate through `status`.
pub fn signing_request(subresource: &str) -> Filter {
    match subresource {
        "" => without(&[&["spec"], &["status"]]),
        "status" => without(&[&["spec"], &["status", "conditions"]]),
        "approval" => without(&[&["spec"], &["status", "certificate"]]),
        _ => Filter::All,
    }
}

#[cfg(test)]
mod tests {
    use crate::table;

    #[test]
    fn spec_and_status_have_owners_of_their_own() {
        let mut with_status = 0;
        for kind in table::builtin() {
            let of = |subresource: &str, path: &[&str]| kind.hooks.owned(subresource).excludes(path);
            let has_status = kind.subresources.iter().any(|s| s.name == "status");
            assert_eq!(of("", &["status"]), has_status, "{}", kind.gvk);
            assert_eq!(of("status", &["spec", "x"]), has_status, "{}", kind.gvk);
            assert!(!of("scale", &["spec"]) && !of("status", &["status"]), "{}", kind.gvk);
            with_status += usize::from(has_status);
        }
        assert!(with_status > 20, "{with_status}");
    }
}
