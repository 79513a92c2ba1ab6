//! HTTP headers that go no further than one connection.

use http::header::{self, HeaderMap, HeaderName};

/// Whether a header concerns one connection alone (RFC 9110, section 7.6.1).
fn is_of_connection(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "proxy-authorization"
    )
}

/// Takes out what concerns the connection that a message came by (RFC 9110, section 7.6.1). Whoever passes a message on, as
/// drivers and servers do, calls it both ways.
pub fn for_one_hop(headers: &mut HeaderMap) {
    for_one_hop_without(headers, |_| false);
}

/// As [`for_one_hop`], and takes out the headers whose names, in small letters, are unwanted.
pub fn for_one_hop_without(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    let mut gone = names(headers, |name| is_of_connection(name) || unwanted(name));
    if gone.contains(&header::CONNECTION) {
        let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
        let named = values.flat_map(|list| list.split(','));
        gone.extend(named.filter_map(|name| HeaderName::try_from(name.trim()).ok()));
    }
    for name in gone {
        headers.remove(name);
    }
}

/// The names that are there of some. One pass over the few that are there: to look for each that may be there would take several
/// times as long.
pub(crate) fn names(headers: &HeaderMap, wanted: impl Fn(&str) -> bool) -> Vec<HeaderName> {
    headers.keys().filter(|name| wanted(name.as_str())).cloned().collect()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn what_concerns_one_connection_goes_no_further() {
        let mut headers = HeaderMap::new();
        let sent = [
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("x-end-to-end", "1"),
            ("accept", "*/*"),
        ];
        for (name, value) in sent {
            headers.append(name, HeaderValue::from_static(value));
        }
        for_one_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "x-end-to-end"]);
        for_one_hop_without(&mut headers, |name| name == "accept");
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-end-to-end"]);
    }
}
