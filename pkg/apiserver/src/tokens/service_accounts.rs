//! Tokens of service accounts. The account, and what the token is bound to, must still be there.

use super::{Known, Remarks, TokenSource, legacy};
use crate::ApiServer;
use async_trait::async_trait;

pub struct ServiceAccounts;

#[async_trait]
impl TokenSource for ServiceAccounts {
    async fn known(
        &self,
        server: &ApiServer,
        token: &str,
        audiences: &[String],
        remarks: &Remarks<'_>,
    ) -> Result<Option<Known>, String> {
        let now = server.config.clock.now();
        let Some(verified) = server.config.tokens.as_ref().and_then(|t| t.verify(token, audiences, now)) else {
            return Ok(None);
        };
        let verified = verified.map_err(|e| e.to_string())?;
        if verified.legacy {
            legacy::check(server, &verified, token, remarks).await?;
        } else {
            for reference in verified.references() {
                let there = server.read("", reference.resource, &reference.namespace, &reference.name).await;
                let there = there.map_err(|e| e.to_string())?;
                verified.check_reference(&reference, there.as_deref(), now).map_err(|e| e.to_string())?;
            }
        }
        let warn_after = verified.claims.kubernetes.warn_after.filter(|_| !verified.legacy);
        let stale = warn_after.is_some_and(|at| at < now.as_second());
        server.metrics.tokens.accepted(verified.legacy, stale);
        Ok(Some(Known { user: verified.user(), audiences: verified.audiences }))
    }
}
