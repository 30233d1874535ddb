//! `Impersonate-User` and its companions: a user who may acts as another one (`endpoints/filters/impersonation`). Rights to
//! do so that are limited, to kinds of users and to what is done as them, are tried before the one without limits.

use crate::ApiServer;
use crate::audit::Trail;
use crate::chain::check;
use http::HeaderMap;
use isopod_api::{Status, UserInfo, user};
use isopod_auth::Attributes;

/// The user that the request acts as. `None`: its sender. `attributes` are the request's own.
pub async fn apply(
    server: &ApiServer,
    headers: &HeaderMap,
    attributes: &Attributes,
    trail: &Trail,
) -> Result<Option<UserInfo>, Status> {
    let Some(wanted) = wanted(headers)? else { return Ok(None) };
    let mut denied = None;
    for mode in Mode::ALL.into_iter().filter(|m| m.is_for(&wanted, &attributes.user)) {
        match Box::pin((Check { server, mode, attributes }).run(&wanted)).await {
            Ok(acts_as) => {
                trail.impersonated(&acts_as, &mode.constraint());
                return Ok(Some(acts_as));
            }
            Err(status) => denied = denied.or(Some(status)),
        }
    }
    Err(denied.unwrap_or_else(|| Status::internal("all impersonation modes failed")))
}

/// What the headers ask for. `None`: nothing.
fn wanted(headers: &HeaderMap) -> Result<Option<UserInfo>, Status> {
    if !headers.keys().any(|name| name.as_str().starts_with("impersonate-")) {
        return Ok(None);
    }
    let all = |name: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
        values.map(str::to_owned).collect::<Vec<_>>()
    };
    let first = |name: &str| all(name).into_iter().next().unwrap_or_default();
    let extra = headers
        .keys()
        .filter_map(|k| k.as_str().strip_prefix("impersonate-extra-").map(|e| (k.as_str(), e)))
        .map(|(k, e)| (crate::request::percent_decode(e), all(k)));
    let user = UserInfo {
        name: first("impersonate-user"),
        uid: first("impersonate-uid"),
        groups: all("impersonate-group"),
        extra: extra.collect(),
    };
    match user.name.is_empty() {
        false => Ok(Some(user)),
        true if user.uid.is_empty() && user.groups.is_empty() && user.extra.is_empty() => Ok(None),
        true => Err(Status::bad_request(format!("requested {} without impersonating a user name", golang(&user)))),
    }
}

/// What a right to impersonate is limited to (KEP-5284); the last one is without limits, and the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// A service account as the node that its token names.
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    /// Anybody else.
    UserInfo,
    Legacy,
}

/// So many groups or extra values are first asked for as `*`.
const MANY: usize = 4;
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

impl Mode {
    const ALL: [Mode; 5] =
        [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo, Mode::Legacy];

    fn name(self) -> &'static str {
        match self {
            Mode::AssociatedNode => "associated-node",
            Mode::ArbitraryNode => "arbitrary-node",
            Mode::ServiceAccount => "serviceaccount",
            Mode::UserInfo => "user-info",
            Mode::Legacy => "",
        }
    }

    fn verb(self) -> String {
        if self == Mode::Legacy { "impersonate".into() } else { format!("impersonate:{}", self.name()) }
    }

    /// As the audit log has it.
    fn constraint(self) -> String {
        if self == Mode::Legacy { String::new() } else { self.verb() }
    }

    fn is_for(self, wanted: &UserInfo, requestor: &UserInfo) -> bool {
        let only_name = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        let (node, account) = (node_name(&wanted.name), account(&wanted.name));
        match self {
            Mode::AssociatedNode => {
                let own = requestor.extra.get(NODE_NAME).map(Vec::as_slice);
                only_name && account_of(requestor) && matches!((node, own), (Some(node), Some([own])) if node == own)
            }
            Mode::ArbitraryNode => only_name && node.is_some(),
            Mode::ServiceAccount => only_name && account.is_some(),
            Mode::UserInfo => node.is_none() && account.is_none(),
            Mode::Legacy => true,
        }
    }
}

fn account_of(user: &UserInfo) -> bool {
    account(&user.name).is_some()
}

/// Namespace and name of a service account's user name.
fn account(name: &str) -> Option<(&str, &str)> {
    let (namespace, account) = name.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let valid = isopod_api::names::dns1123_label(namespace).is_empty()
        && isopod_api::names::dns1123_subdomain(account).is_empty();
    valid.then_some((namespace, account))
}

fn node_name(name: &str) -> Option<&str> {
    name.strip_prefix("system:node:").filter(|n| isopod_api::names::dns1123_subdomain(n).is_empty())
}

/// The questions of one mode.
struct Check<'a> {
    server: &'a ApiServer,
    mode: Mode,
    attributes: &'a Attributes,
}

impl Check<'_> {
    async fn run(&self, wanted: &UserInfo) -> Result<UserInfo, Status> {
        if self.mode != Mode::Legacy {
            let verb = format!("impersonate-on:{}:{}", self.mode.name(), self.attributes.verb);
            let on = Attributes { verb, user: self.requestor(), ..self.attributes.clone() };
            check(self.server, &on).await?;
        }
        let mut acts_as = wanted.clone();
        self.name(&mut acts_as).await?;
        if !wanted.uid.is_empty() {
            self.ask(&self.about(AUTHENTICATION, "uids", &wanted.uid)).await?;
        }
        self.groups(&wanted.groups).await?;
        self.extra(wanted).await?;
        let anonymous = acts_as.name == user::ANONYMOUS;
        let everyone = if anonymous { user::UNAUTHENTICATED } else { user::AUTHENTICATED };
        let outside = !anonymous && acts_as.in_group(user::UNAUTHENTICATED);
        if !outside && !acts_as.in_group(everyone) {
            acts_as.groups.push(everyone.into());
        }
        Ok(acts_as)
    }

    /// Who asks. A service account that acts as its node is asked about without what tells its pods apart.
    fn requestor(&self) -> UserInfo {
        let mut user = self.attributes.user.clone();
        if self.mode == Mode::AssociatedNode {
            let keys = user.extra.keys().cloned().collect();
            user.extra = [("authentication.kubernetes.io/associated-node-keys".to_owned(), keys)].into();
        }
        user
    }

    fn about(&self, group: &str, resource: &str, name: &str) -> Attributes {
        Attributes {
            user: self.requestor(),
            verb: self.mode.verb(),
            is_resource: true,
            group: group.into(),
            version: "v1".into(),
            resource: resource.into(),
            name: name.into(),
            ..Default::default()
        }
    }

    async fn ask(&self, attributes: &Attributes) -> Result<(), Status> {
        check(self.server, attributes).await
    }

    /// The group of users and their groups: `""` of old.
    fn api_group(&self) -> &'static str {
        if self.mode == Mode::Legacy { "" } else { AUTHENTICATION }
    }

    async fn name(&self, acts_as: &mut UserInfo) -> Result<(), Status> {
        let mut about = self.about(self.api_group(), "users", &acts_as.name);
        if let Some(node) = node_name(&acts_as.name).filter(|_| self.mode != Mode::Legacy) {
            about.resource = "nodes".into();
            about.name = if self.mode == Mode::AssociatedNode { "*".into() } else { node.to_owned() };
            acts_as.groups = vec![NODES.into()];
        }
        if let Some((namespace, name)) = account(&acts_as.name) {
            about.resource = "serviceaccounts".into();
            (about.namespace, about.name) = (namespace.to_owned(), name.to_owned());
            if acts_as.groups.is_empty() {
                acts_as.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
            }
        }
        self.ask(&about).await
    }

    async fn groups(&self, groups: &[String]) -> Result<(), Status> {
        let about = |name: &str| self.about(self.api_group(), "groups", name);
        if self.mode != Mode::Legacy {
            if groups.iter().any(String::is_empty) {
                return Err(forbidden(&about(""), "impersonating the empty string group is not allowed"));
            }
            if groups.iter().any(|g| g == user::SYSTEM_MASTERS) {
                let why = "impersonating the system:masters group is not allowed";
                return Err(forbidden(&about(user::SYSTEM_MASTERS), why));
            }
            if groups.len() >= MANY && self.ask(&about("*")).await.is_ok() {
                return Ok(());
            }
        }
        for group in groups {
            self.ask(&about(group)).await?;
        }
        Ok(())
    }

    async fn extra(&self, wanted: &UserInfo) -> Result<(), Status> {
        let about = |key: &str, value: &str| Attributes {
            subresource: key.into(),
            ..self.about(AUTHENTICATION, "userextras", value)
        };
        if self.mode != Mode::Legacy && !wanted.extra.is_empty() {
            if let Some(why) = wanted.extra.iter().find_map(|(key, values)| fault(key, values)) {
                return Err(forbidden(&about("", ""), &why));
            }
            let values: usize = wanted.extra.values().map(Vec::len).sum();
            if values.max(wanted.extra.len()) >= MANY && self.ask(&about("*", "*")).await.is_ok() {
                return Ok(());
            }
        }
        for (key, values) in &wanted.extra {
            for value in values {
                self.ask(&about(key, value)).await?;
            }
        }
        Ok(())
    }
}

/// The group of nodes.
const NODES: &str = "system:nodes";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// What is wrong with an extra key or its values.
fn fault(key: &str, values: &[String]) -> Option<String> {
    let path = isopod_api::Path::new("extra").child("key");
    if key.is_empty() {
        return Some("impersonating the empty string key in extra is not allowed".into());
    }
    let wrong = isopod_api::names::domain_prefixed_path(&path, key);
    if !wrong.is_empty() {
        return Some(format!(
            "impersonating an invalid key in extra is not allowed: {}",
            isopod_api::aggregate(&wrong)
        ));
    }
    if key != key.to_lowercase() {
        return Some(format!("impersonating a non-lowercase key in extra is not allowed: {key:?}"));
    }
    match values {
        [] => Some("impersonating empty values in extra is not allowed".into()),
        all if all.iter().any(String::is_empty) => {
            Some("impersonating the empty string value in extra is not allowed".into())
        }
        _ => None,
    }
}

fn forbidden(attributes: &Attributes, why: &str) -> Status {
    let gvr = isopod_api::Gvr::new(AUTHENTICATION, "v1", &attributes.resource);
    Status::forbidden(&gvr, &attributes.name, format!("{}: {why}", attributes.refusal()))
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
