//! Bearer tokens: who made them and whom they stand for. One file a source; a request's token is shown to each in turn, and the
//! first that knows it decides. `TokenReview` asks the same sources.

mod bootstrap;
mod claims;
mod issuer;
mod jwt;
mod legacy;
mod service_accounts;
mod static_file;
mod webhook;

pub use bootstrap::BootstrapTokens;
pub use jwt::{Jwt, JwtError, OidcFlags};
pub use service_accounts::ServiceAccounts;
pub use static_file::{StaticTokens, TokenFileError};
pub use webhook::TokenWebhook;

use crate::ApiServer;
use crate::audit::Trail;
use async_trait::async_trait;
use isopod_api::UserInfo;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;

/// A user, and the audiences, of those that were asked for, that the token is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub user: UserInfo,
    pub audiences: Vec<String>,
}

/// What there is to say about a token beside whom it stands for.
pub struct Remarks<'a> {
    /// Texts for `Warning` headers.
    pub warnings: &'a Mutex<Vec<String>>,
    /// For the audit log.
    pub trail: &'a Trail,
}

/// Tells users from tokens.
#[async_trait]
pub trait TokenSource: Send + Sync {
    /// `Ok(None)`: the token is none of this source. `audiences` is never empty. The error is upstream's sentence, which
    /// reviews show.
    async fn known(
        &self,
        server: &ApiServer,
        token: &str,
        audiences: &[String],
        remarks: &Remarks<'_>,
    ) -> Result<Option<Known>, String>;

    /// Shows its metrics.
    fn register(&self, _registry: &mut Registry) {}
}

impl ApiServer {
    /// Whom tokens for this server are meant for.
    pub(crate) fn audiences(&self) -> &[String] {
        self.config.tokens.as_ref().map(|t| t.api_audiences()).unwrap_or_default()
    }

    /// The user of a token and the audiences, of those asked for, that it is good for (none asked for: the API server's).
    /// The error is upstream's sentence.
    pub(crate) async fn verify_token(
        &self,
        token: &str,
        audiences: &[String],
        remarks: &Remarks<'_>,
    ) -> Result<(UserInfo, Vec<String>), String> {
        const INVALID: &str = "invalid bearer token";
        let wanted = if audiences.is_empty() { self.audiences() } else { audiences };
        let mut errors = vec![INVALID.to_owned()];
        for source in &self.config.token_sources {
            match source.known(self, token, wanted, remarks).await {
                Ok(Some(known)) => return Ok((crate::authn::authenticated(known.user), known.audiences)),
                Ok(None) => {}
                Err(e) => errors.push(e),
            }
        }
        Err(if errors.len() > 1 { format!("[{}]", errors.join(", ")) } else { INVALID.to_owned() })
    }
}

/// Which of the wanted audiences a token is good for that says nothing of audiences: those of this server. `None`: none.
fn implicit(server: &ApiServer, wanted: &[String]) -> Option<Vec<String>> {
    let own = server.audiences();
    if own.is_empty() && wanted.is_empty() {
        return Some(Vec::new());
    }
    let good: Vec<String> = wanted.iter().filter(|a| own.contains(a)).cloned().collect();
    (!good.is_empty()).then_some(good)
}
