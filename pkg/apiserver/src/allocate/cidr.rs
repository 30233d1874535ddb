//! Ranges of IP addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// `10.43.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    base: u128,
    bits: u8,
    prefix: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid CIDR address: {0}")]
pub struct InvalidCidr(String);

impl FromStr for Cidr {
    type Err = InvalidCidr;

    fn from_str(s: &str) -> Result<Self, InvalidCidr> {
        let invalid = || InvalidCidr(s.to_owned());
        let (ip, prefix) = s.split_once('/').ok_or_else(invalid)?;
        let ip: IpAddr = ip.parse().map_err(|_| invalid())?;
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        let prefix: u8 = prefix.parse().ok().filter(|p| *p <= bits).ok_or_else(invalid)?;
        let host = u32::from(bits - prefix);
        let base = number(ip).checked_shr(host).unwrap_or(0).checked_shl(host).unwrap_or(0);
        Ok(Cidr { base, bits, prefix })
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

impl Cidr {
    pub fn is_ipv4(&self) -> bool {
        self.bits == 32
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.is_ipv4() && number(ip) >= self.base && number(ip) - self.base < self.len()
    }

    fn len(&self) -> u128 {
        1u128.checked_shl(u32::from(self.bits - self.prefix)).unwrap_or(u128::MAX)
    }

    /// How many addresses can be given out: not the first, and with IPv4 not the last (broadcast).
    pub fn usable(&self) -> u128 {
        self.len().saturating_sub(if self.is_ipv4() { 2 } else { 1 })
    }

    /// The usable address number `n`, from 0.
    pub fn nth(&self, n: u128) -> Option<IpAddr> {
        if n >= self.usable() {
            return None;
        }
        let at = self.base + 1 + n;
        Some(if self.is_ipv4() { Ipv4Addr::from(at as u32).into() } else { Ipv6Addr::from(at).into() })
    }

    pub fn is_usable(&self, ip: IpAddr) -> bool {
        self.contains(ip) && number(ip) > self.base && number(ip) - self.base - 1 < self.usable()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip: IpAddr =
            if self.is_ipv4() { Ipv4Addr::from(self.base as u32).into() } else { Ipv6Addr::from(self.base).into() };
        write!(f, "{ip}/{}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let c: Cidr = "10.43.7.1/24".parse().unwrap();
        assert_eq!(c.to_string(), "10.43.7.0/24");
        assert_eq!(c.usable(), 254);
        assert_eq!(c.nth(0), Some("10.43.7.1".parse().unwrap()));
        assert_eq!(c.nth(253), Some("10.43.7.254".parse().unwrap()));
        assert_eq!(c.nth(254), None);
        assert!(!c.is_usable("10.43.7.0".parse().unwrap()) && !c.is_usable("10.43.7.255".parse().unwrap()));
        assert!(!c.contains("10.43.8.0".parse().unwrap()));
        let six: Cidr = "fd00::/112".parse().unwrap();
        assert_eq!(six.nth(0), Some("fd00::1".parse().unwrap()));
        assert!("10.0.0.0".parse::<Cidr>().is_err() && "10.0.0.0/33".parse::<Cidr>().is_err());
    }
}
