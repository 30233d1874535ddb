//! Which sandbox has which address: one file an address, named by it, holding the sandbox's id.
//!
//! Invariants: a file appears complete or not at all; an address is given again only after the others had their turn, so
//! that clients of the last pod that had it do not reach the next one at once.

use super::{Cidr, NetworkError};
use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Holds the id while its file is being written.
const TEMPORARY: &str = ".new";

pub(super) struct Addresses {
    dir: PathBuf,
    owners: BTreeMap<Ipv4Addr, String>,
    /// The newest allocation: the search begins after it.
    last: Option<Ipv4Addr>,
}

impl Addresses {
    pub(super) fn open(dir: PathBuf) -> Result<Self, NetworkError> {
        std::fs::create_dir_all(&dir).map_err(file("create", &dir))?;
        let mut owners = BTreeMap::new();
        let mut newest = (SystemTime::UNIX_EPOCH, None);
        for entry in std::fs::read_dir(&dir).map_err(file("list", &dir))? {
            let entry = entry.map_err(file("list", &dir))?;
            let Some(ip) = entry.file_name().to_str().and_then(|n| n.parse::<Ipv4Addr>().ok()) else { continue };
            let path = entry.path();
            let owner = std::fs::read_to_string(&path).map_err(file("read", &path))?;
            let made = entry.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            if newest.1.is_none() || made > newest.0 {
                newest = (made, Some(ip));
            }
            owners.insert(ip, owner.trim().to_owned());
        }
        Ok(Addresses { dir, owners, last: newest.1 })
    }

    pub(super) fn of(&self, owner: &str) -> Option<Ipv4Addr> {
        self.owners.iter().find(|(_, o)| *o == owner).map(|(ip, _)| *ip)
    }

    pub(super) fn owners(&self) -> Vec<String> {
        self.owners.values().cloned().collect()
    }

    /// The owner's address in this network: the one that it has, or a free one.
    pub(super) fn allocate(&mut self, owner: &str, cidr: Cidr) -> Result<Ipv4Addr, NetworkError> {
        match self.of(owner) {
            Some(ip) if cidr.contains(ip) => return Ok(ip),
            Some(_) => self.release(owner)?,
            None => {}
        }
        let (first, end) = (cidr.gateway().to_bits() + 1, cidr.last().to_bits());
        let start = self.last.map(Ipv4Addr::to_bits).filter(|l| (first..end).contains(l)).map_or(first, |l| l + 1);
        let free = (start..=end).chain(first..start).map(Ipv4Addr::from_bits).find(|ip| !self.owners.contains_key(ip));
        let ip = free.ok_or(NetworkError::Exhausted(cidr))?;
        let path = self.dir.join(ip.to_string());
        let temporary = self.dir.join(TEMPORARY);
        std::fs::write(&temporary, owner).map_err(file("write", &temporary))?;
        std::fs::rename(&temporary, &path).map_err(file("write", &path))?;
        self.owners.insert(ip, owner.to_owned());
        self.last = Some(ip);
        Ok(ip)
    }

    pub(super) fn release(&mut self, owner: &str) -> Result<(), NetworkError> {
        while let Some(ip) = self.of(owner) {
            let path = self.dir.join(ip.to_string());
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(file("remove", &path)(e)),
                _ => self.owners.remove(&ip),
            };
        }
        Ok(())
    }
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NetworkError {
    let path = path.to_owned();
    move |source| NetworkError::File { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(s: &str) -> Cidr {
        s.parse().unwrap()
    }

    #[test]
    fn addresses_survive_a_restart_and_are_reused_last() {
        let dir = tempfile::tempdir().unwrap();
        let net = cidr("10.0.0.0/29");
        let mut a = Addresses::open(dir.path().join("a")).unwrap();
        let ip = |a: &mut Addresses, owner: &str| a.allocate(owner, net).map(|ip| ip.octets()[3]);
        assert_eq!(ip(&mut a, "one").unwrap(), 2);
        assert_eq!(ip(&mut a, "two").unwrap(), 3);
        assert_eq!(ip(&mut a, "one").unwrap(), 2, "the same again");
        a.release("one").unwrap();
        a.release("one").unwrap();
        let mut a = Addresses::open(dir.path().join("a")).unwrap();
        assert_eq!(a.of("two").unwrap().octets()[3], 3);
        let rest: Vec<_> = ["x", "y", "z"].iter().map(|o| ip(&mut a, o).unwrap()).collect();
        assert_eq!(rest, [4, 5, 6]);
        assert_eq!(ip(&mut a, "w").unwrap(), 2, "freed longest ago, given last");
        assert!(matches!(ip(&mut a, "v"), Err(NetworkError::Exhausted(_))));
        a.release("y").unwrap();
        assert_eq!(ip(&mut a, "v").unwrap(), 5);
    }

    #[test]
    fn a_new_network_gives_new_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let mut a = Addresses::open(dir.path().to_owned()).unwrap();
        a.allocate("one", cidr("10.0.0.0/24")).unwrap();
        assert_eq!(a.allocate("one", cidr("10.0.1.0/24")).unwrap().to_string(), "10.0.1.2");
        assert_eq!(a.owners(), ["one"]);
    }
}
