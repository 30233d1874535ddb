//! `Impersonate-User` and its companions: a user who may acts as another one.

use crate::ApiServer;
use crate::audit::Trail;
use crate::chain::check;
use http::HeaderMap;
use isopod_api::{Status, UserInfo, user};
use isopod_auth::Attributes;

/// The user that the request acts as.
pub async fn apply(
    server: &ApiServer,
    headers: &HeaderMap,
    requestor: UserInfo,
    trail: &Trail,
) -> Result<UserInfo, Status> {
    let all = |name: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
        values.map(str::to_owned).collect::<Vec<_>>()
    };
    let name = all("impersonate-user").into_iter().next().unwrap_or_default();
    let (groups, uid) = (all("impersonate-group"), all("impersonate-uid").into_iter().next().unwrap_or_default());
    let extra: Vec<(String, Vec<String>)> = headers
        .keys()
        .filter_map(|k| k.as_str().strip_prefix("impersonate-extra-").map(|e| (k.as_str(), e)))
        .map(|(k, e)| (crate::request::percent_decode(e), all(k)))
        .collect();
    if name.is_empty() {
        if groups.is_empty() && uid.is_empty() && extra.is_empty() {
            return Ok(requestor);
        }
        let user = UserInfo { uid, groups, extra: extra.into_iter().collect(), ..Default::default() };
        return Err(Status::bad_request(format!("requested {} without impersonating a user name", golang(&user))));
    }
    let ask = async |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let attributes = Attributes {
            user: requestor.clone(),
            verb: "impersonate".into(),
            is_resource: true,
            group: group.into(),
            version: "v1".into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Default::default()
        };
        check(server, &attributes).await
    };
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, account)) => ask("", "serviceaccounts", "", namespace, account).await?,
        None => ask("", "users", "", "", &name).await?,
    }
    for group in &groups {
        ask("", "groups", "", "", group).await?;
    }
    for (key, values) in &extra {
        for value in values {
            ask("authentication.k8s.io", "userextras", key, "", value).await?;
        }
    }
    if !uid.is_empty() {
        ask("authentication.k8s.io", "uids", "", "", &uid).await?;
    }
    let mut acts_as = UserInfo { name: name.clone(), uid, groups, extra: extra.into_iter().collect() };
    if let (Some((namespace, _)), true) = (account, acts_as.groups.is_empty()) {
        acts_as.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    }
    let everyone = if name == user::ANONYMOUS { user::UNAUTHENTICATED } else { user::AUTHENTICATED };
    if !acts_as.in_group(everyone) {
        acts_as.groups.push(everyone.into());
    }
    trail.impersonated(&acts_as, "");
    Ok(acts_as)
}

/// A user as Go prints it, which is how upstream's error shows it.
fn golang(user: &UserInfo) -> String {
    let strings = |list: &[String]| match list {
        [] => "[]string(nil)".to_owned(),
        all => format!("[]string{{{}}}", all.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ")),
    };
    let extra = match user.extra.is_empty() {
        true => "map[string][]string(nil)".to_owned(),
        false => {
            let pairs: Vec<String> = user.extra.iter().map(|(k, v)| format!("{k:?}:{}", strings(v))).collect();
            format!("map[string][]string{{{}}}", pairs.join(", "))
        }
    };
    let (name, uid, groups) = (&user.name, &user.uid, strings(&user.groups));
    format!("&user.DefaultInfo{{Name:{name:?}, UID:{uid:?}, Groups:{groups}, Extra:{extra}}}")
}
