//! Images: imported, pulled from a registry on this machine, and removed.

use crate::fixture::{IMAGE, Node, archive, layers, sha, shell};
use crate::registry::Registry;
use isopod_runtime::*;
use std::sync::{Arc, Mutex};

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_imported_once_and_removed() {
    let node = Node::with_image().await;
    let image = node.runtime.image_status(IMAGE).await.unwrap().unwrap();
    assert_eq!(image.repo_tags, [IMAGE]);
    assert!(image.repo_digests[0].starts_with("docker.io/library/box@sha256:") && image.size > 100_000, "{image:?}");
    let again = node.runtime.import_images(std::io::Cursor::new(archive())).await.unwrap();
    assert_eq!(again, std::slice::from_ref(&image.id));
    assert_eq!(node.runtime.images().await.unwrap().len(), 1);
    for name in ["box:test", &image.id, &image.id[7..20]] {
        assert_eq!(node.runtime.image_status(name).await.unwrap().unwrap().id, image.id, "{name}");
    }
    let fs = node.runtime.image_fs().await.unwrap();
    assert!(fs.capacity > fs.available && fs.inodes >= fs.inodes_free);
    // Layers that a container stands on stay.
    let layers_dir = node.config.data_dir.join("images/layers");
    let count = || std::fs::read_dir(&layers_dir).unwrap().count();
    let sandbox = node.run_sandbox("a").await;
    let id = node.runtime.create_container(&sandbox, shell("c", "echo still here")).await.unwrap();
    node.runtime.remove_image(IMAGE).await.unwrap();
    assert_eq!((node.runtime.image_status(IMAGE).await.unwrap(), count()), (None, 2));
    node.runtime.start_container(&id).await.unwrap();
    assert_eq!(node.ended(&id).await.exit_code, 0);
    node.runtime.remove_sandbox(&sandbox).await.unwrap();
    node.runtime.import_images(std::io::Cursor::new(archive())).await.unwrap();
    node.runtime.remove_image(IMAGE).await.unwrap();
    assert_eq!(count(), 0);
    assert!(matches!(node.runtime.create_container("none", shell("c", "")).await, Err(RuntimeError::NoSuchSandbox(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_docker_archive_is_imported() {
    let node = Node::new().await;
    let layers = layers();
    let config = serde_json::json!({
        "config": {"Cmd": ["/bin/echo", "docker"], "Env": null},
        "rootfs": {"diff_ids": layers.iter().map(|l| format!("sha256:{}", sha(l))).collect::<Vec<_>>()},
    })
    .to_string();
    let manifest = serde_json::json!([{
        "Config": "config.json", "RepoTags": ["box:docker"], "Layers": ["a/layer.tar", "b/layer.tar"],
    }])
    .to_string();
    let mut b = tar::Builder::new(vec![]);
    let files: [(&str, &[u8]); 4] = [
        ("a/layer.tar", &layers[0]),
        ("b/layer.tar", &layers[1]),
        ("config.json", config.as_bytes()),
        ("manifest.json", manifest.as_bytes()),
    ];
    for (path, body) in files {
        let mut h = tar::Header::new_gnu();
        h.set_size(body.len() as u64);
        h.set_mode(0o644);
        b.append_data(&mut h, path, body).unwrap();
    }
    node.runtime.import_images(std::io::Cursor::new(b.into_inner().unwrap())).await.unwrap();
    let image = node.runtime.image_status("docker.io/library/box:docker").await.unwrap().unwrap();
    let sandbox = node.run_sandbox("a").await;
    let mut config = shell("c", "");
    (config.image, config.image_id, config.command) = ("box:docker".into(), image.id, vec![]);
    let (_, log) = node.run(&sandbox, config).await;
    assert_eq!(log, "docker\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_pulled_from_a_registry_and_its_mirror() {
    let registry = Registry::start();
    let manifest = registry.push("team/box", "v1");
    let node = Node::new().await;
    let host = format!("127.0.0.1:{}", registry.port);
    let steps = Arc::new(Mutex::new(Vec::new()));
    let seen = steps.clone();
    let progress: ProgressFn = Arc::new(move |p| seen.lock().unwrap().push(p));
    let id = node.runtime.pull_image(&format!("{host}/team/box:v1"), vec![], Some(progress)).await.unwrap();
    let steps = std::mem::take(&mut *steps.lock().unwrap());
    assert!(steps.iter().any(|s| matches!(s, PullProgress::Layer(_, done, all) if done == all)), "{steps:?}");
    assert_eq!(steps.last(), Some(&PullProgress::Done));
    for name in ["index".to_owned(), format!("v1@sha256:{manifest}")] {
        let again = node.runtime.pull_image(&format!("{host}/team/box:{name}"), vec![], None).await.unwrap();
        assert_eq!(again, id);
    }
    let image = node.runtime.image_status(&format!("{host}/team/box@sha256:{manifest}")).await.unwrap().unwrap();
    assert_eq!(image.id, id);
    assert_eq!(image.repo_tags.len(), 2, "{:?}", image.repo_tags);
    let sandbox = node.run_sandbox("a").await;
    let mut config = shell("c", "cat /etc/second");
    (config.image, config.image_id) = (format!("{host}/team/box:v1"), id.clone());
    let (_, log) = node.run(&sandbox, config).await;
    assert_eq!(log, "of the second layer\n");
    let e = node.runtime.pull_image(&format!("{host}/team/none:v1"), vec![], None).await.unwrap_err();
    assert!(matches!(e, RuntimeError::Pull { .. }), "{e}");

    // A mirror with a rewrite, in another runtime.
    let mirrored = Node::new().await;
    let text = format!(
        "mirrors:\n  docker.io:\n    endpoint: [\"http://{host}\"]\n    rewrite:\n      \"^library/(.*)\": \"team/$1\"\n"
    );
    std::fs::write(&mirrored.config.registries, text).unwrap();
    let runtime = IsopodRuntime::open(mirrored.config.clone()).await.unwrap();
    assert_eq!(runtime.pull_image("box:v1", vec![], None).await.unwrap(), id);
    let image = runtime.image_status("box:v1").await.unwrap().unwrap();
    assert_eq!(image.repo_tags, ["docker.io/library/box:v1"]);
}
