//! The flags of the signers of certificate requests. Their names are kube-controller-manager's.

use crate::args::duration;
use anyhow::{Context, bail};
use clap::Args;
use isopod_controllers::certificates::signing::Signers;
use isopod_controllers::certificates::{CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY};
use isopod_pki::signing::AuthorityFiles;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Without any of the files the cluster's own authorities sign: that of clients, and for servers that of servers.
#[derive(Args)]
#[command(next_help_heading = "Certificate requests")]
pub struct SigningArgs {
    /// CA that signs approved certificate requests, PEM [default: the cluster's own]
    #[arg(long, value_name = "FILE", requires = "cluster_signing_key_file")]
    pub cluster_signing_cert_file: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "cluster_signing_cert_file")]
    pub cluster_signing_key_file: Option<PathBuf>,
    /// How long certificates live, at most
    #[arg(long, default_value = "8760h", value_parser = duration, value_name = "DURATION")]
    pub cluster_signing_duration: Duration,
    /// CA for kubernetes.io/kube-apiserver-client. Signers without a CA of their own then sign nothing
    #[arg(long, value_name = "FILE", requires = "cluster_signing_kube_apiserver_client_key_file")]
    pub cluster_signing_kube_apiserver_client_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "cluster_signing_kube_apiserver_client_cert_file")]
    pub cluster_signing_kube_apiserver_client_key_file: Option<PathBuf>,
    /// CA for kubernetes.io/kube-apiserver-client-kubelet
    #[arg(long, value_name = "FILE", requires = "cluster_signing_kubelet_client_key_file")]
    pub cluster_signing_kubelet_client_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "cluster_signing_kubelet_client_cert_file")]
    pub cluster_signing_kubelet_client_key_file: Option<PathBuf>,
    /// CA for kubernetes.io/kubelet-serving
    #[arg(long, value_name = "FILE", requires = "cluster_signing_kubelet_serving_key_file")]
    pub cluster_signing_kubelet_serving_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "cluster_signing_kubelet_serving_cert_file")]
    pub cluster_signing_kubelet_serving_key_file: Option<PathBuf>,
    /// CA for kubernetes.io/legacy-unknown
    #[arg(long, value_name = "FILE", requires = "cluster_signing_legacy_unknown_key_file")]
    pub cluster_signing_legacy_unknown_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "cluster_signing_legacy_unknown_cert_file")]
    pub cluster_signing_legacy_unknown_key_file: Option<PathBuf>,
}

fn files(certificate: Option<&PathBuf>, key: Option<&PathBuf>) -> Option<AuthorityFiles> {
    Some(AuthorityFiles { certificate: certificate?.clone(), key: key?.clone() })
}

impl SigningArgs {
    /// `tls`: where the cluster's own authorities lie. Files that cannot sign are refused.
    pub fn signers(&self, tls: &Path) -> anyhow::Result<Signers> {
        let all = files(self.cluster_signing_cert_file.as_ref(), self.cluster_signing_key_file.as_ref());
        let each = self.of_each();
        let has_own = each.iter().any(|(_, files)| files.is_some());
        if has_own && all.is_some() {
            bail!(
                "cannot specify default and per controller certs at the same time: leave out --cluster-signing-cert-file \
                 and --cluster-signing-key-file, or give all signers these"
            );
        }
        let cluster = |signer| {
            let name = if matches!(signer, CLIENT | KUBELET_CLIENT) { "client-ca" } else { "server-ca" };
            AuthorityFiles { certificate: tls.join(format!("{name}.crt")), key: tls.join(format!("{name}.key")) }
        };
        let chosen = each.into_iter().filter_map(|(signer, own)| match has_own {
            true => own.map(|own| (signer, own)),
            false => Some((signer, all.clone().unwrap_or_else(|| cluster(signer)))),
        });
        let signers = Signers { authorities: chosen.collect(), duration: self.cluster_signing_duration };
        for (signer, files) in &signers.authorities {
            files.load().with_context(|| format!("cannot sign certificate requests as {signer}"))?;
        }
        Ok(signers)
    }

    fn of_each(&self) -> [(&'static str, Option<AuthorityFiles>); 4] {
        [
            (
                CLIENT,
                files(
                    self.cluster_signing_kube_apiserver_client_cert_file.as_ref(),
                    self.cluster_signing_kube_apiserver_client_key_file.as_ref(),
                ),
            ),
            (
                KUBELET_CLIENT,
                files(
                    self.cluster_signing_kubelet_client_cert_file.as_ref(),
                    self.cluster_signing_kubelet_client_key_file.as_ref(),
                ),
            ),
            (
                KUBELET_SERVING,
                files(
                    self.cluster_signing_kubelet_serving_cert_file.as_ref(),
                    self.cluster_signing_kubelet_serving_key_file.as_ref(),
                ),
            ),
            (
                LEGACY,
                files(
                    self.cluster_signing_legacy_unknown_cert_file.as_ref(),
                    self.cluster_signing_legacy_unknown_key_file.as_ref(),
                ),
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use isopod_pki::CertAuthority;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        signing: SigningArgs,
    }

    /// Who signs, with the names of their CAs' files.
    fn signers(tls: &Path, flags: &[&str]) -> Result<String, String> {
        let in_dir = |flag: &&str| match flag.split_once('=') {
            Some((name, file)) => format!("{name}={}", tls.join(file).display()),
            None => (*flag).to_owned(),
        };
        let parsed = Flags::try_parse_from(std::iter::once("x".to_owned()).chain(flags.iter().map(in_dir)));
        let signers = parsed.map_err(|e| e.to_string())?.signing.signers(tls).map_err(|e| format!("{e:#}"))?;
        let each = signers.authorities.iter().map(|(signer, files)| {
            format!("{}={}", &signer[14..], files.certificate.file_name().unwrap_or_default().to_string_lossy())
        });
        Ok(each.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn who_signs_with_what() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["client-ca", "server-ca", "my"] {
            CertAuthority::load_or_create(dir.path(), name).unwrap();
        }
        let (own, own_key) =
            ("--cluster-signing-kubelet-serving-cert-file=my.crt", "--cluster-signing-kubelet-serving-key-file=my.key");
        let (all, all_key) = ("--cluster-signing-cert-file=my.crt", "--cluster-signing-key-file=my.key");
        let check = |flags: &[&str]| signers(dir.path(), flags);
        assert_eq!(
            check(&[]).unwrap(),
            "kube-apiserver-client=client-ca.crt kube-apiserver-client-kubelet=client-ca.crt \
             kubelet-serving=server-ca.crt legacy-unknown=server-ca.crt"
        );
        assert_eq!(
            check(&[all, all_key]).unwrap(),
            "kube-apiserver-client=my.crt kube-apiserver-client-kubelet=my.crt kubelet-serving=my.crt legacy-unknown=my.crt"
        );
        assert_eq!(check(&[own, own_key]).unwrap(), "kubelet-serving=my.crt");
        for (flags, want) in [
            (&[own][..], "--cluster-signing-kubelet-serving-key-file"),
            (&[own, own_key, all, all_key], "cannot specify default and per controller certs"),
            (&[all, "--cluster-signing-key-file=client-ca.key"], "cannot sign certificate requests as kubernetes.io/"),
        ] {
            let said = check(flags).unwrap_err();
            assert!(said.contains(want), "{said}");
        }
    }
}
