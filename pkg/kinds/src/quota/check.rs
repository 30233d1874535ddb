//! Whether the quotas of a namespace allow a write, and what they have used up after it.

use super::amounts::Amounts;
use super::usage::Evaluator;
use crate::access::Access;
use jiff::Timestamp;
use serde_json::Value;

/// A write that quotas look at.
pub struct Change<'a> {
    pub new: &'a Value,
    /// `None`: the object is created.
    pub old: Option<&'a Value>,
    pub subresource: &'a str,
    pub now: Timestamp,
}

/// What quotas have used after the write: index in `quotas` and the new `status.used`, of those that it changes. An error
/// says which quota forbids it and why.
pub fn charge(evaluator: &Evaluator, quotas: &[Value], change: &Change) -> Result<Vec<(usize, Amounts)>, String> {
    if !evaluator.handles(change.subresource, change.new, change.old) {
        return Ok(Vec::new());
    }
    let mut concerned = Vec::new();
    for (i, quota) in quotas.iter().enumerate() {
        if concerns(evaluator, quota, change.new)? {
            concerned.push(i);
        }
    }
    let usage = evaluator.usage(change.new, change.now);
    let negative: Vec<&str> = usage.0.iter().filter(|(_, v)| v.sign() < 0).map(|(k, _)| k.as_str()).collect();
    if !negative.is_empty() {
        return Err(format!("quota usage is negative for resource(s): {}", negative.join(",")));
    }
    let before = change.old.map(|old| evaluator.usage(old, change.now));
    let mut charged = Vec::new();
    for i in concerned {
        let quota = &quotas[i];
        let delta = match (change.old, &before) {
            // What was in the quota's scope already is charged for its growth only.
            (Some(old), Some(before)) if evaluator.in_scopes(quota, old) => usage.increase_over(before),
            _ => usage.without_zeros(),
        };
        if let Some(used) = fit(quota, &delta, change.subresource != "status")? {
            charged.push((i, used));
        }
    }
    Ok(charged)
}

/// Whether the quota counts this object. An error: it cannot, because object or quota do not say enough.
fn concerns(evaluator: &Evaluator, quota: &Value, object: &Value) -> Result<bool, String> {
    let hard = quota.entries("status.hard");
    let mut names: Vec<&str> = hard.into_iter().map(|(name, _)| name).filter(|n| evaluator.counts(n)).collect();
    if names.is_empty() || !evaluator.in_scopes(quota, object) {
        return Ok(false);
    }
    names.sort_unstable();
    let name = quota.text("metadata.name");
    evaluator.must_specify(&names, object).map_err(|why| format!("failed quota: {name}: {why}"))?;
    if names.iter().any(|n| quota.entry("status.used", n).is_null()) {
        return Err(format!("status unknown for quota: {name}, resources: {}", names.join(",")));
    }
    Ok(true)
}

/// The quota's usage with `delta`; `None`: it stays. `limited`: more than it allows is an error.
fn fit(quota: &Value, delta: &Amounts, limited: bool) -> Result<Option<Amounts>, String> {
    let hard = Amounts::read(quota.at("status.hard"));
    let used = Amounts::read(quota.at("status.used"));
    let requested = delta.only(hard.names());
    if requested.is_empty() {
        return Ok(None);
    }
    let mut new = used.clone();
    new.add(&requested);
    let asked = new.only(requested.names());
    let over = asked.exceeding(&hard);
    if limited && !over.is_empty() {
        let only = |list: &Amounts| list.only(over.iter().copied());
        return Err(format!(
            "exceeded quota: {}, requested: {}, used: {}, limited: {}",
            quota.text("metadata.name"),
            only(&requested),
            only(&used),
            only(&hard)
        ));
    }
    Ok(Some(new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn quota(hard: Value, used: Value) -> Value {
        json!({"metadata": {"name": "q"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used}})
    }

    fn try_change(resource: &str, quota: Value, new: Value, old: Option<Value>, subresource: &str) -> String {
        let change = Change { new: &new, old: old.as_ref(), subresource, now: Timestamp::UNIX_EPOCH };
        match charge(&Evaluator::of(resource).unwrap(), &[quota], &change) {
            Ok(charged) => charged.iter().map(|(_, used)| used.to_string()).collect::<Vec<_>>().join(" "),
            Err(why) => why,
        }
    }

    #[test]
    fn creates_are_charged_up_to_the_limit() {
        let pod = |cpu: &str| json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        let check = |quota: Value, object: Value, want: &str| {
            assert_eq!(try_change("pods", quota, object, None, ""), want);
        };
        let hard = json!({"pods": "2", "requests.cpu": "1"});
        check(quota(hard.clone(), json!({"pods": "1", "requests.cpu": "400m"})), pod("600m"), "pods=2,requests.cpu=1");
        check(
            quota(hard.clone(), json!({"pods": "2", "requests.cpu": "400m"})),
            pod("700m"),
            "exceeded quota: q, requested: pods=1,requests.cpu=700m, used: pods=2,requests.cpu=400m, limited: pods=2,requests.cpu=1",
        );
        check(
            quota(hard.clone(), json!({"pods": "1"})),
            pod("1"),
            "status unknown for quota: q, resources: pods,requests.cpu",
        );
        let unsaid = json!({"spec": {"containers": [{"name": "c"}]}});
        check(quota(hard, json!({})), unsaid, "failed quota: q: must specify requests.cpu for: c");
        check(quota(json!({"services": "1"}), json!({"services": "1"})), pod("1"), "");
        let mut scoped = quota(json!({"pods": "0"}), json!({"pods": "0"}));
        scoped["spec"]["scopes"] = json!(["BestEffort"]);
        check(scoped, pod("1"), "");
    }

    #[test]
    fn updates_are_charged_for_what_they_add() {
        let service = |ty: &str| json!({"spec": {"type": ty, "ports": [{"port": 1}]}});
        let ports = |used: &str| quota(json!({"services.nodeports": "1"}), json!({"services.nodeports": used}));
        for (used, new, old, want) in [
            ("0", "NodePort", "ClusterIP", "services.nodeports=1"),
            ("1", "NodePort", "NodePort", ""),
            ("1", "ClusterIP", "NodePort", ""),
            (
                "1",
                "NodePort",
                "ClusterIP",
                "exceeded quota: q, requested: services.nodeports=1, used: services.nodeports=1, limited: services.nodeports=1",
            ),
        ] {
            assert_eq!(try_change("services", ports(used), service(new), Some(service(old)), ""), want, "{old} {new}");
        }
    }

    #[test]
    fn a_status_is_charged_without_a_limit() {
        let claim = |allocated: &str| json!({"spec": {"resources": {"requests": {"storage": "1Gi"}}}, "status": {"allocatedResources": {"storage": allocated}}});
        let quota = quota(json!({"requests.storage": "1Gi"}), json!({"requests.storage": "1Gi"}));
        let got = try_change("persistentvolumeclaims", quota, claim("3Gi"), Some(claim("1Gi")), "status");
        assert_eq!(got, "requests.storage=3Gi");
    }
}
