//! Services: values that the server allocates survive updates that leave them out, and go when the type no longer has them.

use crate::access::{Access, keep, list_mut, same, set, unset};
use crate::kind::Ctx;
use crate::strategy::{STATELESS, Strategy};
use crate::validation::{service, warnings};
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub const STRATEGY: Strategy = Strategy {
    fields: &["spec.clusterIP", "spec.type"],
    create_on_update: true,
    prepare_create: |_, new| {
        set(new, "status", json!({"loadBalancer": {}}));
        normalize_cluster_ips(new, None);
    },
    prepare_update,
    create: service::create,
    update: service::update,
    update_status: service::status,
    warnings: warnings::service,
    ..STATELESS
};

fn prepare_update(ctx: &Ctx, new: &mut Value, old: &Value) {
    if ctx.subresource == "status" {
        return keep(new, old, "spec");
    }
    keep(new, old, "status");
    patch_allocated(new, old);
    normalize_cluster_ips(new, Some(old));
    drop_type_dependent(new, old);
}

/// Everything but `ExternalName`.
pub fn needs_cluster_ip(s: &Value) -> bool {
    s.text("spec.type") != "ExternalName"
}

/// Whether its ports get node ports.
pub fn needs_node_port(s: &Value) -> bool {
    match s.text("spec.type") {
        "NodePort" => true,
        "LoadBalancer" => s.at("spec.allocateLoadBalancerNodePorts").as_bool().unwrap_or(true),
        _ => false,
    }
}

pub fn needs_health_check_node_port(s: &Value) -> bool {
    s.text("spec.type") == "LoadBalancer" && s.text("spec.externalTrafficPolicy") == "Local"
}

/// Keeps `clusterIP` and `clusterIPs[0]` one value, whichever of them an older client changed.
pub fn normalize_cluster_ips(new: &mut Value, old: Option<&Value>) {
    let ip = new.text("spec.clusterIP").to_owned();
    let Some(old) = old else {
        if !ip.is_empty() && new.list("spec.clusterIPs").is_empty() {
            set(new, "spec.clusterIPs", json!([ip]));
        }
        return;
    };
    let before = old.text("spec.clusterIP");
    if !old.list("spec.clusterIPs").is_empty() && new.list("spec.clusterIPs").is_empty() && before == ip {
        keep(new, old, "spec.clusterIPs");
    }
    if before != ip && same(old.at("spec.clusterIPs"), new.at("spec.clusterIPs")) {
        if ip.is_empty() {
            unset(new, "spec.clusterIPs");
        } else {
            set(new, "spec.clusterIPs", json!([ip]));
        }
    }
}

/// A client that replaces a service need not repeat what was allocated for it.
pub fn patch_allocated(new: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && needs_cluster_ip(new) {
        for f in ["spec.clusterIP", "spec.clusterIPs"] {
            if new.is_empty_at(f) && !old.is_empty_at(f) {
                keep(new, old, f);
            }
        }
    }
    if needs_node_port(old) && needs_node_port(new) {
        let used = |s: &Value| node_ports(s).into_iter().collect::<BTreeSet<_>>();
        let taken: BTreeSet<i64> = used(old).intersection(&used(new)).copied().collect();
        let by_name: BTreeMap<&str, i64> =
            old.list("spec.ports").iter().map(|p| (p.text("name"), p.int_or("nodePort", 0))).collect();
        for p in list_mut(new, "spec.ports") {
            let before = by_name.get(p.text("name")).copied().unwrap_or(0);
            if p.int_or("nodePort", 0) == 0 && before != 0 && !taken.contains(&before) {
                set(p, "nodePort", before);
            }
        }
    }
    if needs_health_check_node_port(old)
        && needs_health_check_node_port(new)
        && new.int_or("spec.healthCheckNodePort", 0) == 0
        && old.has("spec.healthCheckNodePort")
    {
        keep(new, old, "spec.healthCheckNodePort");
    }
}

/// The node ports that its ports name.
pub fn node_ports(s: &Value) -> Vec<i64> {
    s.list("spec.ports").iter().map(|p| p.int_or("nodePort", 0)).filter(|n| *n != 0).collect()
}

/// A change of type drops what only the old type had, unless the client changed that too.
fn drop_type_dependent(new: &mut Value, old: &Value) {
    let unchanged = |new: &Value, f: &str| same(new.at(f), old.at(f));
    if needs_cluster_ip(old) && !needs_cluster_ip(new) {
        if unchanged(new, "spec.clusterIP") && unchanged(new, "spec.clusterIPs") {
            unset(new, "spec.clusterIP");
            unset(new, "spec.clusterIPs");
        }
        for f in ["spec.ipFamilies", "spec.ipFamilyPolicy"] {
            if unchanged(new, f) {
                unset(new, f);
            }
        }
    }
    let has_ports = |s: &Value| matches!(s.text("spec.type"), "NodePort" | "LoadBalancer");
    if has_ports(old) && !has_ports(new) {
        let before: BTreeSet<i64> = node_ports(old).into_iter().collect();
        if node_ports(new).iter().all(|p| before.contains(p)) {
            for p in list_mut(new, "spec.ports") {
                unset(p, "nodePort");
            }
        }
    }
    let drops: [(bool, &str); 4] = [
        (needs_health_check_node_port(old) && !needs_health_check_node_port(new), "spec.healthCheckNodePort"),
        (
            old.text("spec.type") == "LoadBalancer" && new.text("spec.type") != "LoadBalancer",
            "spec.allocateLoadBalancerNodePorts",
        ),
        (old.text("spec.type") == "LoadBalancer" && new.text("spec.type") != "LoadBalancer", "spec.loadBalancerClass"),
        (externally_accessible(old) && !externally_accessible(new), "spec.externalTrafficPolicy"),
    ];
    for (gone, field) in drops {
        if gone && unchanged(new, field) {
            unset(new, field);
        }
    }
    if new.text("spec.type") != "LoadBalancer" {
        set(new, "status.loadBalancer", json!({}));
    }
}

pub fn externally_accessible(s: &Value) -> bool {
    match s.text("spec.type") {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !s.list("spec.externalIPs").is_empty(),
        _ => false,
    }
}

fn other_family(f: &str) -> &'static str {
    if f == "IPv4" { "IPv6" } else { "IPv4" }
}

/// Fills in `ipFamilyPolicy` and `ipFamilies` before addresses are allocated. `cluster`: the families that the cluster
/// has service ranges for, its default first.
pub fn default_ip_families(new: &mut Value, old: Option<&Value>, cluster: &[&str]) -> FieldErrors {
    if !needs_cluster_ip(new) {
        return Vec::new();
    }
    let spec = Path::new("spec");
    let headless_without_selector = new.text("spec.clusterIP") == "None" && new.is_empty_at("spec.selector");
    if !new.has("spec.ipFamilyPolicy") {
        match old.map(|o| o.at("spec.ipFamilyPolicy")).filter(|p| !p.is_null()) {
            Some(p) => set(new, "spec.ipFamilyPolicy", p.clone()),
            None if headless_without_selector => set(new, "spec.ipFamilyPolicy", "RequireDualStack"),
            None => set(new, "spec.ipFamilyPolicy", "SingleStack"),
        }
    }
    let policy = new.text("spec.ipFamilyPolicy").to_owned();
    let mut errs = reconcile_policy(new, old, &policy, &spec);
    let mut families: Vec<String> = new.texts("spec.ipFamilies").into_iter().map(str::to_owned).collect();
    for (i, ip) in new.texts("spec.clusterIPs").into_iter().enumerate() {
        if ip == "None" {
            break;
        }
        let family = if ip.contains(':') { "IPv6" } else { "IPv4" };
        if i >= families.len() {
            if cluster.contains(&family) {
                families.push(family.to_owned());
            } else {
                let m = format!("{family} is not configured on this cluster");
                errs.push(FieldError::invalid(
                    &spec.child("clusterIPs").index(i),
                    new.at("spec.clusterIPs").clone(),
                    m,
                ));
            }
        }
    }
    if errs.is_empty() && !headless_without_selector {
        let p = spec.child("ipFamilyPolicy");
        if policy == "RequireDualStack" && cluster.len() < 2 {
            errs.push(FieldError::invalid(
                &p,
                policy.clone(),
                "this cluster is not configured for dual-stack services",
            ));
        }
        for (i, f) in families.iter().enumerate().filter(|(_, f)| !cluster.contains(&f.as_str())) {
            let p = spec.child("ipFamilies").index(i);
            errs.push(FieldError::invalid(&p, f.as_str(), "not configured on this cluster"));
        }
    }
    if !errs.is_empty() {
        return errs;
    }
    if families.is_empty() {
        families.extend(cluster.first().map(|f| (*f).to_owned()));
    }
    if families.len() == 1 && policy != "SingleStack" && (headless_without_selector || cluster.len() == 2) {
        families.push(other_family(&families[0]).to_owned());
    }
    set(new, "spec.ipFamilies", families);
    errs
}

fn reconcile_policy(new: &mut Value, old: Option<&Value>, policy: &str, spec: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let p = spec.child("ipFamilyPolicy");
    let lists = [("spec.clusterIPs", "cluster IP", "cluster IPs"), ("spec.ipFamilies", "IP family", "IP families")];
    for (field, one, many) in lists {
        let n = new.list(field).len();
        if let Some(old) = old {
            let before = old.list(field);
            if policy == "SingleStack" {
                if same(old.at(field), new.at(field)) && n > 1 {
                    let first = new.list(field)[..1].to_vec();
                    set(new, field, first);
                }
            } else if before.len() == 2 && n == 1 && before[0] == new.list(field)[0] {
                let m = format!("must be 'SingleStack' to release the secondary {one}");
                errs.push(FieldError::invalid(&p, policy, m));
            }
        }
        if policy == "SingleStack" && new.list(field).len() == 2 {
            let m = format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {many} are specified");
            errs.push(FieldError::invalid(&p, policy, m));
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_api::UserInfo;

    fn update(new: Value, old: &Value) -> Value {
        let user = UserInfo::default();
        let ctx = Ctx { now: jiff::Timestamp::UNIX_EPOCH, user: &user, subresource: "", dry_run: false };
        let mut new = new;
        prepare_update(&ctx, &mut new, old);
        new
    }

    #[test]
    fn allocated_values_stay_until_the_type_changes() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "externalTrafficPolicy": "Cluster", "ports": [{"name": "a", "port": 80, "nodePort": 30000}]},
            "status": {"loadBalancer": {}}});
        let new = update(json!({"spec": {"type": "NodePort", "ports": [{"name": "a", "port": 81}]}}), &old);
        assert_eq!(
            (new.text("spec.clusterIP"), new["spec"]["ports"][0]["nodePort"].as_i64()),
            ("10.0.0.1", Some(30000))
        );
        let mut edited = old.clone();
        edited["spec"]["type"] = "ClusterIP".into();
        let new = update(edited, &old);
        assert_eq!(new["spec"]["ports"][0], json!({"name": "a", "port": 80}));
        assert!(!new.has("spec.externalTrafficPolicy") && new.has("spec.clusterIPs"));
        let mut edited = old.clone();
        edited["spec"]["type"] = "ExternalName".into();
        let new = update(edited, &old);
        assert!(!new.has("spec.clusterIP") && !new.has("spec.clusterIPs") && !new.has("spec.ipFamilies"));
        let new =
            update(json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.9", "clusterIPs": ["10.0.0.1"]}}), &old);
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.0.0.9"]));
    }

    #[test]
    fn families() {
        let fill = |spec: Value, cluster: &[&str]| {
            let mut s = json!({"spec": spec});
            let errs = default_ip_families(&mut s, None, cluster);
            (s.text("spec.ipFamilyPolicy").to_owned(), s.texts("spec.ipFamilies").join(","), errs.len())
        };
        let both = ["IPv4", "IPv6"];
        assert_eq!(fill(json!({}), &["IPv4"]), ("SingleStack".into(), "IPv4".into(), 0));
        assert_eq!(
            fill(json!({"ipFamilyPolicy": "PreferDualStack"}), &["IPv4"]),
            ("PreferDualStack".into(), "IPv4".into(), 0)
        );
        assert_eq!(
            fill(json!({"ipFamilyPolicy": "PreferDualStack"}), &both),
            ("PreferDualStack".into(), "IPv4,IPv6".into(), 0)
        );
        assert_eq!(fill(json!({"ipFamilyPolicy": "RequireDualStack"}), &["IPv4"]).2, 1);
        assert_eq!(fill(json!({"clusterIP": "None"}), &["IPv4"]), ("RequireDualStack".into(), "IPv4,IPv6".into(), 0));
        assert_eq!(
            fill(json!({"clusterIP": "None", "selector": {"a": "b"}}), &["IPv4"]),
            ("SingleStack".into(), "IPv4".into(), 0)
        );
        assert_eq!(fill(json!({"clusterIPs": ["fd00::1"]}), &["IPv4"]).2, 1);
    }
}
