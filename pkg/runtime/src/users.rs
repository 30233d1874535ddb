//! Which user and groups a container's process has, by the image's own `/etc/passwd` and `/etc/group`.

use crate::image::Merged;
use crate::types::SecurityContext;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// The primary group's included.
    pub groups: Vec<u32>,
}

#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoSuchUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    NoSuchGroup(String),
    #[error("the user or group id {0} is out of range")]
    OutOfRange(i64),
    #[error("cannot read the image's users")]
    Read(#[source] io::Error),
}

fn id(n: i64) -> Result<u32, UserError> {
    u32::try_from(n).map_err(|_| UserError::OutOfRange(n))
}

/// `image_user`: `user[:group]`, names or numbers, from the image's config.
pub fn resolve(security: &SecurityContext, image_user: &str, image: &Merged) -> Result<User, UserError> {
    let file = |path: &str| Ok(image.read(Path::new(path)).map_err(UserError::Read)?.unwrap_or_default());
    let (passwd, group) = (file("etc/passwd")?, file("etc/group")?);
    let (from_image, image_group) = match image_user.split_once(':') {
        Some((u, g)) => (u, Some(g)),
        None => (image_user, None),
    };
    let chosen = security.run_as_user.is_some() || security.run_as_username.is_some();
    let wanted = match (&security.run_as_user, &security.run_as_username) {
        (Some(n), _) => id(*n)?.to_string(),
        (None, Some(name)) => name.clone(),
        (None, None) => from_image.to_owned(),
    };
    let entry = passwd
        .lines()
        .map(|l| l.split(':').collect::<Vec<_>>())
        .find(|f| f.len() >= 4 && (f[0] == wanted || (f[2] == wanted && wanted.bytes().all(|b| b.is_ascii_digit()))));
    let (name, uid, own_group) = match (&entry, wanted.as_str()) {
        (Some(f), _) => (f[0].to_owned(), f[2].parse().unwrap_or(0), f[3].parse().unwrap_or(0)),
        (None, "") => (String::new(), 0, 0),
        (None, text) => {
            let number = text.parse::<i64>().map_err(|_| UserError::NoSuchUser(text.into()))?;
            (String::new(), id(number)?, 0)
        }
    };
    let gid = match (security.run_as_group, image_group) {
        (Some(n), _) => id(n)?,
        // The image's group goes with the image's user.
        (None, Some(g)) if !chosen => group_id(&group, g)?,
        _ => own_group,
    };
    let mut groups = BTreeSet::from([gid]);
    if !security.strict_supplemental_groups && !name.is_empty() {
        groups.extend(memberships(&group, &name));
    }
    for n in &security.supplemental_groups {
        groups.insert(id(*n)?);
    }
    Ok(User { uid, gid, groups: groups.into_iter().collect() })
}

fn group_id(file: &str, wanted: &str) -> Result<u32, UserError> {
    let entry = file.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f.len() >= 3 && f[0] == wanted);
    match entry.and_then(|f| f[2].parse().ok()).or_else(|| wanted.parse().ok()) {
        Some(n) => Ok(n),
        None => Err(UserError::NoSuchGroup(wanted.into())),
    }
}

fn memberships<'a>(file: &'a str, user: &'a str) -> impl Iterator<Item = u32> + 'a {
    file.lines().filter_map(move |line| {
        let fields: Vec<&str> = line.split(':').collect();
        let member = fields.get(3)?.split(',').any(|m| m == user);
        member.then(|| fields[2].parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> (tempfile::TempDir, Merged) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n";
        std::fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(dir.path().join("etc/group"), "root:x:0:\nextra:x:50:web,other\nweb:x:34:\nwheel:x:10:root\n")
            .unwrap();
        let merged = Merged::new(vec![dir.path().into()]);
        (dir, merged)
    }

    #[test]
    fn users_are_those_of_the_image() {
        let (_dir, image) = image();
        let none = SecurityContext::default();
        let user = |s: &SecurityContext, from_image: &str| resolve(s, from_image, &image).map_err(|e| e.to_string());
        let u = |uid, gid, groups: &[u32]| User { uid, gid, groups: groups.to_vec() };
        assert_eq!(user(&none, "").unwrap(), u(0, 0, &[0]));
        assert_eq!(user(&none, "root").unwrap(), u(0, 0, &[0, 10]));
        assert_eq!(user(&none, "web").unwrap(), u(33, 34, &[34, 50]));
        assert_eq!(user(&none, "33").unwrap(), u(33, 34, &[34, 50]));
        assert_eq!(user(&none, "web:extra").unwrap(), u(33, 50, &[50]));
        assert_eq!(user(&none, "1234:5").unwrap(), u(1234, 5, &[5]));
        assert_eq!(
            user(&none, "nobody").unwrap_err(),
            "unable to find user nobody: no matching entries in passwd file"
        );
        let s = SecurityContext { run_as_user: Some(1000), supplemental_groups: vec![7], ..Default::default() };
        assert_eq!(user(&s, "web:extra").unwrap(), u(1000, 0, &[0, 7]));
        let s = SecurityContext {
            run_as_user: Some(33),
            run_as_group: Some(9),
            strict_supplemental_groups: true,
            ..Default::default()
        };
        assert_eq!(user(&s, "").unwrap(), u(33, 9, &[9]));
        let s = SecurityContext { run_as_user: Some(-1), ..Default::default() };
        assert!(user(&s, "").is_err());
    }
}
