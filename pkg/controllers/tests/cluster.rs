//! All controllers on an in-process API server with upstream's roles, and a node that only pretends to run pods.

#![allow(clippy::unwrap_used)]

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use isopod_apiserver::Access;
use isopod_base::clock::Clock;
use isopod_client::transport::component;
use isopod_client::views::{
    CertificateSigningRequest, ClusterTrustBundle, ConfigMap, Deployment, EndpointSlice, Endpoints, MetaOnly,
    Namespace, Node, Pod, ReplicaSet, ServiceAccount, ValidatingAdmissionPolicy,
};
use isopod_client::{
    Calls, Delete, Informer, Informers, ListScope, Patch, Preconditions, Propagation, Resource, View, in_process,
};
use isopod_controllers::Options;
use isopod_controllers::certificates::signing::Signers;
use isopod_controllers::certificates::{CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY};
use isopod_pki::CertAuthority;
use isopod_pki::signing::{AuthorityFiles, end_of_certificate};
use isopod_testkit::TestServer;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Far more than anything here needs; reached only by a bug.
const PATIENCE: Duration = Duration::from_secs(60);

/// All sign with the authority `ca` in `dir`.
fn signers(dir: &Path) -> Signers {
    let files = AuthorityFiles { certificate: dir.join("ca.crt"), key: dir.join("ca.key") };
    let authorities = [CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY].map(|signer| (signer, files.clone()));
    Signers { authorities: authorities.into(), ..Signers::default() }
}

struct Cluster {
    server: TestServer,
    informers: Informers,
    root_ca: String,
    _stop: DropGuard,
    _files: TempDir,
}

impl Cluster {
    async fn start() -> Self {
        Self::start_at(Clock::system()).await
    }

    /// The controllers live by this clock.
    async fn start_at(clock: Clock) -> Self {
        let server = TestServer::start_with(|config| {
            let access = Access::new();
            config.authorizer = access.authorizer();
            config.access = Some(access);
            config.bootstrap.extend(isopod_auth::bootstrap::objects());
        })
        .await;
        let stop = CancellationToken::new();
        let service = server.server.service();
        let factory = move |user: &str| in_process(service.clone(), component(user));
        let files = tempfile::tempdir().unwrap();
        let root_ca = CertAuthority::load_or_create(files.path(), "ca").unwrap().cert_pem;
        let options = Options { root_ca_pem: root_ca.clone(), signers: signers(files.path()), ..Options::default() };
        tokio::spawn({
            let stop = stop.clone();
            async move { isopod_controllers::run(factory, options, clock, stop).await }
        });
        let informers = Informers::new(server.admin());
        Cluster { server, informers, root_ca, _stop: stop.drop_guard(), _files: files }
    }

    fn calls(&self, resource: Resource) -> Calls {
        Calls::new(self.server.admin(), resource)
    }

    /// Waits until the cache of a resource satisfies `holds` and returns it.
    async fn until<T: View>(&self, resource: Resource, what: &str, holds: impl Fn(&[Arc<T>]) -> bool) -> Vec<Arc<T>> {
        let informer: Informer<T> = self.informers.get(resource, ListScope::all());
        let wait = async {
            let mut changes = informer.subscribe();
            informer.synced().await;
            loop {
                let now = informer.list();
                if holds(&now) {
                    return now;
                }
                changes.recv().await;
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(found) => found,
            Err(_) => {
                let events: Vec<Value> =
                    self.calls(Resource::namespaced("", "v1", "events")).list(&ListScope::all()).await.unwrap();
                let said: Vec<String> = events.iter().map(|e| format!("{} {}", e["reason"], e["message"])).collect();
                panic!("never: {what}\nevents: {said:#?}");
            }
        }
    }

    /// A node that is ready; its pods get an address and become ready at once, and go as soon as they are told.
    async fn pretend_node(&self, name: &str) {
        let nodes = self.calls(Node::resource());
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name,
            "labels": {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "topology.kubernetes.io/zone": "z1"}},
            "spec": {"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]}});
        nodes.create::<Value>("", &node).await.unwrap();
        let now = isopod_api::time::now();
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
            "message": "", "lastHeartbeatTime": now, "lastTransitionTime": now}]}});
        nodes.patch::<Value>("", name, Some("status"), Patch::Merge(ready), &Preconditions::default()).await.unwrap();
        let (pods, calls, name) = (
            self.informers.get::<Pod>(Pod::resource(), ListScope::all()),
            self.calls(Pod::resource()),
            name.to_owned(),
        );
        tokio::spawn(async move {
            let mut changes = pods.subscribe();
            let last = AtomicU8::new(1);
            while let Some(change) = changes.recv().await {
                if let isopod_client::Change::Applied { new, .. } = change {
                    pretend(&calls, &name, &last, &new).await;
                }
            }
        });
    }
}

async fn pretend(calls: &Calls, node: &str, last: &AtomicU8, pod: &Pod) {
    let m = &pod.metadata;
    // The pod may be gone or changed since: then there is another event.
    if m.is_being_deleted() {
        let now = Delete { grace_period_seconds: Some(0), ..Delete::default() };
        let _ = calls.delete(&m.namespace, &m.name, &now).await;
    } else if pod.spec.node_name.is_empty() {
        let _ = calls.bind(&m.namespace, &m.name, &m.uid, node).await;
    } else if pod.status.phase != "Running" {
        let ip = format!("10.42.0.{}", last.fetch_add(1, Ordering::Relaxed));
        let now = isopod_api::time::now();
        let status = json!({"status": {"phase": "Running", "hostIP": "192.0.2.10", "podIP": ip, "podIPs": [{"ip": ip}],
            "startTime": now, "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}]}});
        let none = Preconditions::default();
        let _ = calls.patch::<Value>(&m.namespace, &m.name, Some("status"), Patch::Strategic(status), &none).await;
    }
}

fn deployment(namespace: &str, image: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": namespace},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "web", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}]}}}})
}

fn service() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}})
}

fn is_complete(d: &Deployment) -> bool {
    let s = &d.status;
    s.observed_generation == d.metadata.generation
        && s.replicas == 3
        && s.updated_replicas == 3
        && s.available_replicas == 3
}

async fn rolled_out(cluster: &Cluster) -> Arc<Deployment> {
    let found = cluster
        .until::<Deployment>(Deployment::resource(), "the deployment is complete", |all| {
            all.iter()
                .any(|d| is_complete(d) && d.status.conditions.iter().any(|c| c.reason == "NewReplicaSetAvailable"))
        })
        .await;
    found[0].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_namespace_gets_its_account_and_authority() {
    let c = Cluster::start().await;
    c.until::<ServiceAccount>(ServiceAccount::resource(), "the default service account", |all| {
        all.iter().any(|a| a.metadata.namespace == "default" && a.metadata.name == "default")
    })
    .await;
    let maps = c
        .until::<ConfigMap>(ConfigMap::resource(), "the root CA", |all| {
            all.iter().any(|m| m.metadata.namespace == "kube-system" && m.metadata.name == "kube-root-ca.crt")
        })
        .await;
    let map = maps.iter().find(|m| m.metadata.name == "kube-root-ca.crt").unwrap();
    assert_eq!(map.data["ca.crt"], c.root_ca);
    // It is put back.
    c.calls(ConfigMap::resource()).delete("default", "kube-root-ca.crt", &Delete::default()).await.unwrap();
    c.until::<ConfigMap>(ConfigMap::resource(), "the root CA again", |all| {
        all.iter().any(|m| m.metadata.namespace == "default" && m.metadata.name == "kube-root-ca.crt")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_runs_behind_a_service_rolls_and_goes() {
    let c = Cluster::start().await;
    c.pretend_node("n1").await;
    let nodes = c
        .until::<Node>(Node::resource(), "the node has a range and no taint", |all| {
            all.iter().any(|n| !n.spec.pod_cidr.is_empty() && n.spec.taints.is_empty())
        })
        .await;
    assert_eq!(nodes[0].spec.pod_cidrs, ["10.42.0.0/24"]);
    c.until::<Node>(Node::resource(), "the old labels", |all| {
        all[0].metadata.labels.contains_key("beta.kubernetes.io/os")
    })
    .await;

    let deployments = c.calls(Deployment::resource());
    deployments.create::<Value>("default", &deployment("default", "web:1")).await.unwrap();
    c.calls(isopod_client::views::Service::resource()).create::<Value>("default", &service()).await.unwrap();
    let d = rolled_out(&c).await;
    assert_eq!(d.metadata.annotations["deployment.kubernetes.io/revision"], "1");
    let mine = |s: &Arc<EndpointSlice>| s.metadata.labels.get("kubernetes.io/service-name").is_some_and(|n| n == "web");
    let slices = c
        .until::<EndpointSlice>(EndpointSlice::resource(), "three endpoints", |all| {
            all.iter().any(|s| mine(s) && s.endpoints.iter().filter(|e| e.conditions.is_ready()).count() == 3)
        })
        .await;
    assert_eq!(slices.iter().filter(|s| mine(s)).count(), 1, "the empty slice was filled, not joined by another");
    let slice = slices.iter().find(|s| mine(s)).unwrap();
    assert_eq!(slice.ports[0].port, Some(8080));
    assert_eq!(slice.endpoints[0].zone.as_deref(), Some("z1"));
    c.until::<Endpoints>(Endpoints::resource(), "three addresses", |all| {
        all.iter()
            .any(|e| e.metadata.name == "web" && e.subsets[0]["addresses"].as_array().is_some_and(|a| a.len() == 3))
    })
    .await;

    // A pod that is deleted is replaced.
    let pods = c.until::<Pod>(Pod::resource(), "three pods", |all| all.len() == 3).await;
    c.calls(Pod::resource()).delete("default", &pods[0].metadata.name, &Delete::default()).await.unwrap();
    let first = pods[0].metadata.uid.clone();
    c.until::<Pod>(Pod::resource(), "a new pod", |all| {
        all.len() == 3 && all.iter().all(|p| p.metadata.uid != first && p.is_ready())
    })
    .await;

    // A new template is rolled out; its predecessor stays for the history.
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "image": "web:2"}]}}}});
    deployments
        .patch::<Value>("default", "web", None, Patch::Strategic(image), &Preconditions::default())
        .await
        .unwrap();
    c.until::<Deployment>(Deployment::resource(), "the second revision", |all| {
        all.iter().any(|d| is_complete(d) && d.metadata.annotations["deployment.kubernetes.io/revision"] == "2")
    })
    .await;
    let sets = c
        .until::<ReplicaSet>(ReplicaSet::resource(), "two sets, one empty", |all| {
            all.len() == 2 && all.iter().filter(|s| s.spec.replicas == Some(0)).count() == 1
        })
        .await;
    assert!(sets.iter().all(|s| s.metadata.controller().is_some_and(|o| o.name == "web")));

    // Scaling up and down.
    for replicas in [5, 2] {
        let scale = json!({"spec": {"replicas": replicas}});
        deployments
            .patch::<Value>("default", "web", None, Patch::Merge(scale), &Preconditions::default())
            .await
            .unwrap();
        let wanted = replicas as usize;
        c.until::<Pod>(Pod::resource(), "as many pods as asked for", |all| {
            all.len() == wanted && all.iter().all(|p| p.is_ready())
        })
        .await;
    }

    // In the background: the deployment goes at once, then its sets and pods.
    let background = Delete { propagation: Some(Propagation::Background), ..Delete::default() };
    deployments.delete("default", "web", &background).await.unwrap();
    c.until::<ReplicaSet>(ReplicaSet::resource(), "no sets", |all| all.is_empty()).await;
    c.until::<Pod>(Pod::resource(), "no pods", |all| all.is_empty()).await;
    c.calls(isopod_client::views::Service::resource()).delete("default", "web", &Delete::default()).await.unwrap();
    c.until::<EndpointSlice>(EndpointSlice::resource(), "no slices of the service", |all| !all.iter().any(mine)).await;
    c.until::<Endpoints>(Endpoints::resource(), "no endpoints", |all| !all.iter().any(|e| e.metadata.name == "web"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreground_deletion_ends_with_the_owner_and_orphans_stay() {
    let c = Cluster::start().await;
    c.pretend_node("n1").await;
    let deployments = c.calls(Deployment::resource());
    deployments.create::<Value>("default", &deployment("default", "web:1")).await.unwrap();
    rolled_out(&c).await;
    let orphan = Delete { propagation: Some(Propagation::Orphan), ..Delete::default() };
    deployments.delete("default", "web", &orphan).await.unwrap();
    c.until::<Deployment>(Deployment::resource(), "no deployment", |all| all.is_empty()).await;
    let sets = c
        .until::<ReplicaSet>(ReplicaSet::resource(), "an orphan", |all| {
            all.len() == 1 && all[0].metadata.owner_references.is_empty()
        })
        .await;
    // A deployment of the same selector and template adopts it.
    deployments.create::<Value>("default", &deployment("default", "web:1")).await.unwrap();
    let adopted = c
        .until::<ReplicaSet>(ReplicaSet::resource(), "an adopted set", |all| {
            all.iter().any(|s| s.metadata.controller().is_some())
        })
        .await;
    assert_eq!(adopted[0].metadata.uid, sets[0].metadata.uid);

    // One without its owner is deleted when the collector has seen it, and so all that happened to sets before: the adoption too.
    let owner = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "gone", "uid": "5e1b8a0c-3d0f-4c0e-9b7a-0d6b1f6f2a11"});
    let canary = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {"name": "canary", "namespace": "default", "ownerReferences": [owner], "finalizers": ["example.com/hold"]},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "canary"}}, "template": {
            "metadata": {"labels": {"app": "canary"}}, "spec": {"containers": [{"name": "c", "image": "c"}]}}}});
    let calls = c.calls(ReplicaSet::resource());
    calls.create::<Value>("default", &canary).await.unwrap();
    c.until::<ReplicaSet>(ReplicaSet::resource(), "the canary goes", |all| {
        all.iter().any(|s| s.metadata.name == "canary" && s.metadata.deletion_timestamp.is_some())
    })
    .await;
    let release = json!({"metadata": {"finalizers": null}});
    calls.patch::<Value>("default", "canary", None, Patch::Merge(release), &Preconditions::default()).await.unwrap();

    let foreground = Delete { propagation: Some(Propagation::Foreground), ..Delete::default() };
    deployments.delete("default", "web", &foreground).await.unwrap();
    c.until::<Deployment>(Deployment::resource(), "no deployment", |all| all.is_empty()).await;
    // Read anew: the owner went last.
    let left: Vec<MetaOnly> = c.calls(ReplicaSet::resource()).list(&ListScope::all()).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
    let pods: Vec<MetaOnly> = c.calls(Pod::resource()).list(&ListScope::all()).await.unwrap();
    assert!(pods.is_empty(), "{pods:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_goes_with_all_that_is_in_it() {
    let c = Cluster::start().await;
    c.pretend_node("n1").await;
    let namespaces = c.calls(Namespace::resource());
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}});
    namespaces.create::<Value>("", &object).await.unwrap();
    c.calls(Deployment::resource()).create::<Value>("team", &deployment("team", "web:1")).await.unwrap();
    rolled_out(&c).await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held", "namespace": "team", "finalizers": ["example.com/hold"]}});
    let maps = c.calls(ConfigMap::resource());
    maps.create::<Value>("team", &map).await.unwrap();
    namespaces.delete("", "team", &Delete::default()).await.unwrap();
    c.until::<Namespace>(Namespace::resource(), "the namespace says what holds it", |all| {
        all.iter().any(|n| {
            n.status.conditions.iter().any(|c| c.kind == "NamespaceFinalizersRemaining" && c.status == "True"
                && c.message == "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances")
        })
    })
    .await;
    let release = json!({"metadata": {"finalizers": null}});
    maps.patch::<Value>("team", "held", None, Patch::Merge(release), &Preconditions::default()).await.unwrap();
    c.until::<Namespace>(Namespace::resource(), "no namespace", |all| !all.iter().any(|n| n.metadata.name == "team"))
        .await;
    let left: Vec<MetaOnly> = c.calls(Pod::resource()).list(&ListScope::namespace("team")).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_leave_a_node_that_says_it_is_not_ready() {
    let c = Cluster::start().await;
    c.pretend_node("n1").await;
    // Another node that stays ready: else nothing is evicted.
    c.until::<Node>(Node::resource(), "the node is ready", |all| all.iter().any(|n| n.spec.taints.is_empty())).await;
    let nodes = c.calls(Node::resource());
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"}});
    nodes.create::<Value>("", &node).await.unwrap();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stays", "namespace": "default"},
        "spec": {"nodeName": "n2", "containers": [{"name": "c", "image": "i"}],
            "tolerations": [{"operator": "Exists", "effect": "NoExecute"}]}});
    let pods = c.calls(Pod::resource());
    c.until::<ServiceAccount>(ServiceAccount::resource(), "the account", |all| {
        all.iter().any(|a| a.metadata.namespace == "default")
    })
    .await;
    pods.create::<Value>("default", &pod).await.unwrap();
    let mut goes = pod.clone();
    goes["metadata"]["name"] = json!("goes");
    goes["spec"]["tolerations"] = json!([{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0}]);
    pods.create::<Value>("default", &goes).await.unwrap();
    let now = isopod_api::time::now();
    let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "KubeletNotReady",
        "message": "", "lastHeartbeatTime": now, "lastTransitionTime": now}]}});
    nodes.patch::<Value>("", "n2", Some("status"), Patch::Merge(unready), &Preconditions::default()).await.unwrap();
    c.until::<Pod>(Pod::resource(), "only the tolerant pod stays", |all| {
        all.len() == 1 && all[0].metadata.name == "stays"
    })
    .await;
    // The pod may have left for an earlier taint: the one for what the node says now follows.
    c.until::<Node>(Node::resource(), "the taint", |all| {
        let mut taints = all.iter().filter(|n| n.metadata.name == "n2").flat_map(|n| &n.spec.taints);
        taints.any(|t| t.key == "node.kubernetes.io/not-ready" && t.effect == "NoExecute")
    })
    .await;
}

/// Moves a fake clock on until it is dropped, ten seconds at a time, leaving the tasks that it wakes room to run.
struct Pump(tokio::task::JoinHandle<()>);

impl Pump {
    fn start(clock: Clock) -> Self {
        Pump(tokio::spawn(async move {
            let mut beat = tokio::time::interval(Duration::from_millis(20));
            loop {
                beat.tick().await;
                clock.advance(Duration::from_secs(10));
            }
        }))
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_falls_silent_becomes_unknown_and_recovers() {
    let clock = Clock::fake(isopod_api::time::parse("2026-01-01T00:00:00Z").unwrap());
    let c = Cluster::start_at(clock.clone()).await;
    c.pretend_node("n1").await;
    c.calls(Deployment::resource()).create::<Value>("default", &deployment("default", "web:1")).await.unwrap();
    c.until::<Pod>(Pod::resource(), "three ready pods", |all| all.iter().filter(|p| p.is_ready()).count() == 3).await;
    let _pump = Pump::start(clock);
    let nodes = c
        .until::<Node>(Node::resource(), "the node is unknown and tainted", |all| {
            all.iter().any(|n| {
                n.condition("Ready").is_some_and(|c| c.status == "Unknown")
                    && n.spec
                        .taints
                        .iter()
                        .any(|t| t.key == "node.kubernetes.io/unreachable" && t.effect == "NoSchedule")
            })
        })
        .await;
    assert_eq!(nodes[0].condition("Ready").unwrap().message, "Kubelet stopped posting node status.");
    // The only node: nothing is evicted, but nothing gets traffic either.
    assert!(nodes[0].spec.taints.iter().all(|t| t.effect != "NoExecute"));
    c.until::<Pod>(Pod::resource(), "no pod is ready", |all| all.len() == 3 && all.iter().all(|p| !p.is_ready())).await;

    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
        "message": "", "lastHeartbeatTime": "2026-01-01T03:00:00Z", "lastTransitionTime": "2026-01-01T03:00:00Z"}]}});
    let none = Preconditions::default();
    c.calls(Node::resource()).patch::<Value>("", "n1", Some("status"), Patch::Merge(ready), &none).await.unwrap();
    c.until::<Node>(Node::resource(), "no taint is left", |all| all[0].spec.taints.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_node_that_is_gone_are_taken_away() {
    let clock = Clock::fake(isopod_api::time::parse("2026-01-01T00:00:00Z").unwrap());
    let c = Cluster::start_at(clock.clone()).await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lost", "namespace": "default"},
        "spec": {"nodeName": "gone", "containers": [{"name": "c", "image": "i"}]}});
    c.until::<ServiceAccount>(ServiceAccount::resource(), "the account", |all| {
        all.iter().any(|a| a.metadata.namespace == "default")
    })
    .await;
    c.calls(Pod::resource()).create::<Value>("default", &pod).await.unwrap();
    c.until::<Pod>(Pod::resource(), "the pod", |all| all.len() == 1).await;
    let _pump = Pump::start(clock);
    c.until::<Pod>(Pod::resource(), "no pod", |all| all.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_an_informer_sees_the_same() {
    let server = TestServer::start().await;
    let listening = server.listen().await;
    let client = isopod_client::tls(&listening.kubeconfig, "isopod-test").await.unwrap();
    let informers = Informers::new(client.clone());
    let namespaces: Informer<Namespace> = informers.get(Namespace::resource(), ListScope::all());
    let mut changes = namespaces.subscribe();
    namespaces.synced().await;
    assert!(namespaces.get("", "kube-system").is_some());
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "new"}});
    Calls::new(client, Namespace::resource()).create::<Value>("", &object).await.unwrap();
    let seen = async {
        while namespaces.get("", "new").is_none() {
            changes.recv().await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_says_what_is_used_and_is_never_exceeded() {
    let cluster = Cluster::start().await;
    let quotas = Resource::namespaced("", "v1", "resourcequotas");
    let used = async |wanted: Value| {
        let find = |q: &[Arc<Unread>]| q.iter().any(|q| q.object["status"]["used"] == wanted);
        cluster.until::<Unread>(quotas.clone(), &format!("usage is {wanted}"), find).await
    };
    let maps = cluster.calls(ConfigMap::resource());
    let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    cluster.until::<Namespace>(Namespace::resource(), "the namespace", |n| !n.is_empty()).await;
    maps.create::<Value>("default", &map("before")).await.unwrap();
    let has_authority =
        |m: &[Arc<ConfigMap>]| m.iter().any(|m| m.name() == "kube-root-ca.crt" && m.namespace() == "default");
    cluster.until::<ConfigMap>(ConfigMap::resource(), "the authority", has_authority).await;
    let before = maps.list_metadata(&ListScope::namespace("default")).await.unwrap().len();
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"},
        "spec": {"hard": {"configmaps": (before + 5).to_string(), "pods": "1"}}});
    cluster.calls(quotas.clone()).create::<Value>("default", &quota).await.unwrap();
    used(json!({"configmaps": before.to_string(), "pods": "0"})).await;
    // Twenty at once share what is left for five.
    let names: Vec<String> = (0..20).map(|n| format!("m{n}")).collect();
    let objects: Vec<Value> = names.iter().map(|n| map(n)).collect();
    let creates = objects.iter().map(|o| maps.create::<Value>("default", o));
    let made = futures::future::join_all(creates).await;
    assert_eq!(made.iter().filter(|m| m.is_ok()).count(), 5, "{made:?}");
    let refused = made.iter().filter_map(|m| m.as_ref().err()).all(|e| e.to_string().contains("exceeded quota: q"));
    assert!(refused, "{made:?}");
    used(json!({"configmaps": (before + 5).to_string(), "pods": "0"})).await;
    // What goes is free again.
    maps.delete("default", "before", &Delete::default()).await.unwrap();
    used(json!({"configmaps": (before + 4).to_string(), "pods": "0"})).await;
    maps.create::<Value>("default", &map("after")).await.unwrap();
}

/// A quota, as it is.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Unread {
    object: Value,
}

impl View for Unread {
    fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }
    fn namespace(&self) -> &str {
        self.object["metadata"]["namespace"].as_str().unwrap_or_default()
    }
    fn uid(&self) -> &str {
        self.object["metadata"]["uid"].as_str().unwrap_or_default()
    }
    fn resource_version(&self) -> &str {
        self.object["metadata"]["resourceVersion"].as_str().unwrap_or_default()
    }
}

/// An object of which all is looked at.
#[derive(serde::Deserialize)]
#[serde(from = "Value")]
struct Whole {
    meta: isopod_client::views::Meta,
    object: Value,
}

impl From<Value> for Whole {
    fn from(object: Value) -> Self {
        Whole { meta: serde_json::from_value(object["metadata"].clone()).unwrap(), object }
    }
}

impl View for Whole {
    fn name(&self) -> &str {
        &self.meta.name
    }
    fn namespace(&self) -> &str {
        &self.meta.namespace
    }
    fn uid(&self) -> &str {
        &self.meta.uid
    }
    fn resource_version(&self) -> &str {
        &self.meta.resource_version
    }
}

impl Whole {
    fn condition(&self, ty: &str) -> &Value {
        let all = self.object["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
        all.iter().find(|c| c["type"] == ty).unwrap_or(&Value::Null)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_writes_all_objects_in_the_version_that_is_stored_by_now() {
    let c = Cluster::start().await;
    let definitions = c.calls(Resource::cluster("apiextensions.k8s.io", "v1", "customresourcedefinitions"));
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema":
            {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}})
    };
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "versions": [version("v1", true), version("v2", false)],
            "names": {"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"}}});
    definitions.create::<Value>("", &definition).await.unwrap();
    let foos = c.calls(Resource::namespaced("example.com", "v1", "foos"));
    for n in 0..3 {
        let foo = json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": format!("f{n}")}, "n": n});
        foos.create::<Value>("default", &foo).await.unwrap();
    }
    let versions = json!({"spec": {"versions": [version("v1", false), version("v2", true)]}});
    let changed: Value =
        definitions.modify("", "foos.example.com", None, &versions, &Preconditions::default()).await.unwrap();
    assert_eq!(changed["status"]["storedVersions"], json!(["v1", "v2"]));
    let before: Vec<Whole> = foos.list(&ListScope::all()).await.unwrap();

    let resource = Resource::cluster("storagemigration.k8s.io", "v1", "storageversionmigrations");
    let migration = |name: &str, resource: &str| {
        json!({"apiVersion": "storagemigration.k8s.io/v1", "kind": "StorageVersionMigration", "metadata": {"name": name},
            "spec": {"resource": {"group": "example.com", "resource": resource}}})
    };
    c.calls(resource.clone()).create::<Value>("", &migration("foos", "foos")).await.unwrap();
    let all = c
        .until::<Whole>(resource, "the migration has ended", |all| {
            all.iter().any(|m| m.condition("Running")["reason"] == "MigrationCompleted")
        })
        .await;
    assert_eq!(all[0].condition("Succeeded")["message"], "Migration completed", "{}", all[0].object);
    let definition: Value = definitions.get("", "foos.example.com").await.unwrap();
    assert_eq!(definition["status"]["storedVersions"], json!(["v2"]), "{definition}");
    let after: Vec<Whole> = foos.list(&ListScope::all()).await.unwrap();
    for (old, new) in before.iter().zip(&after) {
        assert_ne!(old.meta.resource_version, new.meta.resource_version, "it was written");
        assert_eq!(old.object["n"], new.object["n"]);
    }
}

/// A kubelet's request, PEM in base64.
fn request_of(node: &str) -> String {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{node}"));
    let request = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap();
    BASE64.encode(request.pem().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_join_nodes_gets_their_certificates() {
    let c = Cluster::start().await;
    let bindings = c.calls(Resource::cluster("rbac.authorization.k8s.io", "v1", "clusterrolebindings"));
    let bind = |role: &str| {
        json!({"metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "joining"}]})
    };
    bindings.create::<Value>("", &bind("system:node-bootstrapper")).await.unwrap();
    let joining = in_process(c.server.server.service(), isopod_api::UserInfo::new("system:bootstrap:a", &["joining"]));
    let requests = Calls::new(joining, CertificateSigningRequest::resource());
    let usages = ["client auth", "digital signature"];
    let request = json!({"metadata": {"name": "a"}, "spec": {"signerName": KUBELET_CLIENT, "usages": usages, "request": request_of("a")}});
    requests.create::<Value>("", &request).await.unwrap();
    // Not yet allowed, it is asked about again.
    let nodeclient = "system:certificates.k8s.io:certificatesigningrequests:nodeclient";
    bindings.create::<Value>("", &bind(nodeclient)).await.unwrap();
    let issued = c
        .until::<CertificateSigningRequest>(CertificateSigningRequest::resource(), "the certificate", |all| {
            all.iter().any(|csr| !csr.status.certificate.is_empty())
        })
        .await;
    assert_eq!(issued[0].status.conditions[0]["reason"], "AutoApproved");
    let pem = String::from_utf8(BASE64.decode(&issued[0].status.certificate).unwrap()).unwrap();
    let life =
        end_of_certificate(&pem).unwrap() - isopod_api::time::parse(&isopod_api::time::now()).unwrap().as_second();
    assert!((8759 * 3600..8760 * 3600).contains(&life), "{life}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authority_of_the_server_is_attested() {
    let c = Cluster::start().await;
    let is_mine = |all: &[Arc<ClusterTrustBundle>]| {
        all.iter()
            .any(|b| b.spec.signer_name == "kubernetes.io/kube-apiserver-serving" && b.spec.trust_bundle == c.root_ca)
    };
    let bundles = c.until(ClusterTrustBundle::resource(), "the bundle", is_mine).await;
    let name = &bundles[0].metadata.name;
    c.calls(ClusterTrustBundle::resource()).delete("", name, &Delete::default()).await.unwrap();
    let uid = bundles[0].metadata.uid.clone();
    c.until::<ClusterTrustBundle>(ClusterTrustBundle::resource(), "the bundle again", |all| {
        is_mine(all) && all.iter().all(|b| b.metadata.uid != uid)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expressions_that_do_not_fit_are_told_in_the_policys_status() {
    let c = Cluster::start().await;
    let policies = c.calls(ValidatingAdmissionPolicy::resource());
    let rule = json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"], "operations": ["*"]});
    let validation =
        json!({"expression": "object.spec.replicas > '1'", "messageExpression": "'got ' + object.spec.replicas"});
    let policy = json!({"metadata": {"name": "a"}, "spec": {"matchConstraints": {"resourceRules": [rule]}, "validations": [validation]}});
    policies.create::<Value>("", &policy).await.unwrap();
    let looked_at = |all: &[Arc<ValidatingAdmissionPolicy>]| {
        all.iter().all(|p| p.status.observed_generation == p.metadata.generation)
    };
    c.until(ValidatingAdmissionPolicy::resource(), "the policy was looked at", looked_at).await;
    let seen: Value = policies.get("", "a").await.unwrap();
    let warnings = &seen["status"]["typeChecking"]["expressionWarnings"];
    assert_eq!(warnings[0]["fieldRef"], "spec.validations[0].expression");
    let said = warnings[0]["warning"].as_str().unwrap();
    assert_eq!(
        said,
        "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'\n \
         | object.spec.replicas > '1'\n | .....................^\n"
    );
    assert!(warnings[1]["warning"].as_str().unwrap().contains("'_+_' applied to '(string, int)'"), "{warnings}");
    let right = json!({"spec": {"validations": [{"expression": "object.spec.replicas > 1"}]}});
    policies.patch::<Value>("", "a", None, Patch::Merge(right), &Preconditions::default()).await.unwrap();
    let again = |all: &[Arc<ValidatingAdmissionPolicy>]| all.iter().all(|p| p.status.observed_generation == 2);
    c.until(ValidatingAdmissionPolicy::resource(), "the policy was looked at again", again).await;
    let seen: Value = policies.get("", "a").await.unwrap();
    assert!(seen["status"]["typeChecking"]["expressionWarnings"].is_null(), "{seen}");
    // Clients see by this that a policy without mistakes was looked at.
    let mut right: Value = seen.clone();
    right["metadata"] = json!({"name": "b"});
    right["status"] = json!({});
    policies.create::<Value>("", &right).await.unwrap();
    c.until(ValidatingAdmissionPolicy::resource(), "both were looked at", |all| all.len() == 2 && looked_at(all)).await;
    let seen: Value = policies.get("", "b").await.unwrap();
    assert_eq!(seen["status"]["typeChecking"], json!({}));
}
