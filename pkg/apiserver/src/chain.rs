//! What every request passes through, in upstream's order: request id, panic recovery, request info, authentication, (audit,)
//! impersonation, priority and fairness, authorization, then the handler.

use crate::audit::{self, Ends, Layer, Trail};
use crate::authorization::Verdict;
use crate::encode::negotiate::{self, Form};
use crate::encode::{body, value};
use crate::request::{Query, RequestInfo, is_well_escaped};
use crate::tokens::Remarks;
use crate::verbs::{self, Call};
use crate::{
    ApiServer, aggregation, authn, connection, deadline, definitions, fairness, impersonate, metrics, nonresource,
    reviews, unread,
};
use axum::body::Body;
use axum::response::Response;
use futures::FutureExt;
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use isopod_api::{Gvr, Status, UserInfo};
use isopod_auth::{Attributes, Decision};
use isopod_kinds::Kind;
use parking_lot::Mutex;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Read once: a name in a text is looked at letter by letter each time.
const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// What Go's server answers before any handler to a path that cannot be decoded.
fn unreadable() -> Response {
    let mut response = nonresource::text("text/plain; charset=utf-8", "400 Bad Request");
    *response.status_mut() = http::StatusCode::BAD_REQUEST;
    response
}

/// Serves one request. Whatever happens, there is a response.
pub async fn serve(server: Arc<ApiServer>, mut request: Request<Body>) -> Response {
    let started = Instant::now();
    if !is_well_escaped(request.uri().path()) {
        return unreadable();
    }
    let id = audit_id(&request);
    let query = Query::parse(request.uri().query());
    let Ok(info) = RequestInfo::parse(request.method(), request.uri().path(), &query).map(Arc::new) else {
        let named = request.uri().path_and_query().map_or("", |p| p.as_str());
        let why = format!("unable to determine kind and namespace from url, {named}");
        let mut response = undecided(request.uri(), &format!("failed to create RequestInfo: {why}"));
        // It comes before what forbids keeping an answer.
        response.headers_mut().remove(header::CACHE_CONTROL);
        decorate(&mut response, &id, &[]);
        return response;
    };
    let form = negotiate::form(request.headers(), &query, false).unwrap_or_default();
    let warnings: Arc<Mutex<Vec<String>>> = Arc::default();
    request.headers_mut().insert(AUDIT_ID, id.clone());
    request.headers_mut().remove(header::EXPECT);
    let head = *request.method() == http::Method::HEAD;
    if deadline::goes_away(server.config.goaway_chance) {
        connection::end_after(request.version(), request.extensions());
    }
    let (request, rest) = unread::lend(request);
    let asked = metrics::Asked::of(&request, &query, started);
    let mark = OnceLock::new();
    let shown_id = String::from_utf8_lossy(id.as_bytes());
    let trail = Trail::begin(server.config.audit.as_ref(), &shown_id, server.config.clock.now());

    let handled = in_time(&server, request, info.clone(), query, warnings.clone(), trail.clone(), started, &mark);
    let mut ends = if info.is_long_running() { Ends::Late } else { Ends::Soon };
    let (outcome, elsewhere) = audit::apart(AssertUnwindSafe(handled).catch_unwind()).await;
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(_) => {
            tracing::error!(path = %info.path, verb = %info.verb, "a request panicked");
            ends = Ends::Panicked;
            Err(Status::internal("the server panicked while it handled the request").into())
        }
    };
    if outcome.is_err() {
        rest.read().await;
    }
    let terminated = matches!(&outcome, Err(Refusal::Limited(_) | Refusal::Late));
    let (mut response, failure) = match outcome {
        Ok(response) => (response, None),
        Err(Refusal::Unauthenticated(status)) => {
            ends = Ends::Unauthenticated;
            (failure(&status, &form), Some(status))
        }
        Err(refusal) => (refusal.response(&form), refusal.status()),
    };
    if head {
        // HTTP/1 drops it by itself; over HTTP/2 a client would take it as a breach of the protocol.
        *response.body_mut() = Body::empty();
    }
    if let Some(mark) = mark.get() {
        mark.write(&mut response);
    }
    decorate(&mut response, &id, &warnings.lock());
    let lasts = info.is_long_running() && failure.is_none();
    if !lasts && response.extensions().get::<connection::Deadline>().is_none() {
        response.extensions_mut().insert(connection::Deadline::soon());
    }
    response = trail.finish(response, failure.as_ref(), ends).await;
    let ended = metrics::Ended { elsewhere, terminated };
    server.metrics.requests.answered(&server, &asked, &info, ended, response)
}

/// Why a request was not served.
enum Refusal {
    /// Nobody knows who its sender is.
    Unauthenticated(Status),
    /// Its sender may not ask for that.
    Forbidden(Status),
    /// Nobody could tell whether its sender may: a plain text.
    Undecided(Uri, String),
    /// There is no seat for it.
    Limited(fairness::Rejection),
    /// It has had its time.
    Late,
    Failed(Status),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Refusal::Failed(status)
    }
}

impl Refusal {
    fn status(self) -> Option<Status> {
        match self {
            Refusal::Unauthenticated(status) | Refusal::Forbidden(status) | Refusal::Failed(status) => Some(status),
            Refusal::Undecided(..) => None,
            Refusal::Late => Some(deadline::passed()),
            Refusal::Limited(rejection) => Some(rejection.status()),
        }
    }

    fn response(&self, form: &Form) -> Response {
        match self {
            Refusal::Failed(status) | Refusal::Unauthenticated(status) => failure(status, form),
            Refusal::Late => failure(&deadline::passed(), form),
            Refusal::Limited(rejection) => rejection.response(),
            Refusal::Undecided(uri, why) => undecided(uri, why),
            // The words repeat what the sender wrote: no browser is to take them for something else.
            Refusal::Forbidden(status) => {
                let mut response = failure(status, form);
                response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
                response
            }
        }
    }
}

fn audit_id(request: &Request<Body>) -> HeaderValue {
    let given = request.headers().get(AUDIT_ID).filter(|v| !v.is_empty() && v.len() <= 64).cloned();
    given.unwrap_or_else(|| {
        let id = uuid::Uuid::new_v4().to_string();
        HeaderValue::from_str(&id).expect("a uuid is a valid header value")
    })
}

fn decorate(response: &mut Response, id: &HeaderValue, warnings: &[String]) {
    let headers = response.headers_mut();
    headers.insert(AUDIT_ID, id.clone());
    for text in warnings {
        let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let quoted = clean.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            headers.append("warning", value);
        }
    }
}

/// A `Status` as a response.
pub fn failure(status: &Status, form: &Form) -> Response {
    let form = Form { shape: Default::default(), ..form.clone() };
    let mut response = body::response(status.code, &form, value(&status.to_json(), &form));
    let retry = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    if retry > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, retry.into());
    }
    response
}

/// Handles the request within the time that it has.
#[allow(clippy::too_many_arguments, reason = "what is known of a request by then")]
async fn in_time(
    server: &Arc<ApiServer>,
    request: Request<Body>,
    info: Arc<RequestInfo>,
    query: Query,
    warnings: Arc<Mutex<Vec<String>>>,
    trail: Trail,
    arrived: Instant,
    mark: &OnceLock<Arc<fairness::Mark>>,
) -> Result<Response, Refusal> {
    let timeout = deadline::of(&info, &query, server.config.request_timeout)?;
    // Boxed: all that waits for it is copied on its way to hyper, and has room for it twice.
    let handled = Box::pin(authorized(server, request, info, query, warnings, trail, arrived, timeout, mark));
    let Some(timeout) = timeout else { return handled.await };
    let until = (arrived + timeout).into();
    match tokio::time::timeout_at(until, handled).await {
        Ok(outcome) => outcome.map(|mut response| {
            response.extensions_mut().insert(connection::Deadline(until));
            response
        }),
        Err(_) => Err(Refusal::Late),
    }
}

#[allow(clippy::too_many_arguments, reason = "what is known of a request by then")]
async fn authorized(
    server: &Arc<ApiServer>,
    request: Request<Body>,
    info: Arc<RequestInfo>,
    query: Query,
    warnings: Arc<Mutex<Vec<String>>>,
    trail: Trail,
    arrived: Instant,
    timeout: Option<Duration>,
    mark: &OnceLock<Arc<fairness::Mark>>,
) -> Result<Response, Refusal> {
    let (mut parts, body) = request.into_parts();
    let remarks = Remarks { warnings: &warnings, trail: &trail };
    let user = match trail.timed(Layer::Authentication, server.authenticate(&mut parts, &remarks)).await {
        Ok(user) => {
            if authn::is_nobody(&user) {
                connection::end_after(parts.version, &parts.extensions);
            }
            user
        }
        Err(status) => {
            connection::end_after(parts.version, &parts.extensions);
            trail.judge(&info.attributes(&UserInfo::default()), &parts);
            return Err(Refusal::Unauthenticated(status));
        }
    };
    let mut attributes = info.attributes(&user);
    trail.judge(&attributes, &parts);
    trail.received().await?;
    let impersonated = impersonate::apply(server, &parts.headers, &attributes, &trail);
    if let Some(other) = trail.timed(Layer::Impersonation, impersonated).await? {
        attributes.user = other;
    }
    let incoming = fairness::Incoming { info: &info, query: &query, user: &attributes.user, arrived, timeout };
    let passage = trail.timed(Layer::Queue, fairness::admit(server, incoming, mark)).await.map_err(Refusal::Limited)?;
    authorize(server, &attributes, &parts.uri, &trail).await?;
    let held = match passage {
        // It ends with the watch's beginning, not with its answer.
        fairness::Passage::Watch(beginning) => {
            parts.extensions.insert(beginning);
            fairness::Passage::Free
        }
        passage => passage,
    };
    let mut response = handle(server, info, query, parts, attributes.user, body, warnings, trail).await?;
    held.go_with(&mut response);
    Ok(response)
}

async fn handle(
    server: &Arc<ApiServer>,
    info: Arc<RequestInfo>,
    query: Query,
    parts: http::request::Parts,
    user: UserInfo,
    body: Body,
    warnings: Arc<Mutex<Vec<String>>>,
    trail: Trail,
) -> Result<Response, Status> {
    if let Some(elsewhere) = aggregation::elsewhere(server, &info) {
        return Ok(Box::pin(elsewhere.serve(server, &info, parts, &user, body)).await);
    }
    // Who may ask does not depend on it, but upstream serves no such spelling.
    if info.path.starts_with("//") || info.path.starts_with("/apis//") {
        return Ok(nonresource::not_found());
    }
    if !info.is_resource {
        return Box::pin(nonresource::serve(server, &info, &query, Request::from_parts(parts, body), user)).await;
    }
    let find = || server.registry.load().get(&info.group, &info.version, &info.resource).cloned();
    let mut kind = find();
    if kind.as_ref().is_none_or(|k| k.schema.custom) {
        match definitions::fresh(server).await {
            // With the datastore away, what was served before still is, as far as its caches go.
            Err(e) if kind.is_none() => return Err(e),
            _ => kind = find(),
        }
    }
    let Some(kind) = kind.filter(|k| leads_to(&info, k)) else { return unrouted(server, &info) };
    let now = server.config.clock.now();
    let call = Call { info, query, parts, user, kind, warnings, trail, now };
    verbs::dispatch(server, call, body).await
}

/// Whether the path is one of the kind's: with a namespace if it has one, and no longer than what it names.
fn leads_to(info: &RequestInfo, kind: &Kind) -> bool {
    let many = matches!(info.verb.as_str(), "list" | "watch");
    if kind.schema.custom {
        return if kind.namespaced { many || !info.namespace.is_empty() } else { info.namespace.is_empty() };
    }
    if !kind.namespaced {
        return !info.scoped;
    }
    // Nothing but objects is watched below `watch/`.
    if info.verb == "watch" && info.depth > 2 && !info.name.is_empty() {
        return false;
    }
    // What cannot be listed over all namespaces has no path without one; nor has a single object.
    let listed = kind.verbs.iter().any(|v| v == "list");
    info.scoped || info.depth < 2 && (listed || reviews::is_review(kind))
}

/// A group that is compiled in answers as an API does; the others come and go with their definitions.
fn unrouted(server: &ApiServer, info: &RequestInfo) -> Result<Response, Status> {
    let registry = server.registry.load();
    let of_group = |k: &&Arc<Kind>| k.gvk.group == info.group && !k.schema.custom;
    match registry.all().iter().any(|k| of_group(&k)) {
        true => Err(no_such_path()),
        false => Ok(nonresource::not_found()),
    }
}

pub fn no_such_path() -> Status {
    Status::no_such_path()
}

/// 403 unless an authorizer allows it; 500 when none does and one could not be asked.
async fn authorize(server: &ApiServer, attributes: &Attributes, uri: &Uri, trail: &Trail) -> Result<(), Refusal> {
    let began = Instant::now();
    let verdict = decide(server, attributes).await;
    let took = began.elapsed();
    server.metrics.attempts.authorized(&verdict, took);
    trail.took(Layer::Authorization, took);
    let Verdict { decision, error } = verdict;
    let allowed = matches!(decision, Decision::Allow(_));
    if !allowed && !error.is_empty() {
        tracing::warn!(path = uri.path(), error, "unable to authorize the request");
        trail.annotate("authorization.k8s.io/reason", "internal error");
        return Err(Refusal::Undecided(uri.clone(), error));
    }
    let (Decision::Allow(reason) | Decision::Deny(reason) | Decision::NoOpinion(reason)) = decision;
    trail.annotate("authorization.k8s.io/decision", if allowed { "allow" } else { "forbid" });
    trail.annotate("authorization.k8s.io/reason", reason.as_str());
    if allowed { Ok(()) } else { Err(Refusal::Forbidden(refusal(attributes, &reason))) }
}

/// What Go's server says when something goes wrong before there is a handler.
fn undecided(uri: &Uri, why: &str) -> Response {
    let path = uri.path_and_query().map_or("", |p| p.as_str());
    let text = unmarked(&format!("Internal Server Error: {path:?}: {why}"));
    let mut response = nonresource::text("text/plain; charset=utf-8", format!("{text}\n"));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// No browser is to take a text for a page.
fn unmarked(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// What the authorizers say. They refuse only what they would refuse with all that is committed by now: a right that was
/// granted before the request is honoured, and a kubelet that has just seen a pod may ask for its token.
pub async fn decide(server: &ApiServer, attributes: &Attributes) -> Verdict {
    let verdict = server.config.authorizer.authorize(attributes).await;
    let Some(access) = server.config.access.as_ref().filter(|_| !verdict.is_allowed()) else { return verdict };
    match server.config.store.revisions().await {
        Ok((newest, _)) if access.wait(newest).await => server.config.authorizer.authorize(attributes).await,
        _ => verdict,
    }
}

/// Asks the authorizers about any attributes; 403 unless they allow them.
pub async fn check(server: &ApiServer, attributes: &Attributes) -> Result<(), Status> {
    let Verdict { decision, error } = decide(server, attributes).await;
    match decision {
        Decision::Allow(_) => Ok(()),
        Decision::Deny(reason) | Decision::NoOpinion(reason) => {
            let said: Vec<&str> = [error.as_str(), reason.as_str()].into_iter().filter(|s| !s.is_empty()).collect();
            Err(refusal(attributes, &said.join(": ")))
        }
    }
}

/// 403, and why.
fn refusal(attributes: &Attributes, reason: &str) -> Status {
    let mut sentence = attributes.refusal();
    if !reason.is_empty() {
        sentence.push_str(": ");
        sentence.push_str(reason);
    }
    if !attributes.is_resource {
        let mut status = Status::new(403, "Forbidden", format!("forbidden: {sentence}"));
        status.details = Some(Default::default());
        return status;
    }
    let gvr = Gvr::new(attributes.group.clone(), attributes.version.clone(), attributes.resource.clone());
    Status::forbidden(&gvr, &attributes.name, sentence)
}
