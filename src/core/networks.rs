//! Networks of IP addresses, in the operator's notation.

use std::{fmt, net::IpAddr, str::FromStr};

/// A list of networks: `127.0.0.0/8,::1`; `none`: no network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<Network>);

/// An address, or all addresses with the same first bits. IPv4 addresses are kept as IPv4-mapped IPv6 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    prefix_len: u32,
}

impl Networks {
    /// The addresses of this machine's loopback interface.
    pub const LOOPBACK: &str = "127.0.0.0/8,::1";

    /// Whether an address is in one of the networks. An IPv4-mapped IPv6 address counts as IPv4.
    pub fn contain(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }
}

impl Network {
    fn contains(self, address: IpAddr) -> bool {
        // Mapped prefixes of IPv4 networks are at least 96 bits long, so none contains an IPv6 address by accident.
        let differing = bits(self.address) ^ bits(address);
        differing.checked_shr(128 - self.mapped_prefix_len()).unwrap_or(0) == 0
    }

    fn mapped_prefix_len(self) -> u32 {
        self.prefix_len + if self.address.is_ipv4() { 96 } else { 0 }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl FromStr for Networks {
    type Err = String;

    fn from_str(text: &str) -> Result<Networks, String> {
        match text {
            "" | "none" => Ok(Networks::default()),
            list => {
                list.split(',').map(|network| network.trim().parse()).collect::<Result<_, _>>().map(Networks)
            }
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let (address, prefix_len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let bad = || format!("{text:?} is not a network; use 10.0.0.0/8, 192.0.2.1, 2001:db8::/32 or none");
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix_len = match prefix_len {
            None => longest,
            Some(len) => len.parse().ok().filter(|len| *len <= longest).ok_or_else(bad)?,
        };
        Ok(Network { address, prefix_len })
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (at, Network { address, prefix_len }) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match (address, prefix_len) {
                (IpAddr::V4(_), 32) | (IpAddr::V6(_), 128) => write!(f, "{comma}{address}")?,
                _ => write!(f, "{comma}{address}/{prefix_len}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(text: &str) -> Networks {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_in_a_network_with_its_first_bits() {
        for (list, inside, outside) in [
            (
                Networks::LOOPBACK,
                &["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"][..],
                &["128.0.0.1", "::2", "::"][..],
            ),
            ("10.1.0.0/16, 192.0.2.7", &["10.1.255.255", "192.0.2.7"], &["10.2.0.0", "192.0.2.8", "::1"]),
            ("2001:db8::/32", &["2001:db8:ffff::1"], &["2001:db9::", "32.1.13.184"]),
            ("0.0.0.0/0", &["0.0.0.0", "255.255.255.255"], &["::1", "2001:db8::"]),
            ("::/0", &["::1", "10.0.0.1"], &[]),
            ("none", &[], &["127.0.0.1", "::1"]),
        ] {
            let networks = networks(list);
            for address in inside {
                assert!(networks.contain(address.parse().unwrap()), "{list}: {address}");
            }
            for address in outside {
                assert!(!networks.contain(address.parse().unwrap()), "{list}: {address}");
            }
        }
    }

    #[test]
    fn lists_are_written_as_they_are_read() {
        for text in [Networks::LOOPBACK, "none", "10.0.0.0/8,2001:db8::/32", "192.0.2.1"] {
            assert_eq!(networks(text).to_string(), text);
        }
        assert_eq!(networks("").to_string(), "none");
    }

    #[test]
    fn what_is_not_a_network_is_refused_by_name() {
        for bad in
            ["localhost", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1", "1.2.3", "127.0.0.1,,::1"]
        {
            assert!(bad.parse::<Networks>().unwrap_err().contains("is not a network"), "{bad}");
        }
    }
}
