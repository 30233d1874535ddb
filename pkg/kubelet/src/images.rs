//! Images for a pod's containers: pull policies, pulls in the background, back-off, and the events that tell of them.
//!
//! Invariant: asking never waits for a pull; a pull that ends wakes its pod.

use crate::backoff::Backoff;
use crate::credentials::registry_and_path;
use crate::pod::PodExt;
use crate::status::Waiting;
use isopod_base::clock::Clock;
use isopod_base::errors::Chain;
use isopod_client::events::{ObjectRef, Recorder};
use isopod_runtime::{ImageStatus, RegistryAuth, Runtime, RuntimeError};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore};

/// How long a failed pull is shown as such, before the back-off is.
const SHOWN: Duration = Duration::from_secs(3);

/// What a node shares between its pods.
#[derive(Clone)]
pub struct Puller {
    runtime: Arc<dyn Runtime>,
    recorder: Recorder,
    clock: Clock,
    slots: Arc<Slots>,
}

/// Places for pulls, by registry: one that does not answer keeps only its own images waiting.
struct Slots {
    parallel: usize,
    by_registry: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl Slots {
    fn of(&self, image: &str) -> Arc<Semaphore> {
        let (registry, _) = registry_and_path(image);
        let mut all = self.by_registry.lock();
        if let Some(slots) = all.get(&registry).and_then(Weak::upgrade) {
            return slots;
        }
        all.retain(|_, slots| slots.strong_count() > 0);
        let slots = Arc::new(Semaphore::new(self.parallel));
        all.insert(registry, Arc::downgrade(&slots));
        slots
    }
}

impl Puller {
    pub fn new(runtime: Arc<dyn Runtime>, recorder: Recorder, clock: Clock, parallel: usize) -> Self {
        let slots = Slots { parallel: parallel.max(1), by_registry: Mutex::default() };
        Puller { runtime, recorder, clock, slots: Arc::new(slots) }
    }
}

enum Pull {
    Running,
    Done(Result<ImageStatus, String>),
}

/// The answer to [`PodImages::ensure`].
#[derive(Debug, PartialEq)]
pub enum Image {
    Ready(ImageStatus),
    /// The pod is woken when the pull has ended.
    Pulling,
    /// Why the container waits; and when to ask again.
    Failed(Waiting, Option<Timestamp>),
}

/// The pulls of one pod.
pub struct PodImages {
    puller: Puller,
    pulls: Arc<Mutex<HashMap<String, Pull>>>,
    backoff: Backoff,
    /// The last failure of each image and its time, said again while it backs off.
    failures: HashMap<String, (String, Timestamp)>,
    wake: Arc<Notify>,
}

fn failed(reason: &str, message: String) -> Waiting {
    Waiting { reason: reason.to_owned(), message }
}

/// `Always` for `:latest` and untagged names, as the API server defaults it.
fn policy<'a>(c: &'a Container, image: &str) -> &'a str {
    match c.image_pull_policy.as_deref() {
        Some(p) if !p.is_empty() => p,
        _ => {
            let last = image.rsplit('/').next().unwrap_or_default();
            if image.contains('@') || last.split_once(':').is_some_and(|(_, tag)| tag != "latest") {
                "IfNotPresent"
            } else {
                "Always"
            }
        }
    }
}

impl PodImages {
    pub fn new(puller: Puller, wake: Arc<Notify>, max_backoff: Duration) -> Self {
        PodImages { puller, pulls: Arc::default(), backoff: Backoff::new(max_backoff), failures: HashMap::new(), wake }
    }

    pub async fn ensure(&mut self, pod: &Pod, c: &Container, auth: Vec<RegistryAuth>) -> Image {
        let image = c.image.clone().unwrap_or_default();
        let about = pod.container_reference(&c.name);
        let recorder = self.puller.recorder.clone();
        let present = match self.puller.runtime.image_status(&image).await {
            Ok(present) => present,
            Err(RuntimeError::InvalidImageName(_, why)) => {
                let message =
                    format!("Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {why}");
                recorder.warning(&about, "InspectFailed", message.clone());
                return Image::Failed(failed("InvalidImageName", message), None);
            }
            Err(e) => {
                let message = format!("Failed to inspect image {image:?}: {}", Chain(&e));
                recorder.warning(&about, "InspectFailed", message.clone());
                let again = self.puller.clock.now() + Duration::from_secs(10);
                return Image::Failed(failed("ImageInspectError", message), Some(again));
            }
        };
        match (policy(c, &image), present) {
            ("Never" | "IfNotPresent", Some(status)) => {
                self.pulls.lock().remove(&image);
                let message =
                    format!("Container image {image:?} already present on machine and can be accessed by the pod");
                recorder.normal(&about, "Pulled", message);
                Image::Ready(status)
            }
            ("Never", None) => {
                let message = format!("Container image {image:?} is not present with pull policy of Never");
                recorder.warning(&about, "ErrImageNeverPull", message.clone());
                let again = self.puller.clock.now() + Duration::from_secs(10);
                Image::Failed(failed("ErrImageNeverPull", message), Some(again))
            }
            _ => self.pull(pod, &image, about, auth),
        }
    }

    fn pull(&mut self, pod: &Pod, image: &str, about: ObjectRef, auth: Vec<RegistryAuth>) -> Image {
        let now = self.puller.clock.now();
        let ended = {
            let mut pulls = self.pulls.lock();
            match pulls.get(image) {
                Some(Pull::Running) => return Image::Pulling,
                Some(Pull::Done(_)) => pulls.remove(image),
                None => None,
            }
        };
        match ended {
            Some(Pull::Done(Ok(status))) => {
                self.failures.remove(image);
                return Image::Ready(status);
            }
            Some(Pull::Done(Err(why))) => {
                self.backoff.failed(image, now, now);
                self.failures.insert(image.to_owned(), (why.clone(), now));
                self.puller.recorder.warning(&about, "Failed", "Error: ErrImagePull");
                return Image::Failed(failed("ErrImagePull", why), Some(now + SHOWN));
            }
            _ => {}
        }
        if let Some((why, at)) = self.failures.get(image).filter(|(_, at)| now < *at + SHOWN) {
            return Image::Failed(failed("ErrImagePull", why.clone()), Some(*at + SHOWN));
        }
        if let Some((until, _)) = self.backoff.waits_since_failure(image, now) {
            let message = format!("Back-off pulling image {image:?}");
            self.puller.recorder.normal(&about, "BackOff", message.clone());
            self.puller.recorder.warning(&about, "Failed", "Error: ImagePullBackOff");
            let message = match self.failures.get(image) {
                Some((why, _)) => format!("{message}: ErrImagePull: {why}"),
                None => message,
            };
            return Image::Failed(failed("ImagePullBackOff", message), Some(until));
        }
        self.start(pod, image, about, auth);
        Image::Pulling
    }

    fn start(&self, pod: &Pod, image: &str, about: ObjectRef, auth: Vec<RegistryAuth>) {
        self.pulls.lock().insert(image.to_owned(), Pull::Running);
        let (puller, pulls, wake, image) =
            (self.puller.clone(), self.pulls.clone(), self.wake.clone(), image.to_owned());
        tracing::debug!(pod = %pod.display(), image, "pulling");
        puller.recorder.normal(&about, "Pulling", format!("Pulling image {image:?}"));
        tokio::spawn(async move {
            let asked = Instant::now();
            let slots = puller.slots.of(&image);
            let slot = slots.acquire().await;
            let started = Instant::now();
            let result = async {
                puller.runtime.pull_image(&image, auth, None).await?;
                let status = puller.runtime.image_status(&image).await?;
                status.ok_or_else(|| RuntimeError::ImageNotPresent(image.clone()))
            };
            let result = result.await;
            drop(slot);
            match &result {
                Ok(status) => {
                    let ms = |d: Duration| Duration::from_millis(d.as_millis() as u64);
                    let (alone, all) = (ms(started.elapsed()), ms(asked.elapsed()));
                    let size = status.size;
                    let message = format!(
                        "Successfully pulled image {image:?} in {alone:?} ({all:?} including waiting). Image size: {size} bytes."
                    );
                    puller.recorder.normal(&about, "Pulled", message);
                }
                Err(e) => {
                    let message = format!("Failed to pull image {image:?}: {}", Chain(e));
                    puller.recorder.warning(&about, "Failed", message);
                }
            }
            let result = result.map_err(|e| Chain(&e).to_string());
            pulls.lock().insert(image, Pull::Done(result));
            wake.notify_one();
        });
    }
}
