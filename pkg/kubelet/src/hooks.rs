//! `postStart` and `preStop`: exec, httpGet, sleep (KEP-3960).

use crate::pod::PodExt;
use crate::probe::http::{self, Target};
use crate::probe::port_number;
use isopod_base::clock::Clock;
use isopod_runtime::Runtime;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use std::time::Duration;

/// How long an HTTP hook may take when nothing else ends it (upstream's default client).
const HTTP_WAIT: Duration = Duration::from_secs(60);

/// Runs a hook to its end. The error is for the log and the status, not for events: it may hold secrets.
pub async fn run(
    runtime: &dyn Runtime,
    clock: &Clock,
    pod: &Pod,
    c: &Container,
    container_id: &str,
    pod_ip: &str,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let shown = command.join(" ");
        return match runtime.exec_sync(container_id, command, None).await {
            Ok(out) if out.exit_code == 0 => Ok(()),
            Ok(out) => {
                let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
                Err(format!("command '{shown}' exited with {}: {text}", out.exit_code))
            }
            Err(e) => Err(isopod_base::errors::Chain(&e).to_string()),
        };
    }
    if let Some(action) = &hook.http_get {
        let port = port_number(&action.port, c)?;
        let target = Target::new(action, port, pod_ip, "kube-lifecycle/1.37");
        return match http::get(&target, HTTP_WAIT).await {
            Ok(_) => Ok(()),
            Err(e) => Err(format!("Get {:?}: {e}", target.url())),
        };
    }
    if let Some(sleep) = &hook.sleep {
        clock.sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
        return Ok(());
    }
    Err(format!("cannot run handler: unsupported handler type in pod {}", pod.display()))
}
