//! The flags of authentication and of service-account tokens. Their names and defaults are upstream's.

use crate::args::duration;
use anyhow::{Context, bail};
use clap::Args;
use isopod_apiserver::Config;
use isopod_apiserver::tokens::{BootstrapTokens, Jwt, OidcFlags, ServiceAccounts, StaticTokens, TokenWebhook};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

#[derive(Args)]
#[command(next_help_heading = "Authentication")]
pub struct AuthArgs {
    /// Serve requests without credentials as system:anonymous, as far as they are allowed anything
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true",
          action = clap::ArgAction::Set, value_name = "BOOL")]
    pub anonymous_auth: bool,
    /// Issuers of tokens, and where anonymous requests are served: an AuthenticationConfiguration
    #[arg(long, value_name = "FILE", conflicts_with_all = ["oidc_issuer_url", "oidc_client_id"])]
    pub authentication_config: Option<PathBuf>,
    /// Let bootstrap tokens (secrets of kube-system) authenticate
    #[arg(long)]
    pub enable_bootstrap_token_auth: bool,
    /// A table of tokens: token,user,uid,"group1,group2"
    #[arg(long, value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,
    /// Ask the server that this kubeconfig names about tokens
    #[arg(long, value_name = "FILE")]
    pub authentication_token_webhook_config_file: Option<PathBuf>,
    /// Version of the TokenReviews that it is sent: v1 or v1beta1
    #[arg(long, default_value = "v1beta1", value_name = "VERSION")]
    pub authentication_token_webhook_version: String,
    /// How long its answers are kept
    #[arg(long, default_value = "2m", value_parser = duration, value_name = "DURATION")]
    pub authentication_token_webhook_cache_ttl: Duration,

    /// Issuer of OpenID Connect tokens, an https URL
    #[arg(long, value_name = "URL", requires = "oidc_client_id")]
    pub oidc_issuer_url: Option<String>,
    /// Audience of its tokens
    #[arg(long, value_name = "ID", requires = "oidc_issuer_url")]
    pub oidc_client_id: Option<String>,
    /// Claim that is the user's name
    #[arg(long, default_value = "sub", value_name = "CLAIM")]
    pub oidc_username_claim: String,
    /// In front of names; -: nothing [default: the issuer and #, but for the claim email]
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT", allow_hyphen_values = true)]
    pub oidc_username_prefix: String,
    /// Claim that is the user's groups
    #[arg(long, default_value = "", hide_default_value = true, value_name = "CLAIM")]
    pub oidc_groups_claim: String,
    /// In front of groups
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub oidc_groups_prefix: String,
    /// Claim that tokens must have, KEY=VALUE (repeatable)
    #[arg(long, value_parser = pair, value_delimiter = ',', value_name = "KEY=VALUE")]
    pub oidc_required_claim: Vec<(String, String)>,
    /// Algorithms of signatures
    #[arg(long, default_value = "RS256", value_delimiter = ',', value_name = "NAME")]
    pub oidc_signing_algs: Vec<String>,
    /// CA of the issuer's certificate, PEM [default: the system's]
    #[arg(long, value_name = "FILE")]
    pub oidc_ca_file: Option<PathBuf>,

    /// Issuer of service-account tokens; the first one is written into new tokens (repeatable)
    /// [default: https://kubernetes.default.svc.CLUSTER-DOMAIN]
    #[arg(long, value_name = "URL")]
    pub service_account_issuer: Vec<String>,
    /// Key that service-account tokens are checked with, PEM (repeatable); the server's own counts too while it signs
    #[arg(long, value_name = "FILE")]
    pub service_account_key_file: Vec<PathBuf>,
    /// Key that service-account tokens are signed with, PEM [default: one of its own]
    #[arg(long, value_name = "FILE")]
    pub service_account_signing_key_file: Option<PathBuf>,
    /// Whom tokens for this server are meant for (repeatable) [default: --service-account-issuer]
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub api_audiences: Vec<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl AuthArgs {
    /// The issuers of service-account tokens, the first one writes them.
    pub fn issuers(&self, cluster_domain: &str) -> Vec<String> {
        match self.service_account_issuer.is_empty() {
            true => vec![format!("https://kubernetes.default.svc.{cluster_domain}")],
            false => self.service_account_issuer.clone(),
        }
    }

    /// Sets up who is asked about credentials. `own`: issuers of service-account tokens; `server`: the name of this server. The
    /// issuers of a configuration file are returned.
    pub fn apply(&self, config: &mut Config, own: &[String], server: &str) -> anyhow::Result<Option<Arc<Jwt>>> {
        config.anonymous_auth = self.anonymous_auth;
        let mut sources: Vec<Arc<dyn isopod_apiserver::tokens::TokenSource>> = Vec::new();
        if let Some(file) = &self.token_auth_file {
            sources.push(Arc::new(StaticTokens::read(file)?));
        }
        sources.push(Arc::new(ServiceAccounts));
        if self.enable_bootstrap_token_auth {
            sources.push(Arc::new(BootstrapTokens));
        }
        let issuers = self.jwt(own, server)?.map(Arc::new);
        if let Some(jwt) = issuers.clone() {
            if let Some((enabled, paths)) = &jwt.anonymous {
                if !self.anonymous_auth {
                    bail!("--anonymous-auth and the anonymous field of --authentication-config exclude one another");
                }
                (config.anonymous_auth, config.anonymous_paths) = (*enabled, paths.clone());
            }
            sources.push(jwt);
        }
        if let Some(file) = &self.authentication_token_webhook_config_file {
            let (version, ttl) =
                (&self.authentication_token_webhook_version, self.authentication_token_webhook_cache_ttl);
            sources.push(Arc::new(TokenWebhook::new(file, version, ttl).context("the authentication webhook")?));
        }
        config.token_sources = sources;
        Ok(issuers)
    }

    fn jwt(&self, own: &[String], server: &str) -> anyhow::Result<Option<Jwt>> {
        if let Some(file) = &self.authentication_config {
            return Ok(Some(Jwt::read(file, own, &format!("apiserver-{server}"))?));
        }
        let (Some(issuer_url), Some(client_id)) = (&self.oidc_issuer_url, &self.oidc_client_id) else {
            return Ok(None);
        };
        let flags = OidcFlags {
            issuer_url: issuer_url.clone(),
            client_id: client_id.clone(),
            username_claim: self.oidc_username_claim.clone(),
            username_prefix: self.oidc_username_prefix.clone(),
            groups_claim: self.oidc_groups_claim.clone(),
            groups_prefix: self.oidc_groups_prefix.clone(),
            required_claims: self.oidc_required_claim.clone(),
            signing_algorithms: self.oidc_signing_algs.clone(),
            ca_file: self.oidc_ca_file.clone(),
        };
        Ok(Some(Jwt::from_flags(&flags, own)?))
    }
}
