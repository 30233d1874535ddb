//! `log`, `exec`, `attach` and `portforward`: requests that the kubelet answers. They go to it through the node's tunnel;
//! after an upgrade the bytes flow through unread.

use super::any_certificate;
use crate::ApiServer;
use crate::lasting::Lasting;
use crate::objects;
use crate::tunnel::Io;
use crate::verbs::Call;
use crate::{chain, request::Query};
use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use isopod_api::{Gvr, Status};
use isopod_streaming::messages;
use isopod_streaming::negotiate::{Transport, transport};
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::sync::Arc;

const KUBELET_PORT: u64 = 10250;
/// Headers that belong to one connection, not to the request.
const HOP: [header::HeaderName; 4] =
    [header::TE, header::TRAILER, header::TRANSFER_ENCODING, header::PROXY_AUTHORIZATION];

/// How a connection to a target is secured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Security {
    Plain,
    /// TLS with whoever answers there: pods have no certificate that this server could check.
    AnyCertificate,
    /// TLS with the kubelet's certificates.
    Kubelet,
}

/// Where a request leads.
pub struct Target {
    pub node: String,
    /// As seen from the node.
    pub address: String,
    pub security: Security,
    pub path: String,
}

pub async fn serve(server: &Arc<ApiServer>, call: Call, body: Body) -> Result<Response, Status> {
    let target = pod(server, &call).await?;
    let Some(target) = target else {
        // A pod that runs nowhere yet has no logs.
        let mut empty = Response::new(Body::empty());
        *empty.status_mut() = StatusCode::NO_CONTENT;
        return Ok(empty);
    };
    if is_upgrade(&call.parts.headers) && matches!(call.info.subresource.as_str(), "exec" | "attach" | "portforward") {
        // A WebSocket is opened with GET; what it does is what POST does.
        let mut attributes = call.info.attributes(&call.user);
        attributes.verb = "create".into();
        chain::check(server, &attributes).await?;
    }
    let request = Request::from_parts(call.parts, body);
    if call.info.subresource == "log" {
        log(server, &target, request).await
    } else {
        forward(server, &target, request).await
    }
}

/// Logs, as a body or as the messages of a WebSocket.
async fn log(server: &ApiServer, target: &Target, mut request: Request<Body>) -> Result<Response, Status> {
    let messages = match transport(request.headers()) {
        Some(Transport::WebSocket) => Some(messages::accept_bytes(&mut request)),
        _ => None,
    };
    for name in [header::CONNECTION, header::UPGRADE] {
        request.headers_mut().remove(name);
    }
    let response = forward(server, target, request).await?;
    if response.status().as_u16() >= 400 {
        return Err(node_status(response).await);
    }
    match messages {
        None => Ok(response),
        Some(Err(refusal)) => Ok(refusal.response()),
        Some(Ok((mut switching, messages))) => {
            let log = response.into_body().into_data_stream();
            Lasting::run(&mut switching, async move {
                if let Err(e) = messages.send(log).await {
                    tracing::debug!(error = %e, "a log over a WebSocket ended");
                }
            });
            Ok(switching)
        }
    }
}

/// What a kubelet refused, as a `Status`.
async fn node_status(response: Response) -> Status {
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    let reason = match code {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        _ => "InternalError",
    };
    let text = if text.is_empty() { "the server could not find the requested resource".to_owned() } else { text };
    Status::new(code, reason, text)
}

pub fn kubelet_port(node: &Value) -> u64 {
    node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().unwrap_or(KUBELET_PORT)
}

pub fn with_query(path: &str, query: Option<&str>) -> String {
    match query {
        Some(q) if !q.is_empty() => format!("{path}?{q}"),
        _ => path.to_owned(),
    }
}

async fn pod(server: &ApiServer, call: &Call) -> Result<Option<Target>, Status> {
    objects::check_key(&call.kind, &call.info.namespace, &call.info.name)?;
    let pod = server.read("", "pods", &call.info.namespace, &call.info.name).await?;
    let pod = &pod.ok_or_else(|| Status::not_found(&call.kind.gvr(), &call.info.name))?;
    let (namespace, name, sub) = (&call.info.namespace, &call.info.name, call.info.subresource.as_str());
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
    let container = if sub == "portforward" { String::new() } else { container(call, pod)? };
    if node.is_empty() {
        return if sub == "log" {
            Ok(None)
        } else {
            Err(Status::bad_request(format!("pod {name} does not have a host assigned")))
        };
    }
    let object = server.read("", "nodes", "", &node).await?;
    let object = object.ok_or_else(|| Status::not_found(&Gvr::new("", "v1", "nodes"), &node))?;
    let address = format!("127.0.0.1:{}", kubelet_port(&object));
    let query = kubelet_query(sub, &call.query);
    let path = match sub {
        "log" => format!("/containerLogs/{namespace}/{name}/{container}"),
        "portforward" => format!("/portForward/{namespace}/{name}"),
        other => format!("/{other}/{namespace}/{name}/{container}"),
    };
    Ok(Some(Target { node, address, security: Security::Kubelet, path: with_query(&path, Some(&query)) }))
}

/// The container that is meant, or upstream's question which one.
fn container(call: &Call, pod: &Value) -> Result<String, Status> {
    let names = |list: &str| -> Vec<&str> {
        pod["spec"][list].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
    };
    let (all, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let asked = call.query.get("container").unwrap_or_default();
    if !asked.is_empty() {
        let known = all.iter().chain(&init).chain(&ephemeral).any(|n| *n == asked);
        let m = format!("container {asked} is not valid for pod {}", call.info.name);
        return if known { Ok(asked.to_owned()) } else { Err(Status::bad_request(m)) };
    }
    match all[..] {
        [only] if init.is_empty() && ephemeral.is_empty() => Ok(only.to_owned()),
        [] => Err(Status::bad_request(format!("a container name must be specified for pod {}", call.info.name))),
        // kubectl names the default container itself; others are told what there is.
        _ if call.info.subresource != "log" && all.len() == 1 => Ok(all[0].to_owned()),
        [only] => Ok(only.to_owned()),
        _ => {
            let name = &call.info.name;
            let mut m =
                format!("a container name must be specified for pod {name}, choose one of: [{}]", all.join(" "));
            if !init.is_empty() {
                m.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            if !ephemeral.is_empty() {
                m.push_str(&format!(" or one of the ephemeral containers: [{}]", ephemeral.join(" ")));
            }
            Err(Status::bad_request(m))
        }
    }
}

/// The kubelet's names for the parameters of a stream; those of logs are the same.
fn kubelet_query(sub: &str, query: &Query) -> String {
    let mut out = Vec::new();
    let mut add = |key: &str, value: &str| out.push(format!("{key}={}", percent_encode(value)));
    match sub {
        "log" => {
            let keys =
                ["follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes", "stream"];
            for key in keys {
                if let Some(value) = query.get(key) {
                    add(key, value);
                }
            }
        }
        "portforward" => query.all("ports").for_each(|p| add("port", p)),
        _ => {
            for (theirs, ours) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
                if query.flag(theirs) {
                    add(ours, "1");
                }
            }
            query.all("command").for_each(|c| add("command", c));
        }
    }
    out.join("&")
}

fn percent_encode(s: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    s.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

pub fn is_upgrade(headers: &HeaderMap) -> bool {
    let connection = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    connection.flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case("upgrade"))
}

/// The host of `host:port`, without the brackets of IPv6.
fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']'])
}

async fn connect(server: &ApiServer, target: &Target) -> Result<Box<dyn Io>, Status> {
    let dial_error = |e: std::io::Error| {
        let m = format!("error dialing backend: {e}");
        let mut status = Status::internal(m);
        status.message = status.message.replacen("Internal error occurred: ", "", 1);
        status
    };
    let stream = server.dialer().dial(&target.node, &target.address).await.map_err(dial_error)?;
    let (config, name) = match target.security {
        Security::Plain => return Ok(stream),
        Security::AnyCertificate => (any_certificate::config(), host(&target.address).to_owned()),
        Security::Kubelet => {
            let config = server.config.kubelet_tls.clone();
            let config = config.ok_or_else(|| Status::internal("this server has no credentials for kubelets"))?;
            (config, target.node.clone())
        }
    };
    let name = ServerName::try_from(name).map_err(|e| Status::internal(format!("name of the server: {e}")))?;
    let tls = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.map_err(dial_error)?;
    Ok(Box::new(tls))
}

pub async fn forward(server: &ApiServer, target: &Target, mut request: Request<Body>) -> Result<Response, Status> {
    let stream = connect(server, target).await?;
    let failed = |e: hyper::Error| Status::new(502, "BadGateway", format!("error trying to reach the node: {e}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::spawn(async move {
        if let Err(e) = connection.with_upgrades().await {
            tracing::debug!(error = %e, "a connection to a node ended");
        }
    });
    let client = hyper::upgrade::on(&mut request);
    let upgrade = is_upgrade(request.headers());
    let (mut parts, body) = request.into_parts();
    parts.uri = target.path.parse::<Uri>().map_err(|e| Status::bad_request(e.to_string()))?;
    parts.version = http::Version::HTTP_11;
    parts.extensions = Default::default();
    for name in HOP {
        parts.headers.remove(name);
    }
    // The node trusts this server's certificate, not the client's token.
    parts.headers.remove(header::AUTHORIZATION);
    let impersonation: Vec<_> =
        parts.headers.keys().filter(|k| k.as_str().starts_with("impersonate-")).cloned().collect();
    impersonation.iter().for_each(|k| drop(parts.headers.remove(k)));
    if let (Security::Kubelet, Ok(host)) = (target.security, HeaderValue::from_str(&target.address)) {
        parts.headers.insert(header::HOST, host);
    }
    let mut answer = sender.send_request(Request::from_parts(parts, body)).await.map_err(failed)?;
    if upgrade && answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let node = hyper::upgrade::on(&mut answer);
        Lasting::run(&mut answer, async move {
            if let (Ok(client), Ok(node)) = tokio::join!(client, node) {
                let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
                let _ = tokio::io::copy_bidirectional(&mut client, &mut node).await;
            }
        });
    }
    for name in HOP {
        answer.headers_mut().remove(name);
    }
    Ok(answer.map(Body::new))
}
