//! The two ways to reach the API server: a `tower` service in this process, or TLS to a kubeconfig's server.

use crate::Error;
use crate::https::Https;
use http::{Request, Response};
use isopod_api::UserInfo;
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::path::Path;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};

/// A client whose requests go straight to `service` as `user`. Must be called within a tokio runtime.
///
/// The identity travels in the request's extensions, which no remote peer can set.
pub fn in_process<S, B>(service: S, user: UserInfo) -> Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let agent = http::HeaderValue::from_str(&program(&user.name)).ok();
    let service = service.map_request(move |mut request: Request<Body>| {
        request.extensions_mut().insert(user.clone());
        if let Some(agent) = agent.clone().filter(|_| !request.headers().contains_key(http::header::USER_AGENT)) {
            request.headers_mut().insert(http::header::USER_AGENT, agent);
        }
        request
    });
    Client::new(service, "default")
}

/// The program that upstream has in a user's place: it owns the fields that the user writes.
fn program(user: &str) -> String {
    if user.starts_with("system:serviceaccount:kube-system:") {
        return "kube-controller-manager".into();
    }
    if user.starts_with("system:node:") {
        return "kubelet".into();
    }
    user.strip_prefix("system:").unwrap_or(user).replace([':', '/'], "-")
}

/// Who `user` is by its name alone: a service account's groups are in its name, other components have none.
pub fn component(user: &str) -> UserInfo {
    let Some(account) = user.strip_prefix("system:serviceaccount:") else { return UserInfo::new(user, &[]) };
    let namespace = account.split(':').next().unwrap_or_default();
    UserInfo::new(user, &["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}")])
}

/// A client of the server in a kubeconfig file. `user_agent` says which program asks.
pub async fn tls(kubeconfig: &Path, user_agent: &str) -> Result<Client, Error> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).map_err(Error::Kubeconfig)?;
    from_kubeconfig(kubeconfig, user_agent).await
}

/// As [`tls`], from a kubeconfig that is already read.
pub async fn from_kubeconfig(kubeconfig: Kubeconfig, user_agent: &str) -> Result<Client, Error> {
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(Error::Kubeconfig)?;
    if let Ok(agent) = http::HeaderValue::from_str(user_agent) {
        config.headers.push((http::header::USER_AGENT, agent));
    }
    // Nothing is tried again here: who calls decides, because a create that timed out may have happened.
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(Error::Client)?)
        .layer(config.extra_headers_layer().map_err(Error::Client)?)
        .map_err(BoxError::from)
        .service(Https::new(&config)?);
    Ok(Client::new(service, config.default_namespace))
}
