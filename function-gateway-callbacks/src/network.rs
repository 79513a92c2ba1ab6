//! Which addresses callbacks reach: the public ones, and what the host allows besides.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use function_gateway_core::{Error, ErrorKind, Result};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

const fn v4(a: u8, b: u8, c: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), prefix)
}

const fn v6(a: u16, b: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix)
}

/// What of IPv4 is not public, after IANA's registry of special-purpose addresses.
const SPECIAL_V4: &[(Ipv4Net, &str)] = &[
    (v4(0, 0, 0, 8), "unspecified, or of this network (0.0.0.0/8)"),
    (v4(10, 0, 0, 8), "private (10.0.0.0/8)"),
    (v4(100, 64, 0, 10), "shared by a carrier's customers (100.64.0.0/10)"),
    (v4(127, 0, 0, 8), "loopback (127.0.0.0/8)"),
    (v4(169, 254, 0, 16), "link-local (169.254.0.0/16)"),
    (v4(172, 16, 0, 12), "private (172.16.0.0/12)"),
    (v4(192, 0, 0, 24), "for protocols (192.0.0.0/24)"),
    (v4(192, 0, 2, 24), "for documentation (192.0.2.0/24)"),
    (v4(192, 88, 99, 24), "of 6to4 relays (192.88.99.0/24)"),
    (v4(192, 168, 0, 16), "private (192.168.0.0/16)"),
    (v4(198, 18, 0, 15), "for benchmarks (198.18.0.0/15)"),
    (v4(198, 51, 100, 24), "for documentation (198.51.100.0/24)"),
    (v4(203, 0, 113, 24), "for documentation (203.0.113.0/24)"),
    (v4(224, 0, 0, 4), "multicast (224.0.0.0/4)"),
    (v4(240, 0, 0, 4), "reserved, or broadcast (240.0.0.0/4)"),
];

/// The same of IPv6.
const SPECIAL_V6: &[(Ipv6Net, &str)] = &[
    (Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128), "unspecified (::)"),
    (Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128), "loopback (::1)"),
    (v6(0x2001, 0, 23), "for protocols (2001::/23)"),
    (v6(0x2001, 0xdb8, 32), "for documentation (2001:db8::/32)"),
    (v6(0x3fff, 0, 20), "for documentation (3fff::/20)"),
    (v6(0xfc00, 0, 7), "private (fc00::/7)"),
    (v6(0xfe80, 0, 10), "link-local (fe80::/10)"),
    (v6(0xfec0, 0, 10), "private (fec0::/10)"),
    (v6(0xff00, 0, 8), "multicast (ff00::/8)"),
];

/// All of IPv6 that is given to networks: what lies outside is refused, whatever it will be used for.
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 3);

/// The networks that a host allows beside the public ones.
#[derive(Debug)]
pub(crate) struct Networks {
    allowed: Vec<IpNet>,
}

impl Networks {
    pub(crate) fn new(allowed: &[String]) -> Result<Self> {
        let allowed = allowed.iter().map(|text| {
            parse(text)
                .map_err(|reason| Error::new(ErrorKind::InvalidArgument, format!("allow_networks: {text:?} {reason}")))
        });
        Ok(Self { allowed: allowed.collect::<Result<_>>()? })
    }

    /// What an address is, where it is refused.
    pub(crate) fn refusal(&self, address: IpAddr) -> Option<&'static str> {
        // What is sent to `::ffff:10.0.0.1` goes to 10.0.0.1.
        let address = address.to_canonical();
        if self.allowed.iter().any(|network| network.contains(&address)) {
            return None;
        }
        match address {
            IpAddr::V4(address) => {
                SPECIAL_V4.iter().find(|(network, _)| network.contains(&address)).map(|(_, what)| *what)
            }
            IpAddr::V6(address) => match carried(address) {
                Some(inner) => inner.into_iter().find_map(|inner| self.refusal(inner.into())),
                None => {
                    let special = SPECIAL_V6.iter().find(|(network, _)| network.contains(&address));
                    let unknown = (!GLOBAL_V6.contains(&address)).then_some("not public (outside 2000::/3)");
                    special.map(|(_, what)| *what).or(unknown)
                }
            },
        }
    }
}

/// The addresses of IPv4 that a packet to an address of IPv6 is handed on to by a translator or at the end of a tunnel: NAT64
/// (RFC 6052), 6to4 (RFC 3056), Teredo's server and client (RFC 4380).
fn carried(address: Ipv6Addr) -> Option<[Ipv4Addr; 2]> {
    let inner = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some([inner(high, low); 2]),
        [0x2002, high, low, ..] => Some([inner(high, low); 2]),
        [0x2001, 0, high, low, _, _, client_high, client_low] => {
            Some([inner(high, low), inner(!client_high, !client_low)])
        }
        _ => None,
    }
}

/// A network, or an address alone.
fn parse(text: &str) -> Result<IpNet, &'static str> {
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse::<IpNet>().map_err(|_| "is no network such as 10.0.0.0/8, and no address")?,
    };
    if network.trunc() != network {
        return Err("has more bits set than its prefix has");
    }
    match network {
        IpNet::V6(network) if network.addr().to_ipv4_mapped().is_some() => Err("is IPv4: write it as such"),
        network => Ok(network),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(networks: &Networks, address: &str) -> Option<&'static str> {
        networks.refusal(address.parse().unwrap())
    }

    fn allowing(networks: &[&str]) -> Networks {
        Networks::new(&networks.iter().map(|network| (*network).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    /// First and last of each network, and what is next to them.
    #[test]
    fn addresses_that_are_not_public_are_refused() {
        let table: &[(&str, &str, &[&str])] = &[
            ("unspecified", "0.0.0.0 0.0.0.1 0.255.255.255", &["1.0.0.0"]),
            ("private", "10.0.0.0 10.1.2.3 10.255.255.255", &["9.255.255.255", "11.0.0.0"]),
            ("shared", "100.64.0.0 100.127.255.255", &["100.63.255.255", "100.128.0.0"]),
            ("loopback", "127.0.0.0 127.0.0.1 127.255.255.255", &["126.255.255.255", "128.0.0.0"]),
            ("link-local", "169.254.0.0 169.254.169.254 169.254.255.255", &["169.253.255.255", "169.255.0.0"]),
            ("private", "172.16.0.0 172.31.255.255", &["172.15.255.255", "172.32.0.0"]),
            ("protocols", "192.0.0.0 192.0.0.170 192.0.0.255", &["191.255.255.255", "192.0.1.0"]),
            ("documentation", "192.0.2.0 192.0.2.255", &["192.0.1.255", "192.0.3.0"]),
            ("6to4", "192.88.99.0 192.88.99.255", &["192.88.98.255", "192.88.100.0"]),
            ("private", "192.168.0.0 192.168.255.255", &["192.167.255.255", "192.169.0.0"]),
            ("benchmarks", "198.18.0.0 198.19.255.255", &["198.17.255.255", "198.20.0.0"]),
            ("documentation", "198.51.100.0 198.51.100.255", &["198.51.99.255", "198.51.101.0"]),
            ("documentation", "203.0.113.0 203.0.113.255", &["203.0.112.255", "203.0.114.0"]),
            ("multicast", "224.0.0.0 239.255.255.255", &["223.255.255.255"]),
            ("reserved", "240.0.0.0 255.255.255.254 255.255.255.255", &[]),
            ("unspecified", "::", &[]),
            ("loopback", "::1", &[]),
            ("not public", "::2 ::7f00:1 ::ffff:0:7f00:1 100::1 1fff:ffff::1 4000::1 5f00::1 e000::1", &[]),
            ("not public", "64:ff9b:1::a00:1 64:ff9b:0:1::808:808 64:ff9a::808:808", &[]),
            ("protocols", "2001:1::1 2001:2::1 2001:10::1 2001:20::1 2001:1ff:ffff::1", &["2001:200::1", "2000::1"]),
            ("documentation", "2001:db8:: 2001:db8:ffff::1", &["2001:db7:ffff::1", "2001:db9::"]),
            ("documentation", "3fff:: 3fff:fff:ffff::1", &["3ffe:ffff::1", "3fff:1000::"]),
            ("private", "fc00:: fd00::1 fdff:ffff::1", &[]),
            ("link-local", "fe80:: fe80::1 febf:ffff::1", &[]),
            ("private", "fec0::1 feff:ffff::1", &[]),
            ("multicast", "ff00:: ff02::1 ffff:ffff::1", &[]),
        ];
        let networks = allowing(&[]);
        for (what, refused, public) in table {
            for address in refused.split(' ') {
                assert!(refusal(&networks, address).is_some_and(|found| found.contains(what)), "{address}");
            }
            for address in *public {
                assert_eq!(refusal(&networks, address), None, "{address}");
            }
        }
        for public in ["8.8.8.8", "1.1.1.1", "192.31.196.1", "2606:4700::1111", "2a00:1450::1", "3ffe::1"] {
            assert_eq!(refusal(&networks, public), None, "{public}");
        }
    }

    #[test]
    fn what_leads_to_an_address_of_ipv4_is_judged_by_that() {
        let networks = allowing(&[]);
        for (refused, public) in [
            ("::ffff:10.0.0.1", "::ffff:8.8.8.8"),
            ("64:ff9b::10.0.0.1", "64:ff9b::8.8.8.8"),
            ("64:ff9b::169.254.169.254", "64:ff9b::1.1.1.1"),
            ("2002:7f00:1::1", "2002:808:808::1"),
            ("2002:c0a8:101:1::7", "2002:101:101:1::7"),
            // The server, and the client with its bits turned over.
            ("2001:0:a00:1::f7f7:f7f7", "2001:0:808:808::f7f7:f7f7"),
            ("2001:0:808:808::f5ff:fffe", "2001:0:808:808::fefe:fefe"),
        ] {
            assert!(refusal(&networks, refused).is_some(), "{refused}");
            assert_eq!(refusal(&networks, public), None, "{public}");
        }
    }

    #[test]
    fn what_the_host_allows_is_reached_and_nothing_next_to_it() {
        let networks = allowing(&["10.1.0.0/16", "192.168.7.9", "fd12:3456::/32", "::1"]);
        for (address, is_allowed) in [
            ("10.1.255.255", true),
            ("10.2.0.0", false),
            ("::ffff:10.1.0.1", true),
            ("64:ff9b::10.1.0.1", true),
            ("2002:a02:1::", false),
            ("192.168.7.9", true),
            ("192.168.7.8", false),
            ("fd12:3456:789a::1", true),
            ("fd12:3457::1", false),
            ("::1", true),
            ("127.0.0.1", false),
        ] {
            assert_eq!(refusal(&networks, address).is_none(), is_allowed, "{address}");
        }
        let everything = allowing(&["0.0.0.0/0", "::/0"]);
        assert_eq!([refusal(&everything, "127.0.0.1"), refusal(&everything, "fe80::1")], [None, None]);
    }

    #[test]
    fn what_is_no_network_is_named() {
        for (text, expected) in [
            ("10.0.0.0/33", "no network"),
            ("intranet", "no network"),
            ("", "no network"),
            ("10.0.0.1/8", "more bits"),
            ("fd00::1/8", "more bits"),
            ("::ffff:10.0.0.0/104", "is IPv4"),
        ] {
            let error = Networks::new(&[text.to_owned()]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.message().contains(expected) && error.message().contains(text), "{error}");
        }
    }
}
