//! What operations do, in upstream's words: these follow from the action and the kind, as upstream's installer of routes and its
//! builder of documents for custom resources put them together.

use isopod_kinds::Kind;

/// Reading what is served under a path without resources.
pub const VERSIONS: &str = "get available API versions";
pub const GROUP: &str = "get information of a group";
pub const RESOURCES: &str = "get available resources";
pub const VERSION: &str = "get the version information for this server";
pub const OPENID_CONFIGURATION: &str =
    "get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'";
pub const OPENID_KEYS: &str =
    "get service account issuer OpenID JSON Web Key Set (contains public token verification keys)";

/// An operation on a kind, or on a subresource of it.
pub fn operation(action: &str, kind: &Kind, subresource: &str) -> String {
    let noun = kind.gvk.kind.as_str();
    let part = if subresource.is_empty() { String::new() } else { format!(" {subresource} of") };
    match action {
        "get" => format!("read{part} the specified {noun}"),
        "put" => format!("replace{part} the specified {noun}"),
        "patch" => format!("partially update{part} the specified {noun}"),
        "post" => format!("create{part}{}{noun}", article(noun)),
        "delete" => format!("delete{part}{}{noun}", article(noun)),
        "deletecollection" => format!("delete collection of {noun}"),
        "list" if kind.schema.custom || !kind.verbs.iter().any(|v| v == "watch") => {
            format!("list objects of kind {noun}")
        }
        "list" => format!("list or watch objects of kind {noun}"),
        "watch" => format!(
            "watch changes to an object of kind {noun}. deprecated: use the 'watch' parameter with a list operation instead, \
             filtered to a single item with the 'fieldSelector' parameter."
        ),
        "watchlist" => format!(
            "watch individual changes to a list of {noun}. deprecated: use the 'watch' parameter with a list operation instead."
        ),
        other => format!("{other}{part} {noun}"),
    }
}

/// A connection to a subresource.
pub fn connection(method: &str, kind: &Kind, subresource: &str) -> String {
    format!("connect {} requests to {subresource} of {}", method.to_uppercase(), kind.gvk.kind)
}

/// What an object is called in a path.
pub fn name_of(kind: &str) -> String {
    format!("name of the {kind}")
}

/// With the spaces around it. Plurals have none.
fn article(noun: &str) -> &'static str {
    if noun.ends_with('s') && !noun.ends_with("ss") {
        " "
    } else if noun.starts_with(['A', 'E', 'I', 'O', 'U', 'a', 'e', 'i', 'o', 'u']) {
        " an "
    } else {
        " a "
    }
}
