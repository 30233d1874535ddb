//! Errors about one field of an object, with upstream's types and wording (`apimachinery/pkg/util/validation/field`).

use crate::status::Cause;
use serde_json::Value;
use std::fmt;

/// A path into an object: `spec.containers[0].ports[1].name`, `metadata.labels[app]`. Cheap to extend, printed once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    pub fn root() -> Self {
        Path(String::new())
    }
    pub fn new(first: &str) -> Self {
        Path(first.to_owned())
    }
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Path(name.to_owned()) } else { self.followed_by(&[".", name]) }
    }
    pub fn index(&self, i: usize) -> Self {
        self.followed_by(&["[", &i.to_string(), "]"])
    }
    pub fn key(&self, key: &str) -> Self {
        self.followed_by(&["[", key, "]"])
    }

    /// Validation makes a path for each place that it looks at: one allocation and no formatting.
    fn followed_by(&self, parts: &[&str]) -> Self {
        let mut text = String::with_capacity(self.0.len() + parts.iter().map(|p| p.len()).sum::<usize>());
        text.push_str(&self.0);
        parts.iter().for_each(|p| text.push_str(p));
        Path(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

/// What is wrong with the field. The name in `reason()` is what a `Status` cause carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldErrorType {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    TooFew,
    TooShort,
    Internal,
    TypeInvalid,
}

impl FieldErrorType {
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TooFew => "FieldValueTooFew",
            Self::TooShort => "FieldValueTooShort",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::TooFew => "Too few",
            Self::TooShort => "Too short",
            Self::Internal => "Internal error",
            Self::TypeInvalid => "Invalid value",
        }
    }
}

/// What an error says has changed. How it prints is known where the type is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub old: Value,
    pub new: Value,
    /// The type's definition: `io.k8s.api.core.v1.PodSpec`.
    pub definition: &'static str,
    /// Where only a part of it is meant, the struct of that part, which the type inlines; else empty.
    pub inlined: &'static str,
}

/// One field error. Build it with the constructors, which word it as upstream does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    pub kind: FieldErrorType,
    pub field: String,
    /// The offending value as it is shown (already quoted or encoded), `None` where upstream shows none.
    pub shown: Option<String>,
    pub detail: String,
    /// A declarative rule's: those are reported after the others.
    pub declared: bool,
    /// Printed behind the detail.
    pub difference: Option<Box<Difference>>,
    /// The path of the value that is shown, where it is another field's.
    pub value_of: Option<String>,
}

pub type FieldErrors = Vec<FieldError>;

/// How Go's `%#v`-like printing in field errors shows a value: strings quoted, scalars plain, the rest as JSON.
fn show(v: &Value) -> String {
    match v {
        Value::String(s) => format!("{s:?}"),
        Value::Number(n) if n.is_f64() => crate::float::go_text(n.as_f64().unwrap_or_default()),
        other => other.to_string(),
    }
}

fn plural(n: usize, noun: &str) -> String {
    if n == 1 { noun.to_owned() } else { format!("{noun}s") }
}

impl FieldError {
    fn new(kind: FieldErrorType, path: &Path, shown: Option<String>, detail: impl Into<String>) -> Self {
        FieldError {
            kind,
            field: path.to_string(),
            shown,
            detail: detail.into(),
            declared: false,
            difference: None,
            value_of: None,
        }
    }
    /// Marks it as a declarative rule's.
    pub fn declared(mut self) -> Self {
        self.declared = true;
        self
    }
    /// Shows the value of another field.
    pub fn showing(mut self, path: &Path) -> Self {
        self.value_of = Some(path.to_string());
        self
    }
    /// Adds what has changed.
    pub fn about(mut self, difference: Difference) -> Self {
        self.difference = Some(Box::new(difference));
        self
    }
    pub fn required(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorType::Required, path, None, detail)
    }
    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorType::Invalid, path, Some(show(&value.into())), detail)
    }
    /// The value is not shown.
    pub fn invalid_omitted(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorType::Invalid, path, None, detail)
    }
    pub fn type_invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorType::TypeInvalid, path, Some(show(&value.into())), detail)
    }
    pub fn duplicate(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorType::Duplicate, path, Some(show(&value.into())), "")
    }
    pub fn not_found(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorType::NotFound, path, Some(show(&value.into())), "")
    }
    pub fn forbidden(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorType::Forbidden, path, None, detail)
    }
    /// `valid` is sorted by the caller where upstream sorts it.
    pub fn not_supported(path: &Path, value: impl Into<Value>, valid: &[&str]) -> Self {
        let list = valid.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(", ");
        let detail = if valid.is_empty() { String::new() } else { format!("supported values: {list}") };
        Self::new(FieldErrorType::NotSupported, path, Some(show(&value.into())), detail)
    }
    pub fn too_long(path: &Path, max_bytes: usize) -> Self {
        Self::new(
            FieldErrorType::TooLong,
            path,
            None,
            format!("may not be more than {max_bytes} {}", plural(max_bytes, "byte")),
        )
    }
    /// A limit in characters, not bytes.
    pub fn too_long_characters(path: &Path, max: usize) -> Self {
        let detail = format!("may not be more than {max} {}", plural(max, "character"));
        Self::new(FieldErrorType::TooLong, path, None, detail)
    }
    pub fn too_short(path: &Path, min: usize) -> Self {
        let detail = format!("must be at least {min} {}", plural(min, "character"));
        Self::new(FieldErrorType::TooShort, path, None, detail)
    }
    pub fn too_many(path: &Path, actual: usize, max: usize) -> Self {
        let shown = Some(actual.to_string());
        Self::new(FieldErrorType::TooMany, path, shown, format!("must have at most {max} {}", plural(max, "item")))
    }
    pub fn too_few(path: &Path, actual: usize, min: usize) -> Self {
        let shown = Some(actual.to_string());
        Self::new(FieldErrorType::TooFew, path, shown, format!("must have at least {min} {}", plural(min, "item")))
    }
    pub fn internal(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorType::Internal, path, None, detail)
    }

    /// The message without the field: what a `Status` cause carries.
    pub fn body(&self) -> String {
        let mut s = self.kind.text().to_owned();
        if let Some(v) = &self.shown {
            s.push_str(": ");
            s.push_str(v);
        }
        if !self.detail.is_empty() {
            s.push_str(": ");
            s.push_str(&self.detail);
        }
        s
    }

    pub fn cause(&self) -> Cause {
        Cause { reason: self.kind.reason().to_owned(), message: self.body(), field: self.field.clone() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// Many errors as one text, which says the same thing once only.
pub fn aggregate(errors: &[FieldError]) -> String {
    let mut texts: Vec<String> = Vec::new();
    for e in errors.iter().map(ToString::to_string) {
        if !texts.contains(&e) {
            texts.push(e);
        }
    }
    match texts.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}
