//! `/openapi/v2` and `/openapi/v3`: served from the documents that the configuration brings.

use crate::ApiServer;
use crate::request::Query;
use axum::response::Response;
use http::HeaderMap;
use isopod_api::Status;

/// Makes OpenAPI documents. The answer is complete: status, headers, body.
pub trait Documents: Send + Sync {
    /// `None`: no such document.
    fn get(&self, path: &str, query: &str, headers: &HeaderMap) -> Option<Response>;
}

pub fn serve(server: &ApiServer, path: &str, query: &Query, headers: &HeaderMap) -> Result<Response, Status> {
    let documents = server.config.openapi.as_ref().ok_or_else(Status::no_such_path)?;
    let hash = query.get("hash").unwrap_or_default();
    documents.get(path, hash, headers).ok_or_else(Status::no_such_path)
}
