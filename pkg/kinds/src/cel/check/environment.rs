//! What an expression may speak of, and what its names mean.

use super::functions::Library;
use super::types::Type;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Types with fields, by their names.
pub type Objects = BTreeMap<String, BTreeMap<String, Type>>;

#[derive(Clone, Default)]
pub struct Environment {
    pub library: Library,
    variables: BTreeMap<String, Type>,
    objects: Vec<Arc<Objects>>,
}

/// Words that are no names in CEL; a field of such a name is declared with underscores around it.
pub(in crate::cel) const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

impl Environment {
    pub fn new(library: Library) -> Self {
        Environment { library, ..Environment::default() }
    }

    #[must_use]
    pub fn variable(mut self, name: &str, t: Type) -> Self {
        self.variables.insert(name.to_owned(), t);
        self
    }

    #[must_use]
    pub fn objects(mut self, objects: Arc<Objects>) -> Self {
        self.objects.push(objects);
        self
    }

    /// A variable, or the name of a type.
    pub(super) fn global(&self, name: &str) -> Option<Type> {
        self.variables.get(name).cloned().or_else(|| self.type_named(name).map(|t| Type::Type(Some(Arc::new(t)))))
    }

    pub(super) fn type_named(&self, name: &str) -> Option<Type> {
        let dyn_list = || Type::list(Type::Dyn);
        Some(match name {
            "bool" => Type::Bool,
            "bytes" => Type::Bytes,
            "double" => Type::Double,
            "int" => Type::Int,
            "uint" => Type::Uint,
            "string" => Type::Text,
            "null_type" => Type::Null,
            "type" => Type::Type(None),
            "list" => dyn_list(),
            "map" => Type::map(Type::Dyn, Type::Dyn),
            "optional_type" => Type::optional(Type::Dyn),
            "timestamp" | "duration" if self.objects.is_empty() => return None,
            "google.protobuf.Timestamp" | "timestamp" => Type::Timestamp,
            "google.protobuf.Duration" | "duration" => Type::Duration,
            "google.protobuf.Any" => Type::Any,
            "google.protobuf.ListValue" => dyn_list(),
            "google.protobuf.Struct" => Type::map(Type::Text, Type::Dyn),
            "google.protobuf.Value" => Type::Dyn,
            name => match wrapped(name) {
                Some(scalar) => Type::Wrapper(Arc::new(scalar)),
                None if library_types().contains(&name) => return opaque(name),
                None => self.is_object(name).then(|| Type::object(name))?,
            },
        })
    }

    pub(super) fn is_object(&self, name: &str) -> bool {
        let made = self.library == Library::Patch && (name == "JSONPatch" || is_made(name));
        made || self.objects.iter().any(|o| o.contains_key(name))
    }

    /// Whether the type is one that can have fields.
    pub(super) fn has_fields(&self, name: &str) -> bool {
        self.is_object(name) || !library_types().contains(&name) && !name.starts_with("kubernetes.authorization.")
    }

    /// The type of a field; `None`: the object has none of this name.
    pub(super) fn field(&self, object: &str, field: &str) -> Option<Type> {
        if self.library == Library::Patch {
            match (object, field) {
                ("JSONPatch", "op" | "path" | "from") => return Some(Type::Text),
                ("JSONPatch", "value") => return Some(Type::Dyn),
                // What upstream tells of other fields is a type without a name.
                ("JSONPatch", _) => return Some(Type::Opaque("".into(), Arc::new([]))),
                (name, _) if is_made(name) => return Some(Type::Dyn),
                _ => {}
            }
        }
        let fields = self.objects.iter().find_map(|o| o.get(object));
        if let Some(fields) = fields {
            let reserved = || RESERVED.contains(&field).then(|| fields.get(&format!("__{field}__"))).flatten();
            return fields.get(field).or_else(reserved).cloned();
        }
        match (object, field) {
            ("google.protobuf.Timestamp" | "google.protobuf.Duration", "seconds" | "nanos") => Some(Type::Int),
            ("google.protobuf.Struct", "fields") => Some(Type::map(Type::Text, Type::Dyn)),
            ("google.protobuf.ListValue", "values") => Some(Type::list(Type::Dyn)),
            ("google.protobuf.Any", "type_url") => Some(Type::Text),
            ("google.protobuf.Any", "value") => Some(Type::Bytes),
            (name, "value") => wrapped(name),
            _ => None,
        }
    }
}

/// The types of objects that mutations make are named after the places of their fields.
fn is_made(name: &str) -> bool {
    name == "Object" || name.starts_with("Object.")
}

fn wrapped(name: &str) -> Option<Type> {
    Some(match name.strip_prefix("google.protobuf.")? {
        "BoolValue" => Type::Bool,
        "BytesValue" => Type::Bytes,
        "DoubleValue" | "FloatValue" => Type::Double,
        "Int64Value" | "Int32Value" => Type::Int,
        "UInt64Value" | "UInt32Value" => Type::Uint,
        "StringValue" => Type::Text,
        _ => return None,
    })
}

/// Types that Kubernetes' libraries bring along and whose names can be written.
fn library_types() -> &'static [&'static str] {
    &["kubernetes.Quantity", "kubernetes.URL", "kubernetes.Semver", "kubernetes.NamedFormat", "net.IP", "net.CIDR"]
}

fn opaque(name: &str) -> Option<Type> {
    Some(if name.starts_with("net.") { Type::Opaque(name.into(), Arc::new([])) } else { Type::object(name) })
}
