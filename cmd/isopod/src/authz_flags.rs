//! The flags of authorization. Their names are upstream's; without any, nodes and RBAC decide.

use crate::args::duration;
use anyhow::bail;
use clap::Args;
use isopod_apiserver::Access;
use isopod_apiserver::authorization::{AuthorizerChain, Builtins, Flags};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

#[derive(Args, Clone)]
#[command(next_help_heading = "Authorization")]
pub struct AuthorizationArgs {
    /// Who decides, in order: AlwaysAllow, AlwaysDeny, ABAC, Webhook, RBAC, Node [default: Node,RBAC]
    #[arg(long, value_delimiter = ',', value_name = "MODE")]
    pub authorization_mode: Vec<String>,
    /// Who decides, in order, and what webhooks are asked: an AuthorizationConfiguration, followed while it changes
    #[arg(long, value_name = "FILE")]
    pub authorization_config: Option<PathBuf>,
    /// Policies of mode ABAC, one a line
    #[arg(long, value_name = "FILE")]
    pub authorization_policy_file: Option<PathBuf>,
    /// Mode Webhook asks the server that this kubeconfig names
    #[arg(long, value_name = "FILE")]
    pub authorization_webhook_config_file: Option<PathBuf>,
    /// Version of the SubjectAccessReviews that it is sent: v1 or v1beta1 [default: v1beta1]
    #[arg(long, value_name = "VERSION")]
    pub authorization_webhook_version: Option<String>,
    /// How long what it allows is kept [default: 5m]
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub authorization_webhook_cache_authorized_ttl: Option<Duration>,
    /// How long what it does not allow is kept [default: 30s]
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub authorization_webhook_cache_unauthorized_ttl: Option<Duration>,
}

impl AuthorizationArgs {
    pub fn chain(&self, access: &Arc<Access>, server: &str) -> anyhow::Result<Arc<AuthorizerChain>> {
        let builtins = Builtins {
            access: access.clone(),
            policy_file: self.authorization_policy_file.clone(),
            identity: format!("apiserver-{server}"),
        };
        let flags = Flags {
            modes: self.authorization_mode.clone(),
            policy_file: self.authorization_policy_file.clone(),
            webhook_config_file: self.authorization_webhook_config_file.clone(),
            webhook_version: self.authorization_webhook_version.clone(),
            authorized_ttl: self.authorization_webhook_cache_authorized_ttl,
            unauthorized_ttl: self.authorization_webhook_cache_unauthorized_ttl,
        };
        let Some(file) = &self.authorization_config else { return Ok(AuthorizerChain::from_flags(&flags, &builtins)?) };
        // The policy file is no part of a configuration.
        if (Flags { policy_file: None, ..flags }) != Flags::default() {
            bail!(
                "--authorization-config can not be specified when --authorization-mode or --authorization-webhook-* flags are defined"
            );
        }
        Ok(AuthorizerChain::from_file(file, &builtins)?)
    }

    /// Whether flags let everybody do everything.
    pub fn allows_everything(&self) -> bool {
        self.authorization_mode.iter().any(|m| m == "AlwaysAllow")
    }
}
