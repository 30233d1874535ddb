//! The parts of OCI and Docker manifests, indexes and configs that a runtime reads.

use super::{Digest, ImageError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub digest: Digest,
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    pub media_type: String,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub variant: String,
}

/// A manifest or an index, told apart by what it has.
#[derive(Clone, Debug, Deserialize)]
pub struct Manifest {
    pub config: Option<Descriptor>,
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    pub manifests: Option<Vec<Descriptor>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    #[serde(default)]
    pub config: RunConfig,
    #[serde(default)]
    pub rootfs: RootFs,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    #[serde(default)]
    pub diff_ids: Vec<Digest>,
}

/// How the image wants to be run. Docker writes `null` for what is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    #[serde(deserialize_with = "null_is_default")]
    pub user: String,
    #[serde(deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub cmd: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub working_dir: String,
    #[serde(deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_is_default")]
    pub stop_signal: String,
}

fn null_is_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// This machine's architecture in Go's words, which platforms are named by.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// The index's manifest for this machine. Variants: the baseline ones, or none, fit.
pub fn for_this_platform(manifests: &[Descriptor]) -> Result<&Descriptor, ImageError> {
    let want = architecture();
    let fits = |d: &&Descriptor| {
        d.platform.as_ref().is_some_and(|p| {
            p.os == "linux" && p.architecture == want && matches!(p.variant.as_str(), "" | "v8" | "v1")
        })
    };
    let only = || manifests.first().filter(|d| manifests.len() == 1 && d.platform.is_none());
    manifests.iter().find(fits).or_else(only).ok_or_else(|| ImageError::NoPlatform(format!("linux/{want}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_this_platform() {
        let digest = |n: u8| Digest::of(&[n]);
        let entry = |n, os: &str, architecture: &str, variant: &str| {
            let platform = Platform { os: os.into(), architecture: architecture.into(), variant: variant.into() };
            Descriptor {
                digest: digest(n),
                size: 0,
                media_type: String::new(),
                platform: Some(platform),
                annotations: BTreeMap::new(),
            }
        };
        let all = [
            entry(0, "windows", architecture(), ""),
            entry(1, "linux", "s390x", ""),
            entry(2, "linux", architecture(), "v3"),
            entry(3, "linux", architecture(), ""),
            entry(4, "unknown", "unknown", ""),
        ];
        assert_eq!(for_this_platform(&all).unwrap().digest, digest(3));
        assert!(for_this_platform(&all[..2]).is_err());
    }

    #[test]
    fn null_in_a_config_is_nothing() {
        let text = r#"{"config":{"User":null,"Env":["A=b"],"Cmd":null,"Labels":null},"rootfs":{"diff_ids":[]}}"#;
        let c: ImageConfig = serde_json::from_str(text).unwrap();
        assert_eq!((c.config.env.as_slice(), c.config.cmd.len()), (&["A=b".to_owned()][..], 0));
    }
}
