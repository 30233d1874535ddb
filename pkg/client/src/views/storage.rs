//! Views of the storage kinds: claims, volumes and the classes that they name.

use super::*;

views! {
    PersistentVolumeClaim { metadata: Meta, spec: ClaimSpec, status: ClaimStatus }
    ClaimSpec { volume_name: String, volume_attributes_class_name: Option<String> }
    ClaimStatus {
        phase: String,
        conditions: Vec<Condition>,
        current_volume_attributes_class_name: Option<String>,
        modify_volume_status: Option<ModifyVolumeStatus>,
    }
    ModifyVolumeStatus { target_volume_attributes_class_name: String }

    PersistentVolume { metadata: Meta, spec: VolumeSpec, status: VolumeStatus }
    VolumeSpec { volume_attributes_class_name: Option<String> }
    VolumeStatus { phase: String }

    VolumeAttributesClass { metadata: Meta }
}

objects! {
    PersistentVolumeClaim = namespaced("", "v1", "persistentvolumeclaims");
    PersistentVolume = cluster("", "v1", "persistentvolumes");
    VolumeAttributesClass = cluster("storage.k8s.io", "v1", "volumeattributesclasses");
}
