//! A listener for strangers.
//!
//! **Owns** what bounds them before a request is read: connections, in all and from one address ([`Bounded`]), the life of each
//! ([`Peer::extend`]), and requests a second from one address ([`Rate`]). **May depend on** axum and tokio. **Must never** know what is
//! asked.
//!
//! An IPv6 address counts as its /64 network, which is what one subscriber has. Addresses of this machine are not bounded one by one: a
//! reverse proxy on it speaks for everybody, and has bounds of its own.
#![forbid(unsafe_code)]

mod bounded;
mod rate;

pub use bounded::{Bounded, Bounds, Peer};
pub use rate::Rate;

use std::net::{IpAddr, Ipv6Addr};

/// Who is counted for an address; none for this machine.
fn counted(address: IpAddr) -> Option<IpAddr> {
    match address.to_canonical() {
        a if a.is_loopback() => None,
        IpAddr::V6(a) => Some(IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() >> 64 << 64))),
        a => Some(a),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_counted() {
        let of = |text: &str| counted(text.parse().unwrap()).map(|a| a.to_string());
        assert_eq!(of("127.0.0.1"), None);
        assert_eq!(of("::1"), None);
        assert_eq!(of("::ffff:127.0.0.1"), None);
        assert_eq!(of("192.0.2.7").as_deref(), Some("192.0.2.7"));
        assert_eq!(of("::ffff:192.0.2.7").as_deref(), Some("192.0.2.7"));
        assert_eq!(of("2001:db8:1:2:3:4:5:6").as_deref(), Some("2001:db8:1:2::"));
    }
}
