//! How many watches a write will wake, by what they watch: a guess that costs a look into a map.

use crate::request::RequestInfo;
use isopod_api::selector::FieldTerm;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Group, resource, namespace and name; what is empty is not restricted.
type Watched = [String; 4];

/// The watches that run.
#[derive(Default)]
pub struct Watches(Mutex<HashMap<Watched, usize>>);

/// A watch that runs; it is forgotten with this value.
pub struct Registration(Option<(Arc<Watches>, Watched)>);

impl Watches {
    pub fn register(self: &Arc<Self>, info: &RequestInfo) -> Registration {
        // A kubelet's watch sees only the pods of its node: few writes concern it.
        let on_node = |t: &FieldTerm| t.equal && t.field == "spec.nodeName" && !t.value.is_empty();
        if info.resource == "pods" && info.fields.iter().any(on_node) {
            return Registration(None);
        }
        let watched = [&info.group, &info.resource, &info.namespace, &info.name].map(Clone::clone);
        *self.0.lock().entry(watched.clone()).or_default() += 1;
        Registration(Some((self.clone(), watched)))
    }

    /// How many watches may be interested in a write.
    pub fn interested(&self, info: &RequestInfo) -> usize {
        let known = self.0.lock();
        if known.is_empty() {
            return 0;
        }
        let count = |namespace: &str, name: &str| {
            let watched = [&info.group, &info.resource, namespace, name].map(str::to_owned);
            known.get(&watched).copied().unwrap_or_default()
        };
        let mut all = count("", "");
        if !info.namespace.is_empty() {
            all += count(&info.namespace, "");
        }
        if !info.name.is_empty() {
            all += count(&info.namespace, &info.name);
        }
        all
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some((watches, watched)) = self.0.take() else { return };
        let mut known = watches.0.lock();
        if let Some(n) = known.get_mut(&watched) {
            *n -= 1;
            if *n == 0 {
                known.remove(&watched);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Query;
    use http::Method;

    fn info(method: Method, uri: &str) -> RequestInfo {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        RequestInfo::parse(&method, path, &Query::parse(Some(query))).unwrap()
    }

    #[test]
    fn a_write_concerns_watches_of_all_of_its_namespace_and_of_itself() {
        let watches = Arc::new(Watches::default());
        let watch = |uri: &str| watches.register(&info(Method::GET, uri));
        let all = watch("/api/v1/pods?watch=1");
        let others = [
            watch("/api/v1/namespaces/a/pods?watch=1"),
            watch("/api/v1/namespaces/b/pods?watch=1"),
            watch("/api/v1/namespaces/a/pods?watch=1&fieldSelector=metadata.name%3Dx"),
            watch("/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn"),
            watch("/api/v1/configmaps?watch=1"),
        ];
        assert_eq!(watches.interested(&info(Method::PUT, "/api/v1/namespaces/a/pods/x")), 3);
        assert_eq!(watches.interested(&info(Method::POST, "/api/v1/namespaces/b/pods")), 2);
        assert_eq!(watches.interested(&info(Method::POST, "/api/v1/namespaces/c/pods")), 1);
        drop(all);
        assert_eq!(watches.interested(&info(Method::POST, "/api/v1/namespaces/c/pods")), 0);
        drop(others);
        assert!(watches.0.lock().is_empty());
    }
}
