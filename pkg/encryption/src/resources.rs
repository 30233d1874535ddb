//! Which resource a key of the store belongs to.

use std::collections::HashMap;

/// The resources whose keys do not follow the rule for custom ones, `/registry/<group>/<plural>/…`.
pub struct Resources(HashMap<String, (String, String)>);

impl Resources {
    /// From what stands between `/registry/` and the names of objects, with group and resource: `("secrets", "", "secrets")`.
    pub fn new(prefixes: impl IntoIterator<Item = (String, String, String)>) -> Self {
        Resources(prefixes.into_iter().map(|(prefix, group, resource)| (prefix, (group, resource))).collect())
    }

    /// Group and resource of a key; `None`: it is no object's.
    pub fn of<'a>(&'a self, key: &'a [u8]) -> Option<(&'a str, &'a str)> {
        let path = std::str::from_utf8(key).ok()?.strip_prefix("/registry/")?;
        let (first, rest) = path.split_once('/')?;
        let two = rest.split_once('/').map(|(second, _)| (second, &path[..first.len() + 1 + second.len()]));
        let known = two.and_then(|(_, both)| self.0.get(both)).or_else(|| self.0.get(first));
        if let Some((group, resource)) = known {
            return Some((group, resource));
        }
        let (second, _) = two?;
        first.contains('.').then_some((first, second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_built_in_and_custom_resources() {
        let row = |p: &str, g: &str, r: &str| (p.to_owned(), g.to_owned(), r.to_owned());
        let table = Resources::new([
            row("secrets", "", "secrets"),
            row("deployments", "apps", "deployments"),
            row("services/specs", "", "services"),
            row("leases", "coordination.k8s.io", "leases"),
        ]);
        for (key, want) in [
            ("/registry/secrets/default/a", Some(("", "secrets"))),
            ("/registry/deployments/default/web", Some(("apps", "deployments"))),
            ("/registry/services/specs/default/web", Some(("", "services"))),
            ("/registry/shop.example.com/widgets/default/a", Some(("shop.example.com", "widgets"))),
            ("/registry/shop.example.com/widgets/a", Some(("shop.example.com", "widgets"))),
            ("/registry/ranges/serviceips", None),
            ("/isopod/x", None),
        ] {
            assert_eq!(table.of(key.as_bytes()), want, "{key}");
        }
    }
}
