//! A stock kubectl against the TLS listener.

#![allow(clippy::unwrap_used)]

use isopod_testkit::{Listening, TestServer};
use std::io::Write;
use std::process::{Command, Output, Stdio};

async fn kubectl(at: &Listening, home: &std::path::Path, args: &'static [&'static str], stdin: &'static str) -> Output {
    let mut command = Command::new("kubectl");
    command.env("KUBECONFIG", &at.kubeconfig).env("HOME", home).args(args);
    let run = move || {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl is installed");
        child.stdin.take().expect("stdin is piped").write_all(stdin.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

const MANIFEST: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, labels: {app: demo}}
data: {color: red}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: example.com/web:1, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80}]}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_everyday_commands_work() {
    let s = TestServer::start().await;
    let at = s.listen().await;
    let home = tempfile::tempdir().unwrap();
    let run = |args: &'static [&'static str], stdin: &'static str, wants: &'static [&'static str]| {
        let (at, home) = (&at, home.path());
        async move {
            let output = kubectl(at, home, args, stdin).await;
            let text =
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "kubectl {args:?}: {text}");
            for want in wants {
                assert!(text.contains(want), "kubectl {args:?}: no {want:?} in {text}");
            }
        }
    };
    run(&["version"], "", &["Server Version: v1.37.0+isopod"]).await;
    run(&["api-resources"], "", &["deployments", "apps/v1", "NAMESPACED"]).await;
    run(&["get", "namespaces"], "", &["NAME", "STATUS", "AGE", "kube-system", "Active"]).await;
    run(&["apply", "-f", "-"], MANIFEST, &["deployment.apps/web created", "service/web created"]).await;
    run(&["apply", "-f", "-"], MANIFEST, &["deployment.apps/web unchanged"]).await;
    run(&["get", "deployments,services,configmaps"], "", &["READY", "0/2", "NodePort", "443/TCP", "settings"]).await;
    run(
        &["get", "deployment", "web", "-o", "yaml"],
        "",
        &["kind: Deployment", "replicas: 2", "terminationGracePeriodSeconds: 30"],
    )
    .await;
    run(&["explain", "pod.spec.containers"], "", &["FIELDS:", "image", "<string>"]).await;
    run(&["scale", "deployment", "web", "--replicas=3"], "", &["deployment.apps/web scaled"]).await;
    run(&["get", "deployment", "web", "-o", "jsonpath={.spec.replicas}"], "", &["3"]).await;
    run(&["label", "configmap", "settings", "tier=x"], "", &["labeled"]).await;
    run(&["annotate", "configmap", "settings", "note=y"], "", &["annotated"]).await;
    run(&["patch", "configmap", "settings", "-p", "{\"data\":{\"size\":\"1\"}}"], "", &["patched"]).await;
    run(&["get", "cm", "-l", "tier=x", "-o", "name"], "", &["configmap/settings"]).await;
    run(&["describe", "service", "web"], "", &["NodePort:", "Selector:", "app=web"]).await;
    run(&["create", "namespace", "team"], "", &["namespace/team created"]).await;
    run(&["auth", "can-i", "create", "pods"], "", &["yes"]).await;
    run(&["auth", "whoami"], "", &["admin", "system:masters"]).await;
    run(&["get", "--raw", "/readyz?verbose"], "", &["[+]etcd ok", "readyz check passed"]).await;
    let mine = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {color: green, size: \"2\"}\n";
    let apply = &["apply", "--server-side", "--field-manager=team", "-f", "-"];
    let refused = kubectl(&at, home.path(), apply, mine).await;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("Apply failed with 2 conflicts"), "{text}");
    assert!(text.contains("conflicts with \"kubectl-client-side-apply\" using v1:\n- .data.color"), "{text}");
    let force = &["apply", "--server-side", "--field-manager=team", "--force-conflicts", "-f", "-"];
    run(force, mine, &["configmap/settings serverside-applied"]).await;
    run(&["get", "configmap", "settings", "-o", "jsonpath={.data.color}"], "", &["green"]).await;
    run(&["diff", "--server-side", "--field-manager=team", "-f", "-"], mine, &[]).await;
    run(
        &["apply", "--server-side", "--force-conflicts", "-f", "-"],
        MANIFEST,
        &["deployment.apps/web serverside-applied"],
    )
    .await;
    run(&["delete", "configmap", "settings"], "", &["configmap \"settings\" deleted"]).await;
    run(&["delete", "deployment", "web", "--cascade=background"], "", &["deleted"]).await;
}
