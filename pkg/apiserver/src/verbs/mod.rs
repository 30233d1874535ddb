//! What requests for resources do: one file a verb.

pub mod create;
pub mod delete;
pub mod get;
pub mod list;
pub mod patch;
pub mod token;
pub mod update;
pub mod watch;

use crate::ApiServer;
use crate::audit::Trail;
use crate::cache::Moment;
use crate::cache::entry::{Entry, Filter};
use crate::encode::negotiate::{self, Form, LISTS, OBJECTS};
use crate::encode::{self, body};
use crate::options::WriteOptions;
use crate::ownership;
use crate::pipeline::Intent;
use crate::request::{Query, RequestInfo};
use crate::{component_status, reviews, subresources};
use axum::body::Body;
use axum::response::Response;
use futures::future::BoxFuture;
use http::request::Parts;
use isopod_api::selector::{FieldSelector, LabelSelector};
use isopod_api::{Status, UserInfo};
use isopod_kinds::Kind;
use jiff::Timestamp;
use parking_lot::Mutex;
use std::sync::Arc;

/// One authorized request for a resource that is served.
pub struct Call {
    pub info: Arc<RequestInfo>,
    pub query: Query,
    pub parts: Parts,
    pub user: UserInfo,
    pub kind: Arc<Kind>,
    /// Texts for `Warning` headers of the response.
    pub warnings: Arc<Mutex<Vec<String>>>,
    pub trail: Trail,
    pub now: Timestamp,
}

impl Call {
    pub fn form(&self) -> Result<Form, Status> {
        match self.kind.schema.custom {
            true => negotiate::custom_form(&self.parts.headers, &self.query),
            false => negotiate::form(&self.parts.headers, &self.query, true),
        }
    }

    pub fn intent(&self, options: &WriteOptions) -> Intent {
        Intent {
            kind: self.kind.clone(),
            namespace: if self.kind.namespaced { self.info.namespace.clone() } else { String::new() },
            name: self.info.name.clone(),
            subresource: self.info.subresource.clone(),
            user: self.user.clone(),
            manager: self.manager(options),
            dry_run: options.dry_run,
            options: options.shown.clone(),
            webhooks_asked: false,
            warnings: self.warnings.clone(),
            trail: self.trail.clone(),
            now: self.now,
            moment: Moment::default(),
        }
    }

    /// Who owns what this request writes: the manager that it names, else the client's program.
    pub fn manager(&self, options: &WriteOptions) -> String {
        match options.field_manager.as_str() {
            "" => {
                let agent = self.parts.headers.get(http::header::USER_AGENT);
                ownership::program(agent.map(|a| String::from_utf8_lossy(a.as_bytes())).as_deref().unwrap_or_default())
            }
            manager => manager.to_owned(),
        }
    }

    /// Go's type of the answer to this request, with or without `List` at its end.
    fn go_type(&self, list: &str) -> String {
        match self.kind.schema.custom {
            true => format!("*unstructured.Unstructured{list}"),
            false => format!("*{}{list}", isopod_kinds::golang::internal_type(&self.kind.gvk)),
        }
    }

    /// The form of a list.
    pub fn list_form(&self) -> Result<Form, Status> {
        let form = self.form()?;
        form.check(true, &self.go_type("List"))?;
        Ok(form)
    }

    /// The form of one object.
    pub fn object_form(&self) -> Result<Form, Status> {
        let form = self.form()?;
        form.check(false, &self.go_type(""))?;
        Ok(form)
    }

    /// The response that shows an entry.
    pub fn show(&self, code: u16, entry: &Entry, form: &Form) -> Response {
        body::response(code, form, encode::entry(&self.kind, &entry.body, form, self.now))
    }

    /// The selectors of a list, watch or deletecollection.
    pub fn filter(&self) -> Result<Filter, Status> {
        let labels = LabelSelector::parse(self.query.get("labelSelector").unwrap_or_default());
        let labels = labels.map_err(|e| Status::bad_request(e.to_string()))?;
        let fields = FieldSelector::parse(self.query.get("fieldSelector").unwrap_or_default());
        let mut fields = fields.map_err(|e| Status::bad_request(e.to_string()))?;
        for term in &mut fields.terms {
            self.kind.check_selectable(&term.field).map_err(Status::bad_request)?;
            term.field = self.kind.hooks.stored_field(&term.field).into_owned();
        }
        // `watch/<resource>/<name>` and the like.
        if !self.info.name.is_empty() && fields.exact("metadata.name").is_none() {
            let term = isopod_api::selector::FieldTerm {
                field: "metadata.name".into(),
                equal: true,
                value: self.info.name.clone(),
            };
            fields.terms.push(term);
        }
        let namespace = if self.kind.namespaced { self.info.namespace.clone() } else { String::new() };
        Ok(Filter { namespace, labels, fields })
    }

    /// What is stored: the kind that caches know.
    pub fn stored_kind(&self, server: &ApiServer) -> Arc<Kind> {
        server.registry.load().stored(&self.kind)
    }
}

/// Runs the verb.
pub async fn dispatch(server: &Arc<ApiServer>, call: Call, body: Body) -> Result<Response, Status> {
    if !call.info.subresource.is_empty() {
        return Box::pin(subresources::dispatch(server, call, body)).await;
    }
    let verb = call.info.verb.as_str();
    let collection = call.info.name.is_empty() || matches!(verb, "list" | "watch");
    let fits = match verb {
        "create" => call.info.name.is_empty(),
        "list" | "watch" | "deletecollection" => collection,
        "get" | "update" | "patch" | "delete" => !call.info.name.is_empty(),
        _ => false,
    };
    // Upstream's routes of objects know no HEAD.
    let head = call.parts.method == http::Method::HEAD;
    if head || !fits || !call.kind.verbs.iter().any(|v| v == verb) {
        return Err(not_allowed());
    }
    let everywhere = call.kind.namespaced && call.info.namespace.is_empty();
    // A path may name an empty namespace, in which nothing can be.
    if everywhere && !call.info.scoped && !matches!(verb, "list" | "watch") {
        return Err(not_allowed());
    }
    if everywhere && verb == "deletecollection" {
        return Err(Status::bad_request("Namespace parameter required."));
    }
    let deprecation = call.kind.hooks.deprecation();
    if !deprecation.is_empty() {
        call.warnings.lock().push(deprecation.to_owned());
        call.trail.annotate("k8s.io/deprecated", "true");
        server.metrics.requests.deprecated(&call.kind, &call.info.subresource, deprecation);
    }
    let representations: &[&str] = if matches!(verb, "list" | "watch") { &LISTS } else { &OBJECTS };
    if !call.kind.schema.custom {
        negotiate::acceptable(&call.parts.headers, representations)?;
    }
    // Boxed: what waits for it is copied on its way to hyper, and has room for the largest of them.
    let done: BoxFuture<'_, Result<Response, Status>> = match verb {
        "get" if component_status::is_asked_for(&call.kind) => Box::pin(component_status::get(server, &call)),
        "list" if component_status::is_asked_for(&call.kind) => Box::pin(component_status::list(server, &call)),
        "get" => Box::pin(get::get(server, &call)),
        "list" => Box::pin(list::list(server, &call)),
        "watch" => Box::pin(watch::watch(server, call)),
        "create" if reviews::is_review(&call.kind) => Box::pin(reviews::create(server, &call, body)),
        "create" if call.kind.gvk.kind == "Binding" && call.kind.gvk.group.is_empty() => {
            Box::pin(subresources::binding::create(server, &call, body))
        }
        "create" => Box::pin(create::create(server, &call, body)),
        "update" => Box::pin(update::update(server, &call, body)),
        "patch" => Box::pin(patch::patch(server, &call, body)),
        "delete" => Box::pin(delete::delete(server, &call, body)),
        _ => Box::pin(delete::delete_collection(server, &call, body)),
    };
    done.await
}

/// 405, as upstream's router says it.
pub fn not_allowed() -> Status {
    let m = "the server does not allow this method on the requested resource";
    let mut status = Status::new(405, "MethodNotAllowed", m);
    status.details = Some(Default::default());
    status
}
