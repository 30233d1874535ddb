//! Image names as users write them, made whole: `busybox` is `docker.io/library/busybox:latest`.

use super::Digest;
use crate::types::RuntimeError;
use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Host and port.
    pub registry: String,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

const DEFAULT_REGISTRY: &str = "docker.io";

impl Reference {
    pub fn parse(text: &str) -> Result<Self, RuntimeError> {
        let bad = |why: &str| RuntimeError::InvalidImageName(text.into(), why.into());
        let (name, digest) = match text.split_once('@') {
            Some((name, d)) => (name, Some(d.parse::<Digest>().map_err(|_| bad("invalid reference format"))?)),
            None => (text, None),
        };
        // A colon after the last slash is a tag's; one before it a port's.
        let (name, tag) = match name.rsplit_once(':') {
            Some((n, t)) if !t.contains('/') => (n, Some(t.to_owned())),
            _ => (name, None),
        };
        if let Some(t) = &tag
            && !is_tag(t)
        {
            return Err(bad("invalid tag format"));
        }
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if is_host(first) => (first, rest.to_owned()),
            _ => (DEFAULT_REGISTRY, name.to_owned()),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        let repository = match repository.contains('/') || registry != DEFAULT_REGISTRY {
            true => repository,
            false => format!("library/{repository}"),
        };
        if repository.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(bad("repository name must be lowercase"));
        }
        if !repository.split('/').all(is_path_component) || registry.is_empty() {
            return Err(bad("invalid reference format"));
        }
        let tag = if tag.is_none() && digest.is_none() { Some("latest".into()) } else { tag };
        Ok(Reference { registry: registry.into(), repository, tag, digest })
    }

    /// `registry/repository:tag`
    pub fn tagged(&self) -> Option<String> {
        Some(format!("{}/{}:{}", self.registry, self.repository, self.tag.as_ref()?))
    }

    /// `registry/repository@digest`
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.registry, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(t) = &self.tag {
            write!(f, ":{t}")?;
        }
        self.digest.iter().try_for_each(|d| write!(f, "@{d}"))
    }
}

fn is_host(text: &str) -> bool {
    text == "localhost" || text.contains(['.', ':']) || text.chars().any(|c| c.is_ascii_uppercase())
}

fn is_tag(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= 128 && text.starts_with(word) && text.chars().all(|c| word(c) || matches!(c, '.' | '-'))
}

/// Letters and digits, with `.`, `_`, `__` or dashes between them.
fn is_path_component(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators = text.split(inner).filter(|s| !s.is_empty());
    text.starts_with(inner)
        && text.ends_with(inner)
        && separators.into_iter().all(|s| matches!(s, "." | "_" | "__") || s.chars().all(|c| c == '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_whole() {
        let digest = Digest::of(b"x");
        for (text, want) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("rancher/k3s", "docker.io/rancher/k3s:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/a/b:t", "localhost:5000/a/b:t"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("a.b/c__d.e-f", "a.b/c__d.e-f:latest"),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), want);
        }
        let by_digest = Reference::parse(&format!("busybox@{digest}")).unwrap();
        assert_eq!(by_digest.to_string(), format!("docker.io/library/busybox@{digest}"));
        assert_eq!(by_digest.tag, None);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in ["", "Busybox", "a b", "a//b", "x:", "x:-y", "x@sha256:12", "-a", "a_", "a.b/", "a/___/b"] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }
}
