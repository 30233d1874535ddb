//! The service `Auth`.

use super::{Credentials, State, password};
use crate::pb::etcdserverpb as pb;
use crate::service::Service;
use crate::status;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tonic::{Request, Response, Status};

impl Service {
    async fn change<R: Clone>(
        &self,
        request: Request<R>,
        change: impl Fn(&mut State, R) -> Result<(), Status>,
    ) -> Result<Option<pb::ResponseHeader>, Status> {
        let shown = Credentials::of(&request);
        let request = request.into_inner();
        self.auth.change(&shown, |state| change(state, request.clone())).await?;
        self.newest().await
    }
}

#[tonic::async_trait]
impl pb::auth_server::Auth for Service {
    async fn auth_enable(
        &self,
        request: Request<pb::AuthEnableRequest>,
    ) -> Result<Response<pb::AuthEnableResponse>, Status> {
        let header = self.change(request, |state, _| state.enable()).await?;
        Ok(Response::new(pb::AuthEnableResponse { header }))
    }

    async fn auth_disable(
        &self,
        request: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        let header = self
            .change(request, |state, _| {
                state.disable();
                Ok(())
            })
            .await?;
        Ok(Response::new(pb::AuthDisableResponse { header }))
    }

    async fn user_delete(
        &self,
        request: Request<pb::AuthUserDeleteRequest>,
    ) -> Result<Response<pb::AuthUserDeleteResponse>, Status> {
        let header = self.change(request, |state, r| state.delete_user(&r.name)).await?;
        Ok(Response::new(pb::AuthUserDeleteResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Response<pb::AuthUserGrantRoleResponse>, Status> {
        let header = self.change(request, |state, r| state.grant_role(&r.user, &r.role)).await?;
        Ok(Response::new(pb::AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<pb::AuthUserRevokeRoleResponse>, Status> {
        let header = self.change(request, |state, r| state.revoke_role(&r.name, &r.role)).await?;
        Ok(Response::new(pb::AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(
        &self,
        request: Request<pb::AuthRoleAddRequest>,
    ) -> Result<Response<pb::AuthRoleAddResponse>, Status> {
        let header = self.change(request, |state, r| state.add_role(r.name)).await?;
        Ok(Response::new(pb::AuthRoleAddResponse { header }))
    }

    async fn role_delete(
        &self,
        request: Request<pb::AuthRoleDeleteRequest>,
    ) -> Result<Response<pb::AuthRoleDeleteResponse>, Status> {
        let header = self.change(request, |state, r| state.delete_role(&r.role)).await?;
        Ok(Response::new(pb::AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
        let header = self.change(request, |state, r| state.grant_permission(&r.name, r.perm)).await?;
        Ok(Response::new(pb::AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<pb::AuthRoleRevokePermissionResponse>, Status> {
        let header = self.change(request, |state, r| state.revoke_permission(&r.role, &r.key, &r.range_end)).await?;
        Ok(Response::new(pb::AuthRoleRevokePermissionResponse { header }))
    }

    async fn auth_status(
        &self,
        request: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        // Whoever cannot show a good token is told, but who shows none learns whether one is needed.
        self.caller(&Credentials::of(&request)).await?;
        let state = self.auth.state().await?;
        let header = self.newest().await?;
        Ok(Response::new(pb::AuthStatusResponse { header, enabled: state.enabled, auth_revision: state.revision }))
    }

    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        let pb::AuthenticateRequest { name, password } = request.into_inner();
        let token = self.auth.authenticate(&name, password).await?;
        Ok(Response::new(pb::AuthenticateResponse { header: self.newest().await?, token }))
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        let shown = Credentials::of(&request);
        let r = request.into_inner();
        let hash = if r.options.is_some_and(|o| o.no_password) {
            None
        } else {
            // Hashing costs: nobody makes the server do it who may not.
            self.admin(&shown).await?;
            Some(password::hash(r.password, self.auth.bcrypt_cost).await?)
        };
        self.auth.change(&shown, |state| state.add_user(r.name.clone(), hash.clone())).await?;
        Ok(Response::new(pb::AuthUserAddResponse { header: self.newest().await? }))
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        let shown = Credentials::of(&request);
        let r = request.into_inner();
        self.admin(&shown).await?;
        // A client may send the hash instead.
        let hash = if r.password.is_empty() {
            STANDARD.decode(&r.hashed_password).map(Bytes::from).map_err(|_| status::no_password_user())
        } else {
            Ok(password::hash(r.password, self.auth.bcrypt_cost).await?)
        };
        self.auth.change(&shown, |state| state.change_password(&r.name, hash.clone()?)).await?;
        Ok(Response::new(pb::AuthUserChangePasswordResponse { header: self.newest().await? }))
    }

    async fn user_get(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        let caller = self.caller(&Credentials::of(&request)).await?;
        let name = request.into_inner().name;
        // Everybody may look at himself.
        if caller.who.as_ref().is_none_or(|w| w.name != name) {
            caller.check_admin()?;
        }
        let roles = caller.state.roles_of(&name)?;
        Ok(Response::new(pb::AuthUserGetResponse { header: self.newest().await?, roles }))
    }

    async fn user_list(
        &self,
        request: Request<pb::AuthUserListRequest>,
    ) -> Result<Response<pb::AuthUserListResponse>, Status> {
        let caller = self.admin(&Credentials::of(&request)).await?;
        let users = caller.state.users().map(|(name, _)| name.clone()).collect();
        Ok(Response::new(pb::AuthUserListResponse { header: self.newest().await?, users }))
    }

    async fn role_get(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        let caller = self.caller(&Credentials::of(&request)).await?;
        let role = request.into_inner().role;
        // And at the roles that he has.
        if !caller.who.as_ref().is_some_and(|w| caller.state.has_role(&w.name, &role)) {
            caller.check_admin()?;
        }
        let perm = caller.state.permissions_of(&role)?;
        Ok(Response::new(pb::AuthRoleGetResponse { header: self.newest().await?, perm }))
    }

    async fn role_list(
        &self,
        request: Request<pb::AuthRoleListRequest>,
    ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        let caller = self.admin(&Credentials::of(&request)).await?;
        let roles = caller.state.roles().map(|(name, _)| name.clone()).collect();
        Ok(Response::new(pb::AuthRoleListResponse { header: self.newest().await?, roles }))
    }
}
