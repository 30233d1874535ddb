//! PersistentVolumes and the claims to them.

use crate::access::{Access, keep, same, set, unset};
use crate::kind::Ctx;
use crate::strategy::{STATELESS, Strategy};
use crate::validation::{claim, warnings};
use serde_json::{Value, json};

pub const VOLUME: Strategy = Strategy {
    prepare_create: |ctx, new| {
        let at = isopod_api::time::format(ctx.now);
        set(new, "status", json!({"phase": "Pending", "lastPhaseTransitionTime": at}));
    },
    prepare_update: update_volume,
    warnings: warnings::volume,
    create: claim::volume_create,
    update: claim::volume_update,
    ..STATELESS
};

pub const CLAIM: Strategy = Strategy {
    prepare_create: |_, new| {
        set(new, "status", json!({"phase": "Pending"}));
        drop_unknown_source(new);
        mirror_sources(new);
    },
    prepare_update: update_claim,
    warnings: warnings::claim,
    create: claim::claim_create,
    update: claim::claim_update,
    update_status: claim::claim_status,
    ..STATELESS
};

/// When a volume's phase changed is noted here, unless the client says it (KEP-3762).
fn update_volume(ctx: &Ctx, new: &mut Value, old: &Value) {
    if ctx.subresource != "status" {
        return;
    }
    const AT: &str = "status.lastPhaseTransitionTime";
    let stays = new.text("status.phase") == old.text("status.phase");
    if stays && !new.has(AT) {
        keep(new, old, AT);
    } else if !stays && (!new.has(AT) || same(new.at(AT), old.at(AT))) {
        set(new, AT, isopod_api::time::format(ctx.now));
    }
}

fn update_claim(ctx: &Ctx, new: &mut Value, old: &Value) {
    if !ctx.subresource.is_empty() {
        return;
    }
    // A source that was taken once may be named again by clients that know only one of the fields.
    if !old.has("spec.dataSource") && !old.has("spec.dataSourceRef") {
        drop_unknown_source(new);
    }
    mirror_sources(new);
}

/// `dataSource` has always ignored what is neither a claim nor a snapshot (KEP-1495).
fn drop_unknown_source(new: &mut Value) {
    let source = new.at("spec.dataSource");
    let known = matches!(
        (source.text("kind"), source.text("apiGroup")),
        ("PersistentVolumeClaim", "") | ("VolumeSnapshot", "snapshot.storage.k8s.io")
    );
    if !known && !new.has("spec.dataSourceRef") {
        unset(new, "spec.dataSource");
    }
}

/// Either of the two fields says what the other does, but where the source is in another namespace.
fn mirror_sources(new: &mut Value) {
    let (source, reference) = (new.at("spec.dataSource").clone(), new.at("spec.dataSourceRef").clone());
    if !source.is_null() && reference.is_null() {
        set(new, "spec.dataSourceRef", source);
    } else if source.is_null() && !reference.is_null() && reference.text("namespace").is_empty() {
        set(new, "spec.dataSource", reference);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_a_claim_are_mirrored() {
        let snapshot = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
        let other = json!({"apiGroup": "example.com", "kind": "Thing", "name": "t"});
        let far = json!({"kind": "PersistentVolumeClaim", "name": "c", "namespace": "n"});
        for (given, source, reference) in [
            (json!({"dataSource": snapshot}), &snapshot, &snapshot),
            (json!({"dataSource": other}), &Value::Null, &Value::Null),
            (json!({"dataSourceRef": other}), &other, &other),
            (json!({"dataSourceRef": far}), &Value::Null, &far),
        ] {
            let mut claim = json!({"spec": given});
            drop_unknown_source(&mut claim);
            mirror_sources(&mut claim);
            assert_eq!((claim.at("spec.dataSource"), claim.at("spec.dataSourceRef")), (source, reference));
        }
    }
}
