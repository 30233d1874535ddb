//! Users, roles and whether they count: etcd's rules over plain values. Everything here is one value in the store, so that
//! a change is seen whole or not at all.

use super::Identity;
use super::ranges::Ranges;
use crate::pb::authpb::{Permission, Role, User, UserAddOptions, permission::Type};
use crate::status;
use bytes::Bytes;
use isopod_store::{KeyRange, StoreError};
use prost::Message as _;
use std::collections::{BTreeMap, HashMap};
use tonic::Status;

type Checked = Result<(), Status>;

const ROOT: &str = "root";

/// As the store keeps it.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
struct Stored {
    #[prost(bool, tag = "1")]
    enabled: bool,
    #[prost(uint64, tag = "2")]
    revision: u64,
    #[prost(message, repeated, tag = "3")]
    users: Vec<User>,
    #[prost(message, repeated, tag = "4")]
    roles: Vec<Role>,
}

#[derive(Clone)]
pub(crate) struct State {
    pub enabled: bool,
    /// Counts the changes. A token that carries an older one must be fetched anew.
    pub revision: u64,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, Role>,
    /// What follows from users and roles.
    access: HashMap<String, Access>,
}

#[derive(Clone, Default)]
struct Access {
    read: Ranges,
    write: Ranges,
}

impl Default for State {
    /// etcd's counter begins at 1.
    fn default() -> Self {
        State { enabled: false, revision: 1, users: BTreeMap::new(), roles: BTreeMap::new(), access: HashMap::new() }
    }
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

impl State {
    pub fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let stored = Stored::decode(bytes)
            .map_err(|e| StoreError::Corrupt(format!("the users and roles of the datastore cannot be read: {e}")))?;
        let mut state = State {
            enabled: stored.enabled,
            revision: stored.revision,
            users: stored.users.into_iter().map(|u| (text(&u.name), u)).collect(),
            roles: stored.roles.into_iter().map(|r| (text(&r.name), r)).collect(),
            access: HashMap::new(),
        };
        state.derive_access();
        Ok(state)
    }

    pub fn encode(&self) -> Bytes {
        let stored = Stored {
            enabled: self.enabled,
            revision: self.revision,
            users: self.users.values().cloned().collect(),
            roles: self.roles.values().cloned().collect(),
        };
        stored.encode_to_vec().into()
    }

    pub fn users(&self) -> impl Iterator<Item = (&String, &User)> {
        self.users.iter()
    }

    pub fn roles(&self) -> impl Iterator<Item = (&String, &Role)> {
        self.roles.iter()
    }

    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    fn changed(&mut self) {
        self.revision += 1;
        self.derive_access();
    }

    fn derive_access(&mut self) {
        let access = |user: &User| {
            let granted = || user.roles.iter().filter_map(|r| self.roles.get(r)).flat_map(|r| &r.key_permission);
            let ranges = |wanted: Type| {
                let fits = move |p: &&Permission| {
                    Type::try_from(p.perm_type).is_ok_and(|t| t == wanted || t == Type::Readwrite)
                };
                Ranges::new(granted().filter(fits).map(|p| KeyRange { start: p.key.clone(), end: p.range_end.clone() }))
            };
            Access { read: ranges(Type::Read), write: ranges(Type::Write) }
        };
        self.access = self.users.iter().map(|(name, user)| (name.clone(), access(user))).collect();
    }
}

fn has_root_role(user: &User) -> bool {
    user.roles.iter().any(|r| r == ROOT)
}

/// What somebody may do.
impl State {
    pub fn check_read(&self, who: Option<&Identity>, range: &KeyRange) -> Checked {
        self.check(who, |access| access.read.cover(range))
    }

    pub fn check_write(&self, who: Option<&Identity>, range: &KeyRange) -> Checked {
        self.check(who, |access| access.write.cover(range))
    }

    fn check(&self, who: Option<&Identity>, covers: impl FnOnce(&Access) -> bool) -> Checked {
        if !self.enabled {
            return Ok(());
        }
        let who = who.ok_or_else(status::user_empty)?;
        if who.revision < self.revision {
            return Err(status::auth_old_revision());
        }
        let user = self.users.get(&who.name).ok_or_else(status::permission_denied)?;
        if has_root_role(user) || self.access.get(&who.name).is_some_and(covers) {
            return Ok(());
        }
        Err(status::permission_denied())
    }

    pub fn check_admin(&self, who: Option<&Identity>) -> Checked {
        if !self.enabled {
            return Ok(());
        }
        let who = who.filter(|w| !w.name.is_empty()).ok_or_else(status::user_empty)?;
        let user = self.users.get(&who.name).ok_or_else(status::user_not_found)?;
        if has_root_role(user) { Ok(()) } else { Err(status::permission_denied()) }
    }

    /// Who he is does not matter, but that he said it.
    pub fn check_known(&self, who: Option<&Identity>) -> Checked {
        if self.enabled && who.is_none() { Err(status::user_empty()) } else { Ok(()) }
    }
}

/// The changes.
impl State {
    pub fn enable(&mut self) -> Checked {
        if !self.enabled {
            let root = self.users.get(ROOT).ok_or_else(status::root_user_not_found)?;
            if !has_root_role(root) {
                return Err(status::root_role_not_granted());
            }
            self.enabled = true;
        }
        Ok(())
    }

    pub fn disable(&mut self) {
        if self.enabled {
            self.enabled = false;
            self.changed();
        }
    }

    /// `password`: its hash; `None`: who is it is told by certificates alone.
    pub fn add_user(&mut self, name: String, password: Option<Bytes>) -> Checked {
        if name.is_empty() {
            return Err(status::user_empty());
        }
        if self.users.contains_key(&name) {
            return Err(status::user_exists());
        }
        let options = Some(UserAddOptions { no_password: password.is_none() });
        let key: Bytes = name.clone().into_bytes().into();
        let user = User { name: key, password: password.unwrap_or_default(), roles: Vec::new(), options };
        self.users.insert(name, user);
        self.changed();
        Ok(())
    }

    pub fn delete_user(&mut self, name: &str) -> Checked {
        if self.enabled && name == ROOT {
            return Err(status::invalid_auth_management());
        }
        self.users.remove(name).ok_or_else(status::user_not_found)?;
        self.changed();
        Ok(())
    }

    /// A user without password stays one.
    pub fn change_password(&mut self, name: &str, password: Bytes) -> Checked {
        let user = self.users.get_mut(name).ok_or_else(status::user_not_found)?;
        if !without_password(user) {
            user.password = password;
        }
        self.changed();
        Ok(())
    }

    pub fn grant_role(&mut self, user: &str, role: &str) -> Checked {
        let user = self.users.get_mut(user).ok_or_else(status::user_not_found)?;
        // The role of that name need not be made.
        if role != ROOT && !self.roles.contains_key(role) {
            return Err(status::role_not_found());
        }
        if let Err(place) = user.roles.binary_search_by(|r| r.as_str().cmp(role)) {
            user.roles.insert(place, role.to_owned());
            self.changed();
        }
        Ok(())
    }

    pub fn revoke_role(&mut self, user: &str, role: &str) -> Checked {
        if self.enabled && user == ROOT && role == ROOT {
            return Err(status::invalid_auth_management());
        }
        let user = self.users.get_mut(user).ok_or_else(status::user_not_found)?;
        let before = user.roles.len();
        user.roles.retain(|r| r != role);
        if user.roles.len() == before {
            return Err(status::role_not_granted());
        }
        self.changed();
        Ok(())
    }

    pub fn roles_of(&self, user: &str) -> Result<Vec<String>, Status> {
        Ok(self.users.get(user).ok_or_else(status::user_not_found)?.roles.clone())
    }

    pub fn has_role(&self, user: &str, role: &str) -> bool {
        self.users.get(user).is_some_and(|u| u.roles.iter().any(|r| r == role))
    }

    pub fn add_role(&mut self, name: String) -> Checked {
        if name.is_empty() {
            return Err(status::role_empty());
        }
        if self.roles.contains_key(&name) {
            return Err(status::role_exists());
        }
        let role = Role { name: name.clone().into_bytes().into(), key_permission: Vec::new() };
        self.roles.insert(name, role);
        self.changed();
        Ok(())
    }

    pub fn delete_role(&mut self, name: &str) -> Checked {
        if self.enabled && name == ROOT {
            return Err(status::invalid_auth_management());
        }
        self.roles.remove(name).ok_or_else(status::role_not_found)?;
        for user in self.users.values_mut() {
            user.roles.retain(|r| r != name);
        }
        self.changed();
        Ok(())
    }

    pub fn permissions_of(&self, role: &str) -> Result<Vec<Permission>, Status> {
        let found = self.roles.get(role).ok_or_else(status::role_not_found)?;
        if role == ROOT {
            let everything = Bytes::from_static(b"\0");
            let all = Permission { perm_type: Type::Readwrite as i32, key: Bytes::new(), range_end: everything };
            return Ok(vec![all]);
        }
        Ok(found.key_permission.clone())
    }

    pub fn grant_permission(&mut self, role: &str, permission: Option<Permission>) -> Checked {
        let permission = permission.ok_or_else(status::permission_not_given)?;
        let (key, end) = (&permission.key, &permission.range_end);
        if key.is_empty() || !(end.is_empty() || key < end || end[..] == b"\0"[..]) {
            return Err(status::invalid_auth_management());
        }
        let role = self.roles.get_mut(role).ok_or_else(status::role_not_found)?;
        let granted = &mut role.key_permission;
        match granted.iter_mut().find(|p| p.key == *key && p.range_end == *end) {
            Some(same) => same.perm_type = permission.perm_type,
            None => {
                granted.push(permission);
                granted.sort_by(|a, b| a.key.cmp(&b.key));
            }
        }
        self.changed();
        Ok(())
    }

    pub fn revoke_permission(&mut self, role: &str, key: &[u8], range_end: &[u8]) -> Checked {
        let role = self.roles.get_mut(role).ok_or_else(status::role_not_found)?;
        let before = role.key_permission.len();
        role.key_permission.retain(|p| p.key != *key || p.range_end != *range_end);
        if role.key_permission.len() == before {
            return Err(status::permission_not_granted());
        }
        self.changed();
        Ok(())
    }
}

pub(crate) fn without_password(user: &User) -> bool {
    user.options.as_ref().is_some_and(|o| o.no_password)
}
