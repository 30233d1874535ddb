"""A Deployment of three replicas behind a Service, seen by those who use it."""

import json
import os
import signal
import subprocess

from harness import NODE_IP, deployment, pod, run, wait

PORTS = [{"containerPort": 8080, "name": "http"}]
READY = {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 1}

# Sends 50 requests a second for 30 seconds, a new connection each, and prints how many failed.
CLIENT = r"""
import socket, sys, threading, time
host, port, seconds = sys.argv[1], int(sys.argv[2]), 30
ok, failed, lock = {}, [], threading.Lock()
def ask(n):
    try:
        with socket.create_connection((host, port), timeout=5) as s:
            s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            data = b""
            while chunk := s.recv(4096):
                data += chunk
        assert data.startswith(b"HTTP/1.1 200"), data
        with lock: ok[data.split()[-1].decode()] = ok.get(data.split()[-1].decode(), 0) + 1
    except Exception as e:
        with lock: failed.append(f"{n}: {e!r}")
start, threads = time.monotonic(), []
for n in range(seconds * 50):
    time.sleep(max(0, start + n / 50 - time.monotonic()))
    t = threading.Thread(target=ask, args=(n,)); t.start(); threads.append(t)
for t in threads: t.join()
import json; print(json.dumps({"ok": ok, "failed": failed}))
"""


# Sends a datagram and prints the answer.
UDP = r"""
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
s.sendto(b"hello", (sys.argv[1], int(sys.argv[2]))); print(s.recv(2048).decode())
"""


def service(name, kind="ClusterIP", app=None, **spec):
    ports = [{"name": "http", "port": 80, "targetPort": "http"}, {"name": "echo", "port": 80, "targetPort": 8080, "protocol": "UDP"}]
    spec = {"type": kind, "selector": {"app": app or name}, "ports": ports, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def curl(cluster, url, outside=False):
    where = cluster.net.outside if outside else cluster.net.inside
    return run(where(["curl", "-sS", "--max-time", "5", url])).stdout


def up(cluster, ns, replicas=3):
    cluster.apply(
        deployment("web", cluster.image("app:v1"), replicas, ports=PORTS, readinessProbe=READY),
        service("web", "NodePort"),
        pod("asker", cluster.image("busybox:1.36"), ["sleep", "10000"]),
        ns=ns,
    )
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=90s", ns=ns, timeout=100)
    cluster.kubectl("wait", "--for=condition=Ready", "pod/asker", "--timeout=60s", ns=ns, timeout=70)
    return cluster.get("service", "web", ns=ns)


def inside_pod(cluster, ns, *command):
    return cluster.kubectl("exec", "asker", "--", *command, ns=ns)


def test_reachable_by_every_name(cluster):
    with cluster.namespace("names") as ns:
        got = up(cluster, ns)
        ip, node_port = got["spec"]["clusterIP"], got["spec"]["ports"][0]["nodePort"]
        dns = cluster.get("service", "kube-dns", ns="kube-system")["spec"]["clusterIP"]
        # From the node.
        wait("cluster IP from the node", lambda: curl(cluster, f"http://{ip}/").endswith(" v1\n"))
        seen = {curl(cluster, f"http://{ip}/").split()[0] for _ in range(40)}
        assert len(seen) == 3, f"not all replicas answer: {seen}"
        assert curl(cluster, f"http://{NODE_IP}:{node_port}/").endswith(" v1\n")
        assert curl(cluster, f"http://127.0.0.1:{node_port}/").endswith(" v1\n")
        name = f"web.{ns}.svc.cluster.local"
        answer = run(cluster.net.inside(["busybox", "nslookup", "-type=a", name, dns])).stdout
        assert ip in answer, answer
        # From outside.
        assert curl(cluster, f"http://{NODE_IP}:{node_port}/", outside=True).endswith(" v1\n")
        # From a pod.
        for url in (f"http://{ip}/", "http://web/", f"http://web.{ns}/", f"http://{name}/", f"http://{NODE_IP}:{node_port}/"):
            assert inside_pod(cluster, ns, "timeout", "5", "wget", "-qO-", url).endswith(" v1\n"), url
        reply = run(cluster.net.inside(["python3", "-c", UDP, ip, "80"])).stdout
        assert reply.startswith("web-") and "hello" in reply, reply
        # A pod reaches itself through its own service.
        one = cluster.get("pods", "-l", "app=web", ns=ns)["items"][0]["metadata"]["name"]
        cluster.kubectl("label", "pod", one, "self=yes", ns=ns)
        cluster.apply({**service("mine"), "spec": {**service("mine")["spec"], "selector": {"self": "yes"}}}, ns=ns)
        mine = cluster.get("service", "mine", ns=ns)["spec"]["clusterIP"]
        wait("the slice", lambda: curl(cluster, f"http://{mine}/").split()[0] == one)
        own = cluster.kubectl("exec", one, "--", "timeout", "5", "wget", "-qO-", f"http://{mine}/", ns=ns)
        assert own.split()[0] == one, own


def test_dns_records(cluster):
    with cluster.namespace("dns") as ns:
        got = up(cluster, ns, 2)
        headless = service("bare", app="web", clusterIP="None")
        cluster.apply(headless, ns=ns)
        ips = sorted(p["status"]["podIP"] for p in cluster.get("pods", "-l", "app=web", ns=ns)["items"])

        def look(kind, name):
            return inside_pod(cluster, ns, "nslookup", f"-type={kind}", name)

        wait("headless", lambda: all(ip in look("a", f"bare.{ns}.svc.cluster.local") for ip in ips))
        assert "80 web." in look("srv", f"_http._tcp.web.{ns}.svc.cluster.local")
        ip = got["spec"]["clusterIP"]
        assert f"web.{ns}.svc.cluster.local" in look("ptr", ".".join(reversed(ip.split("."))) + ".in-addr.arpa")
        dashed = ips[0].replace(".", "-")
        assert ips[0] in look("a", f"{dashed}.{ns}.pod.cluster.local")
        missing = cluster.kubectl("exec", "asker", "--", "nslookup", f"nothing.{ns}.svc.cluster.local", ns=ns, check=False, full=True)
        assert "NXDOMAIN" in missing.stdout + missing.stderr, missing
        assert f"search {ns}.svc.cluster.local svc.cluster.local cluster.local" in inside_pod(cluster, ns, "cat", "/etc/resolv.conf")


def test_a_rolling_update_loses_no_request(cluster):
    with cluster.namespace("rolling") as ns:
        got = up(cluster, ns)
        ip = got["spec"]["clusterIP"]
        wait("service", lambda: curl(cluster, f"http://{ip}/"))
        client = subprocess.Popen(cluster.net.inside(["python3", "-c", CLIENT, ip, "80"]), stdout=subprocess.PIPE, text=True)
        cluster.kubectl("set", "image", "deployment/web", f"main={cluster.image('app:v2')}", ns=ns)
        cluster.kubectl("rollout", "status", "deployment/web", "--timeout=90s", ns=ns, timeout=100)
        out, _ = client.communicate(timeout=90)
        result = json.loads(out)
        assert not result["failed"], f"{len(result['failed'])} requests were lost: {result['failed'][:5]}"
        assert result["ok"].get("v1") and result["ok"].get("v2"), result


def test_killed_containers_restart_and_deleted_pods_are_replaced(cluster):
    with cluster.namespace("heal") as ns:
        up(cluster, ns)
        killed, leaver = [p["metadata"]["name"] for p in cluster.get("pods", "-l", "app=web", ns=ns)["items"]][:2]
        status = lambda name: cluster.get("pod", name, ns=ns)["status"]["containerStatuses"][0]  # noqa: E731
        before = status(killed)["containerID"]
        # From outside: a process cannot send this signal to the first one of its own process namespace.
        os.kill(cluster.processes(before)[0], signal.SIGKILL)
        cluster.kubectl("exec", leaver, "--", "timeout", "2", "wget", "-qO-", "http://127.0.0.1:8080/exit?9", ns=ns, check=False)

        def restarted(name, code):
            now = status(name)
            ended = now["lastState"]["terminated"]
            return now["restartCount"] == 1 and now["ready"] and (ended["exitCode"], ended["reason"]) == (code, "Error")

        wait("the killed container restarts", lambda: restarted(killed, 137), 60)
        wait("the container that left restarts", lambda: restarted(leaver, 9), 60)
        assert status(killed)["lastState"]["terminated"]["containerID"] == before != status(killed)["containerID"]
        cluster.kubectl("delete", "pod", killed, "--wait=false", ns=ns)
        cluster.kubectl("wait", "--for=delete", f"pod/{killed}", "--timeout=60s", ns=ns, timeout=70)
        wait("three ready", lambda: cluster.get("deployment", "web", ns=ns)["status"].get("readyReplicas") == 3, 60)


def test_no_endpoints_are_refused_at_once(cluster):
    with cluster.namespace("empty") as ns:
        cluster.apply(service("nobody", "NodePort"), ns=ns)
        spec = cluster.get("service", "nobody", ns=ns)["spec"]
        port = spec["ports"][0]["nodePort"]

        def refused(where, url):
            # 7: could not connect; a packet that is dropped would be 28, a timeout.
            return run(where(["curl", "-sS", "--max-time", "5", url]), check=False).returncode == 7

        wait("refused", lambda: refused(cluster.net.inside, f"http://{spec['clusterIP']}/"))
        wait("refused outside", lambda: refused(cluster.net.outside, f"http://{NODE_IP}:{port}/"))


def test_session_affinity_and_host_ports(cluster):
    with cluster.namespace("sticky") as ns:
        up(cluster, ns)
        cluster.apply(service("sticky", app="web", sessionAffinity="ClientIP"), ns=ns)
        ip = cluster.get("service", "sticky", ns=ns)["spec"]["clusterIP"]
        wait("service", lambda: curl(cluster, f"http://{ip}/"))
        seen = {curl(cluster, f"http://{ip}/") for _ in range(20)}
        assert len(seen) == 1, f"one client saw several replicas: {seen}"
        cluster.apply(pod("host", cluster.image("app:v1"), container={"ports": [{"containerPort": 8080, "hostPort": 8099}]}), ns=ns)
        cluster.kubectl("wait", "--for=condition=Ready", "pod/host", "--timeout=60s", ns=ns, timeout=70)
        wait("host port", lambda: curl(cluster, f"http://{NODE_IP}:8099/", outside=True) == "host v1\n")
