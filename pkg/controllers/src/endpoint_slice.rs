//! Keeps the endpoint slices of services that select pods.
//!
//! Watches services, pods, nodes and slices; writes slices (`discovery.k8s.io/v1`) with the label
//! `endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io`. Invariants: each endpoint of a service stands
//! in one slice of each family; a slice has at most 100 endpoints and one set of ports; slices are changed as little as
//! possible, because every proxy of the cluster reads every change; a service without endpoints has one empty slice.

pub(crate) mod plan;

use crate::controller::{Context, Controller, Error, Key};
use crate::expectations::Expectations;
use crate::op::Op;
use crate::service_pods::{feed_pods, matches, selects};
use async_trait::async_trait;
use isopod_client::queue::WorkQueue;
use isopod_client::views::{EndpointSlice, Node, Pod, Service};
use isopod_client::{Change, Informer};
use std::sync::Arc;
use std::time::Duration;

struct EndpointSlices {
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    expectations: Arc<Expectations>,
}

/// Index of our slices by `namespace/service`.
const BY_SERVICE: &str = "service";

pub async fn run(context: Context) {
    let services = context.informer::<Service>(Service::resource());
    let pods = context.informer::<Pod>(Pod::resource());
    let nodes = context.informer::<Node>(Node::resource());
    let slices = context.informer::<EndpointSlice>(EndpointSlice::resource());
    slices.add_index(BY_SERVICE, |s| plan::service_of(s).map(|k| k.to_string()).into_iter().collect());
    services.synced().await;
    pods.synced().await;
    nodes.synced().await;
    slices.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    let expectations = Arc::new(Expectations::new(context.clock.clone()));
    context.feed_own(&services, &queue);
    feed_pods(&context, &services, &pods, &queue);
    feed_slices(&context, &slices, &queue, &expectations);
    feed_nodes(&context, &services, &nodes, &queue);
    let controller = Arc::new(EndpointSlices { context: context.clone(), services, pods, nodes, slices, expectations });
    context.work(controller, queue, 5).await;
}

fn feed_slices(
    context: &Context,
    slices: &Informer<EndpointSlice>,
    queue: &WorkQueue<Key>,
    expectations: &Arc<Expectations>,
) {
    let (queue, expectations) = (queue.clone(), expectations.clone());
    context.feed(slices, move |change| {
        let (old, new) = match &change {
            Change::Applied { old, new } => (old.as_ref(), Some(new)),
            Change::Deleted(old) => (Some(old), None),
            Change::Resync => return,
        };
        for key in old.into_iter().chain(new).filter_map(|s| plan::service_of(s)) {
            if old.is_none() {
                expectations.created(&key, 1);
            }
            queue.add(key);
        }
    });
}

/// A node that comes, goes or moves to another zone concerns every service that may have pods on it.
fn feed_nodes(context: &Context, services: &Informer<Service>, nodes: &Informer<Node>, queue: &WorkQueue<Key>) {
    let (services, queue) = (services.clone(), queue.clone());
    context.feed(nodes, move |change| {
        let concerns = match &change {
            Change::Applied { old: Some(old), new } => plan::zone(old) != plan::zone(new),
            Change::Applied { old: None, .. } | Change::Deleted(_) => true,
            Change::Resync => false,
        };
        if concerns {
            services.list().iter().filter(|s| selects(s)).for_each(|s| queue.add(Key::of(&s.metadata)));
        }
    });
}

#[async_trait]
impl Controller for EndpointSlices {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(service) = self.services.get(&key.namespace, &key.name) else {
            // Its slices have it as owner: the garbage collector takes them.
            self.expectations.forget(key);
            return Ok(None);
        };
        if !selects(&service) || service.metadata.is_being_deleted() {
            return Ok(None);
        }
        if !self.expectations.are_met(key) {
            return Ok(self.expectations.expire_in(key));
        }
        let selector = service.spec.selector.clone().unwrap_or_default();
        let mut pods = self.pods.list_namespace(&key.namespace);
        pods.retain(|p| matches(&selector, &p.metadata.labels));
        let slices = self.slices.by_index(BY_SERVICE, &key.to_string());
        let ops = plan::plan(&service, &pods, &slices, &|name| self.nodes.get("", name));
        let creations = ops.iter().filter(|o| matches!(o, Op::Create { .. })).count();
        if creations > 0 {
            self.expectations.expect_creations(key, creations);
        }
        let mut left = creations;
        for op in &ops {
            let result = self.context.apply(op).await;
            let is_creation = matches!(op, Op::Create { .. });
            match result {
                Ok(_) => left -= usize::from(is_creation),
                Err(e) => {
                    self.expectations.created(key, left);
                    if e.api().is_some_and(isopod_client::Error::is_namespace_terminating) {
                        return Ok(None);
                    }
                    return Err(e);
                }
            }
        }
        Ok(None)
    }
}
