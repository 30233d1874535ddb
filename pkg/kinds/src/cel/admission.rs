//! What expressions of admission can speak of (`apiserver/pkg/admission/plugin/cel/compile.go`).

use super::check::{Environment, Library, Objects, Type};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

/// The objects, the request and the namespace; with parameters, with the authorizer.
pub fn admission(library: Library, params: bool, authorizer: bool) -> Environment {
    let mut environment = Environment::new(library)
        .objects(TYPES.clone())
        .variable("object", Type::Dyn)
        .variable("oldObject", Type::Dyn)
        .variable("namespaceObject", Type::object("kubernetes.Namespace"))
        .variable("request", Type::object("kubernetes.AdmissionRequest"));
    if params {
        environment = environment.variable("params", Type::Dyn);
    }
    if authorizer {
        environment = environment
            .variable("authorizer", Type::object("kubernetes.authorization.Authorizer"))
            .variable("authorizer.requestResource", Type::object("kubernetes.authorization.ResourceCheck"));
    }
    environment
}

fn fields(all: &[(&str, Type)]) -> BTreeMap<String, Type> {
    all.iter().map(|(name, t)| ((*name).to_owned(), t.clone())).collect()
}

static TYPES: LazyLock<Arc<Objects>> = LazyLock::new(|| {
    let text = || Type::Text;
    let texts = || Type::list(Type::Text);
    let labels = || Type::map(Type::Text, Type::Text);
    let kind = || Type::object("kubernetes.GroupVersionKind");
    let resource = || Type::object("kubernetes.GroupVersionResource");
    let request = [
        ("kind", kind()),
        ("resource", resource()),
        ("subResource", text()),
        ("requestKind", kind()),
        ("requestResource", resource()),
        ("requestSubResource", text()),
        ("name", text()),
        ("namespace", text()),
        ("operation", text()),
        ("userInfo", Type::object("kubernetes.UserInfo")),
        ("dryRun", Type::Bool),
        ("options", Type::Dyn),
    ];
    let user = [("username", text()), ("uid", text()), ("groups", texts()), ("extra", Type::map(Type::Text, texts()))];
    let metadata = [
        ("name", text()),
        ("generateName", text()),
        ("namespace", text()),
        ("labels", labels()),
        ("annotations", labels()),
        ("UID", text()),
        ("creationTimestamp", Type::Timestamp),
        ("deletionGracePeriodSeconds", Type::Int),
        ("deletionTimestamp", Type::Timestamp),
        ("generation", Type::Int),
        ("resourceVersion", text()),
        ("finalizers", texts()),
    ];
    let condition = [
        ("status", text()),
        ("type", text()),
        ("lastTransitionTime", Type::Timestamp),
        ("message", text()),
        ("reason", text()),
    ];
    let status = [("conditions", Type::list(Type::object("kubernetes.NamespaceCondition"))), ("phase", text())];
    let namespace = [
        ("metadata", Type::object("kubernetes.NamespaceMetadata")),
        ("spec", Type::object("kubernetes.NamespaceSpec")),
        ("status", Type::object("kubernetes.NamespaceStatus")),
    ];
    let gvk = [("group", text()), ("version", text()), ("kind", text())];
    let gvr = [("group", text()), ("version", text()), ("resource", text())];
    let spec = [("finalizers", texts())];
    let all: [(&str, &[(&str, Type)]); 9] = [
        ("GroupVersionKind", &gvk),
        ("GroupVersionResource", &gvr),
        ("UserInfo", &user),
        ("AdmissionRequest", &request),
        ("NamespaceMetadata", &metadata),
        ("NamespaceSpec", &spec),
        ("NamespaceCondition", &condition),
        ("NamespaceStatus", &status),
        ("Namespace", &namespace),
    ];
    Arc::new(all.into_iter().map(|(name, f)| (format!("kubernetes.{name}"), fields(f))).collect())
});
