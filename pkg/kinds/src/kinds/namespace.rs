//! Namespaces: the `kubernetes` finalizer in `spec` is set here and leaves through the `finalize` subresource.

use crate::access::{Access, keep, set};
use crate::kind::Ctx;
use crate::metadata;
use crate::ownership;
use crate::strategy::{STATELESS, Strategy};
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::{Value, json};

pub const FINALIZER: &str = "kubernetes";

pub const STRATEGY: Strategy = Strategy {
    owned: ownership::namespace,
    fields: &["status.phase"],
    prepare_create,
    prepare_update,
    create: |new| finalizers(new, false),
    update: |new, _| finalizers(new, false),
    update_status,
    update_other: |_, new, _| finalizers(new, true),
    ..STATELESS
};

fn prepare_create(_: &Ctx, new: &mut Value) {
    set(new, "status", json!({"phase": "Active"}));
    let mut list: Vec<Value> = new.list("spec.finalizers").to_vec();
    if !list.iter().any(|f| f == FINALIZER) {
        list.push(FINALIZER.into());
        set(new, "spec.finalizers", list);
    }
}

fn prepare_update(ctx: &Ctx, new: &mut Value, old: &Value) {
    match ctx.subresource {
        "status" => keep(new, old, "spec"),
        "finalize" => keep(new, old, "status"),
        _ => {
            keep(new, old, "spec.finalizers");
            keep(new, old, "status");
        }
    }
}

/// `indexed`: errors say which one is meant.
fn finalizers(new: &Value, indexed: bool) -> FieldErrors {
    let p = Path::new("spec").child("finalizers");
    let check = |(i, name): (usize, &str)| {
        let p = if indexed { p.index(i) } else { p.clone() };
        let mut errs = metadata::label_name(name, &p);
        errs.extend(metadata::kube_finalizer(name, &p));
        errs
    };
    new.texts("spec.finalizers").into_iter().enumerate().flat_map(check).collect()
}

fn update_status(new: &Value, _: &Value) -> FieldErrors {
    let (phase, p) = (new.text("status.phase"), Path::new("status").child("Phase"));
    match (new.has("metadata.deletionTimestamp"), phase) {
        (false, "Active") | (true, "Terminating") => Vec::new(),
        (false, _) => vec![FieldError::invalid(&p, phase, "may only be 'Active' if `deletionTimestamp` is empty")],
        (true, _) => {
            vec![FieldError::invalid(&p, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty")]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_api::UserInfo;

    #[test]
    fn the_finalizer_is_set_and_kept() {
        let user = UserInfo::default();
        let mut ctx = Ctx { now: jiff::Timestamp::UNIX_EPOCH, user: &user, subresource: "", dry_run: false };
        let mut ns = json!({"metadata": {"name": "a"}, "status": {"phase": "Terminating"}});
        prepare_create(&ctx, &mut ns);
        assert_eq!((ns.texts("spec.finalizers"), ns.text("status.phase")), (vec!["kubernetes"], "Active"));
        let mut new = json!({"spec": {}, "status": {}});
        prepare_update(&ctx, &mut new, &ns);
        assert_eq!(new["spec"], ns["spec"]);
        ctx.subresource = "finalize";
        let mut new = json!({"spec": {}, "status": {}});
        prepare_update(&ctx, &mut new, &ns);
        assert_eq!((new.has("spec.finalizers"), new.text("status.phase")), (false, "Active"));
        let errs = finalizers(&json!({"spec": {"finalizers": ["kubernetes", "a/b", "odd"]}}), true);
        assert_eq!(errs.len(), 1);
        assert_eq!(errs[0].field, "spec.finalizers[2]");
    }
}
