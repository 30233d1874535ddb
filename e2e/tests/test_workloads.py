"""Jobs, stateful sets, daemon sets, quotas and preemption, with real containers."""

import json

from harness import pod, wait


def workload(kind, name, template, group="apps/v1", **spec):
    """A workload whose pods are made from `template`, a pod of the harness."""
    labels = template["metadata"]["labels"]
    template = {"metadata": {"labels": labels}, "spec": template["spec"]}
    if group == "apps/v1":
        spec = {"selector": {"matchLabels": labels}, **spec}
    return {"apiVersion": group, "kind": kind, "metadata": {"name": name}, "spec": {"template": template, **spec}}


def sleeper(cluster, name, **spec):
    return pod(name, cluster.image("busybox:1.36"), ["sleep", "10000"], **spec)


def pods(cluster, ns):
    return {p["metadata"]["name"]: p for p in cluster.get("pods", ns=ns)["items"]}


def test_a_job_runs_each_index_once(cluster):
    script = 'echo "index $JOB_COMPLETION_INDEX"'
    worker = pod("squares", cluster.image("busybox:1.36"), ["sh", "-c", script], restartPolicy="Never")
    job = workload("Job", "squares", worker, "batch/v1", completions=3, parallelism=2, completionMode="Indexed")
    with cluster.namespace("jobs") as ns:
        cluster.apply(job, ns=ns)
        cluster.kubectl("wait", "--for=condition=Complete", "job/squares", "--timeout=60s", ns=ns, timeout=70)
        status = cluster.get("job", "squares", ns=ns)["status"]
        assert (status["succeeded"], status["completedIndexes"]) == (3, "0-2"), status
        logs = cluster.kubectl("logs", "-l", "app=squares", ns=ns).split("\n")
        assert sorted(filter(None, logs)) == ["index 0", "index 1", "index 2"], logs


def test_a_job_that_fails_says_so(cluster):
    worker = pod("bad", cluster.image("busybox:1.36"), ["false"], restartPolicy="Never")
    job = workload("Job", "bad", worker, "batch/v1", backoffLimit=0, ttlSecondsAfterFinished=3)
    with cluster.namespace("bad-jobs") as ns:
        cluster.apply(job, ns=ns)
        cluster.kubectl("wait", "--for=condition=Failed", "job/bad", "--timeout=60s", ns=ns, timeout=70)
        failed = next(c for c in cluster.get("job", "bad", ns=ns)["status"]["conditions"] if c["type"] == "Failed")
        assert failed["reason"] == "BackoffLimitExceeded", failed
        wait("it goes after its time", lambda: not cluster.get("jobs", ns=ns)["items"])


def test_a_stateful_set_keeps_order_and_names(cluster):
    ready = {"readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1}}
    db = sleeper(cluster, "db", container=ready)
    with cluster.namespace("stateful") as ns:
        head = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"}, "spec": {"clusterIP": "None", "selector": {"app": "db"}}}
        cluster.apply(head, workload("StatefulSet", "db", db, serviceName="db", replicas=3), ns=ns)
        cluster.kubectl("rollout", "status", "statefulset/db", "--timeout=60s", ns=ns, timeout=70)
        before = pods(cluster, ns)
        assert set(before) == {"db-0", "db-1", "db-2"}, set(before)
        born = [before[f"db-{i}"]["metadata"]["creationTimestamp"] for i in range(3)]
        assert born == sorted(born), born
        assert cluster.kubectl("exec", "db-1", "--", "hostname", ns=ns).strip() == "db-1"
        cluster.kubectl("delete", "pod", "db-1", ns=ns)
        wait("db-1 comes back", lambda: pods(cluster, ns).get("db-1", before["db-1"])["metadata"]["uid"] != before["db-1"]["metadata"]["uid"])
        cluster.kubectl("scale", "statefulset/db", "--replicas=1", ns=ns)
        wait("the others go", lambda: set(pods(cluster, ns)) == {"db-0"})


def test_a_daemon_set_rolls_and_rolls_back(cluster):
    with cluster.namespace("daemons") as ns:
        cluster.apply(workload("DaemonSet", "agent", sleeper(cluster, "agent")), ns=ns)
        cluster.kubectl("rollout", "status", "daemonset/agent", "--timeout=60s", ns=ns, timeout=70)
        assert len(pods(cluster, ns)) == 1
        cluster.kubectl("set", "env", "daemonset/agent", "GENERATION=2", ns=ns)
        cluster.kubectl("rollout", "status", "daemonset/agent", "--timeout=60s", ns=ns, timeout=70)
        assert "GENERATION" in json.dumps(list(pods(cluster, ns).values())[0]["spec"]["containers"])
        cluster.kubectl("rollout", "undo", "daemonset/agent", ns=ns)
        cluster.kubectl("rollout", "status", "daemonset/agent", "--timeout=60s", ns=ns, timeout=70)
        assert "GENERATION" not in json.dumps(list(pods(cluster, ns).values())[0]["spec"]["containers"])


def test_a_quota_is_never_exceeded(cluster):
    with cluster.namespace("quota") as ns:
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "4"}}}
        cluster.apply(quota, ns=ns)
        wait("the quota is counted", lambda: "used" in cluster.get("quota", "q", ns=ns).get("status", {}))
        used = int(cluster.get("quota", "q", ns=ns)["status"]["used"]["configmaps"])
        maps = [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"m{i}"}} for i in range(5)]
        done = cluster.kubectl("apply", "-f", "-", input="\n---\n".join(map(json.dumps, maps)), ns=ns, check=False, full=True)
        assert done.stdout.count("created") == 4 - used, done
        assert "exceeded quota: q, requested: configmaps=1, used: configmaps=4, limited: configmaps=4" in done.stderr, done.stderr
        cluster.kubectl("delete", "configmap", "m0", ns=ns)
        wait("room is given back", lambda: cluster.get("quota", "q", ns=ns)["status"]["used"]["configmaps"] == "3")


def test_the_more_important_pod_gets_the_room(cluster):
    classes = [
        {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value}
        for name, value in (("e2e-low", 1), ("e2e-high", 1000))
    ]
    cpu = cluster.get("nodes")["items"][0]["status"]["allocatable"]["cpu"]
    cores = int(cpu[:-1]) / 1000 if cpu.endswith("m") else int(cpu)

    def greedy(name, importance):
        most = {"resources": {"requests": {"cpu": f"{int(cores * 1000 * 0.7)}m"}}}
        return sleeper(cluster, name, container=most, priorityClassName=importance)

    cluster.apply(*classes)
    try:
        with cluster.namespace("preemption") as ns:
            cluster.apply(greedy("low", "e2e-low"), ns=ns)
            cluster.kubectl("wait", "--for=condition=Ready", "pod/low", "--timeout=60s", ns=ns, timeout=70)
            cluster.apply(greedy("high", "e2e-high"), ns=ns)
            cluster.kubectl("wait", "--for=condition=Ready", "pod/high", "--timeout=60s", ns=ns, timeout=70)
            assert set(pods(cluster, ns)) == {"high"}
            events = cluster.get("events", ns=ns)["items"]
            assert any(e["reason"] == "Preempted" and e["involvedObject"]["name"] == "low" for e in events), events
    finally:
        cluster.kubectl("delete", "priorityclass", "e2e-low", "e2e-high")
