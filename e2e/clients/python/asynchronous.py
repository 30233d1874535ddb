"""kr8s, an asynchronous Python client: objects, selectors, waiting, watches, logs, port-forward, custom resources."""

import asyncio
import sys

import kr8s
from kr8s.asyncio.objects import ConfigMap, Pod, Service, new_class

kubeconfig, namespace, image = sys.argv[1:]


async def main():
    api = await kr8s.asyncio.api(kubeconfig=kubeconfig, namespace=namespace)
    assert (await api.version())["minor"] == "37"
    assert await api.whoami()

    settings = await ConfigMap({"metadata": {"name": "settings", "labels": {"tier": "a"}}, "data": {"k": "v"}}, api=api)
    await settings.create()
    await settings.patch({"data": {"k": "w"}})
    await settings.annotate({"note": "x"})
    await settings.refresh()
    assert settings.raw["data"] == {"k": "w"} and settings.annotations["note"] == "x"
    assert [o.name async for o in api.get("configmaps", label_selector={"tier": "a"})] == ["settings"]

    # The test program answers HTTP on 8080.
    spec = {"terminationGracePeriodSeconds": 0, "containers": [{"name": "main", "image": image}]}
    pod = await Pod({"metadata": {"name": "web", "labels": {"app": "web"}}, "spec": spec}, api=api)
    await pod.create()
    await pod.wait("condition=Ready", timeout=60)
    done = await pod.exec(["sh", "-c", "echo inside"])
    assert done.stdout == b"inside\n", done
    async with pod.portforward(remote_port=8080) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.0\r\nHost: web\r\n\r\n")
        await writer.drain()
        answer = await asyncio.wait_for(reader.readline(), 20)
        writer.close()
        assert b" 200 " in answer, answer

    service = await Service({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}, api=api)
    await service.create()
    assert [p.name for p in await service.ready_pods()] == ["web"]

    # A kind that only discovery knows.
    Lease = new_class(kind="Lease", version="coordination.k8s.io/v1", namespaced=True, asyncio=True)
    lease = await Lease({"metadata": {"name": "l"}, "spec": {"holderIdentity": "me"}}, api=api)
    await lease.create()
    assert await lease.exists()
    await lease.delete()
    await pod.delete()
    await pod.wait("delete", timeout=60)
    print("ok")


asyncio.run(main())
