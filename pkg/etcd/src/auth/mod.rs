//! Authentication and authorization, as etcd has them: users with passwords or certificates, roles with ranges of keys.
//! Off until somebody enables it.
//!
//! Invariants: what a caller may do is decided on one state of users and roles, and while he does it nothing of that state
//! changes on this server; a change is answered when the store has it. Another server on the same database sees a change
//! within [`FRESH`].

mod jwt;
mod password;
mod ranges;
pub(crate) mod requests;
mod service;
mod state;
mod tokens;

use crate::pb::authpb;
use crate::status;
use bytes::Bytes;
use isopod_store::{KeyRange, Store};
use parking_lot::RwLock;
pub(crate) use state::State;
use std::sync::Arc;
use std::time::Duration;
use tokens::Tokens;
use tokio::sync::OwnedRwLockReadGuard;
use tokio::time::Instant;
use tonic::{Request, Status};

pub use tokens::{TokenError, TokenOptions};

/// Where the store keeps the state.
const SETTING: &str = "auth";
/// How old what is known of the state may be: another server may have changed it.
const FRESH: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct AuthConfig {
    pub tokens: TokenOptions,
    /// How long a simple token lives unused.
    pub token_ttl: Duration,
    /// Of new passwords: 4 to 31, each step takes twice as long.
    pub bcrypt_cost: u32,
    /// Who shows no token is whom the common name of the client's certificate names.
    pub certificates: bool,
}

impl Default for AuthConfig {
    fn default() -> Self {
        AuthConfig {
            tokens: TokenOptions::Simple,
            token_ttl: Duration::from_secs(300),
            bcrypt_cost: 10,
            certificates: false,
        }
    }
}

/// The common name of the certificate that a connection was opened with: an extension of its requests.
#[derive(Clone)]
pub(crate) struct CommonName(pub Arc<str>);

/// What a request shows of who sent it.
#[derive(Clone, Default)]
pub(crate) struct Credentials {
    token: Option<String>,
    common_name: Option<CommonName>,
}

impl Credentials {
    pub fn of<T>(request: &Request<T>) -> Self {
        let text = |name: &str| request.metadata().get(name).and_then(|v| v.to_str().ok());
        let token = text("token").or_else(|| text("authorization"));
        // A gateway shows its own certificate, not its client's.
        let gateway = request.metadata().contains_key("grpcgateway-accept");
        Credentials {
            token: token.map(|t| t.strip_prefix("Bearer ").unwrap_or(t).to_owned()),
            common_name: request.extensions().get::<CommonName>().filter(|_| !gateway).cloned(),
        }
    }
}

/// Who somebody is, and the revision of users and roles that he knew of.
pub(crate) struct Identity {
    pub name: String,
    pub revision: u64,
}

/// Somebody who wants something, and the state that decides whether he gets it.
pub(crate) struct Caller {
    state: Arc<State>,
    who: Option<Identity>,
    /// No change passes while it is held. Ask for no second one meanwhile.
    _unchanged: Option<OwnedRwLockReadGuard<()>>,
}

impl Caller {
    /// Authentication is off.
    pub fn is_free(&self) -> bool {
        !self.state.enabled
    }

    pub fn check_read(&self, range: &KeyRange) -> Result<(), Status> {
        self.state.check_read(self.who.as_ref(), range)
    }

    pub fn check_write(&self, range: &KeyRange) -> Result<(), Status> {
        self.state.check_write(self.who.as_ref(), range)
    }

    /// Has he the role `root`?
    pub fn check_admin(&self) -> Result<(), Status> {
        self.state.check_admin(self.who.as_ref())
    }

    pub fn check_known(&self) -> Result<(), Status> {
        self.state.check_known(self.who.as_ref())
    }
}

#[derive(Clone)]
struct Loaded {
    state: Arc<State>,
    /// As the store has it.
    stored: Option<Bytes>,
    at: Instant,
}

pub(crate) struct Auth {
    store: Arc<dyn Store>,
    tokens: Tokens,
    bcrypt_cost: u32,
    certificates: bool,
    /// Held for writing by a change.
    gate: Arc<tokio::sync::RwLock<()>>,
    loaded: RwLock<Loaded>,
    /// One request reads the state anew for all that wait for it.
    reloading: tokio::sync::Mutex<()>,
}

impl Auth {
    pub async fn new(store: Arc<dyn Store>, config: &AuthConfig) -> isopod_store::Result<Self> {
        let loaded = read(&*store).await?;
        Ok(Auth {
            store,
            tokens: Tokens::new(&config.tokens, config.token_ttl),
            bcrypt_cost: password::cost(config.bcrypt_cost),
            certificates: config.certificates,
            gate: Arc::default(),
            loaded: RwLock::new(loaded),
            reloading: tokio::sync::Mutex::default(),
        })
    }

    /// The users, the roles and whether they count.
    pub async fn state(&self) -> Result<Arc<State>, Status> {
        if let Some(state) = self.fresh() {
            return Ok(state);
        }
        let _one = self.reloading.lock().await;
        match self.fresh() {
            Some(state) => Ok(state),
            None => Ok(self.reload().await?.state),
        }
    }

    fn fresh(&self) -> Option<Arc<State>> {
        let loaded = self.loaded.read();
        (loaded.at.elapsed() < FRESH).then(|| Arc::clone(&loaded.state))
    }

    async fn reload(&self) -> Result<Loaded, Status> {
        let found = read(&*self.store).await.map_err(status::of)?;
        let mut loaded = self.loaded.write();
        // One that was read earlier is no news.
        if loaded.at < found.at {
            if loaded.state.enabled && !found.state.enabled {
                self.tokens.forget();
            }
            *loaded = found;
        }
        Ok(loaded.clone())
    }

    /// `None`: nothing was shown, or nobody asks for it.
    fn identify(&self, state: &State, shown: &Credentials) -> Result<Option<Identity>, Status> {
        if !state.enabled {
            return Ok(None);
        }
        if let Some(token) = &shown.token {
            return self.tokens.identify(token, state).map(Some).ok_or_else(status::invalid_auth_token);
        }
        let certified = shown.common_name.as_ref().filter(|_| self.certificates);
        Ok(certified.map(|CommonName(name)| Identity { name: name.to_string(), revision: state.revision }))
    }

    /// Lets somebody in. What he may do he is asked with the caller's checks.
    pub async fn admit(&self, shown: &Credentials) -> Result<Caller, Status> {
        let mut state = self.state().await?;
        let mut unchanged = None;
        if state.enabled {
            unchanged = Some(Arc::clone(&self.gate).read_owned().await);
            state = self.state().await?;
        }
        let who = self.identify(&state, shown)?;
        Ok(Caller { state, who, _unchanged: unchanged })
    }

    /// A change of users or roles, which only administrators make. It is made anew on what another server has made meanwhile.
    async fn change(
        &self,
        shown: &Credentials,
        change: impl Fn(&mut State) -> Result<(), Status>,
    ) -> Result<(), Status> {
        let _alone = self.gate.write().await;
        loop {
            let Loaded { state: before, stored, .. } = self.reload().await?;
            let who = self.identify(&before, shown)?;
            before.check_admin(who.as_ref())?;
            let mut state = State::clone(&before);
            change(&mut state)?;
            if state.revision == before.revision && state.enabled == before.enabled {
                return Ok(());
            }
            let next = Some(state.encode());
            if !self.store.swap_setting(SETTING, stored, next.clone()).await.map_err(status::of)? {
                continue;
            }
            if !state.enabled {
                self.tokens.forget();
            }
            *self.loaded.write() = Loaded { state: Arc::new(state), stored: next, at: Instant::now() };
            return Ok(());
        }
    }

    /// A token for who knows the password.
    async fn authenticate(&self, name: &str, given: String) -> Result<String, Status> {
        let state = self.state().await?;
        if !state.enabled {
            return Err(status::auth_not_enabled());
        }
        let user: &authpb::User = state.user(name).ok_or_else(status::auth_failed)?;
        if state::without_password(user) {
            return Err(status::no_password_user());
        }
        if !password::matches(given, &user.password).await? {
            return Err(status::auth_failed());
        }
        // The password may have been changed meanwhile: then the token, made for the old one, is worth nothing.
        let token = self.tokens.issue(name, &user.password, state.revision);
        token.ok_or_else(|| Status::unknown("auth: token signing attempted with verify-only key"))
    }
}

async fn read(store: &dyn Store) -> isopod_store::Result<Loaded> {
    let at = Instant::now();
    let stored = store.setting(SETTING).await?;
    let state = stored.as_deref().map(State::decode).transpose()?.unwrap_or_default();
    Ok(Loaded { state: Arc::new(state), stored, at })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use isopod_store::memory::MemoryStore;
    use std::cell::Cell;

    #[tokio::test]
    async fn a_change_is_made_on_what_another_server_has_just_made() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let open = async || Auth::new(Arc::clone(&store), &AuthConfig::default()).await.unwrap();
        let (one, other) = (open().await, open().await);
        let nobody = Credentials::default();
        let first = Cell::new(true);
        let change = |state: &mut State| {
            if first.take() {
                let beside = other.change(&nobody, |state| state.add_role("beside".into()));
                beside.now_or_never().expect("memory answers at once")?;
            }
            state.add_role("mine".into())
        };
        one.change(&nobody, change).await.unwrap();
        for auth in [&one, &other] {
            let state = auth.reload().await.unwrap().state;
            assert_eq!(state.roles().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["beside", "mine"]);
        }
        let again = other.change(&nobody, |state| state.add_role("mine".into())).await.unwrap_err();
        assert_eq!(again.code(), status::role_exists().code(), "what the other server made counts here");
    }
}
