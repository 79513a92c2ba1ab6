//! For authors of drivers: names in an engine that has rules for names, and what Kubernetes takes as labels.

use sha2::{Digest as _, Sha256};

use crate::capability::escape;

/// A name for an engine: `<start of a readable name>-<hash over all of an identity>`, a DNS label (RFC 1035) that starts with a letter.
///
/// The hash has `hash_bytes` (at most 32) bytes, in base 32; the readable part has at most `max_readable` signs, and one more where
/// it needs a letter before it. Readable parts could not all be in it: gateway, tenant, name and generation have up to 171 signs, a
/// label 63. No part of the identity may hold a NUL, so that no two identities are one text.
///
/// ```
/// use function_gateway_core::naming::engine_name;
///
/// let name = engine_name("9-lives-of-a-cat", 8, 5, &["g1", "acme"]);
/// assert!(name.starts_with("f9-lives-") && name.len() == 9 + 8);
/// ```
#[must_use]
pub fn engine_name(readable: &str, max_readable: usize, hash_bytes: usize, identity: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in identity {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let readable: String = readable.chars().take(max_readable).collect();
    let readable = readable.trim_matches('-');
    let prefix = if readable.starts_with(|first: char| first.is_ascii_lowercase()) { "" } else { "f" };
    format!("{prefix}{readable}-{}", base32(hash.finalize().get(..hash_bytes).unwrap_or_default()))
}

/// Base 32 in small letters and the digits 2 to 7 (RFC 4648, section 6), without padding.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut text = String::with_capacity(bytes.len() * 8 / 5 + 1);
    let (mut held, mut bits) = (0_u32, 0_u32);
    let sign = |index: u32| ALPHABET.get((index & 31) as usize).copied().map_or('a', char::from);
    for byte in bytes {
        held = ((held << 8) | u32::from(*byte)) & 0xfff;
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(sign(held >> bits));
        }
    }
    if bits > 0 {
        text.push(sign(held << (5 - bits)));
    }
    text
}

/// Where an annotation stands in a specification, as a JSON Pointer.
#[must_use]
pub fn annotation_pointer(name: &str) -> String {
    format!("/annotations/{}", escape(name))
}

/// Where an environment variable stands in a specification, as a JSON Pointer.
#[must_use]
pub fn env_pointer(name: &str) -> String {
    format!("/env/{}", escape(name))
}

/// Whether a text is a DNS label (RFC 1123), as a namespace has to be.
#[must_use]
pub fn is_dns_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Whether a text can be the value of a label in Kubernetes.
#[must_use]
pub fn is_label_value(text: &str) -> bool {
    let outer = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.len() <= 63 && text.bytes().all(inner) && outer(text.bytes().next()) && outer(text.bytes().last())
}

/// Whether a text can be the part of a label's key after its prefix.
#[must_use]
pub fn is_label_name(text: &str) -> bool {
    !text.is_empty() && is_label_value(text)
}

/// Whether a text can be the key of a label or an annotation in Kubernetes.
#[must_use]
pub fn is_label_key(text: &str) -> bool {
    let is_prefix = |prefix: &str| prefix.len() <= 253 && prefix.split('.').all(is_dns_label);
    match text.split_once('/') {
        Some((prefix, name)) => is_prefix(prefix) && is_label_name(name),
        None => is_label_name(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_32_is_that_of_the_rfc() {
        for (plain, encoded) in [("", ""), ("f", "my"), ("fo", "mzxq"), ("foo", "mzxw6"), ("fooba", "mzxw6ytb")] {
            assert_eq!(base32(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn a_name_is_a_dns_label_and_tells_parts_apart() {
        for readable in ["a", "9", "-", "", "a-very-long-name-of-a-function"] {
            let name = engine_name(readable, 9, 20, &["x"]);
            assert!(is_dns_label(&name) && name.starts_with(|first: char| first.is_ascii_lowercase()), "{name}");
            assert!(name.len() <= 9 + 1 + 1 + 32);
        }
        assert_ne!(engine_name("a", 9, 20, &["ab", "c"]), engine_name("a", 9, 20, &["a", "bc"]));
    }

    #[test]
    fn labels_are_those_of_kubernetes() {
        for (key, valid) in [
            ("a", true),
            ("com.openfaas.scale.min", true),
            ("function-gateway/tenant", true),
            ("", false),
            ("-a", false),
        ] {
            assert_eq!(is_label_key(key), valid, "{key}");
        }
        assert!(!is_label_key("A.b/c") && !is_label_key("a/b/c") && !is_label_key(&"a".repeat(64)));
        assert!(is_label_value("") && is_label_value("a_B.9") && !is_label_value("a ") && !is_label_value("a-"));
    }

    #[test]
    fn a_pointer_escapes_what_it_must() {
        assert_eq!(annotation_pointer("a/b~c"), "/annotations/a~1b~0c");
        assert_eq!(env_pointer("A"), "/env/A");
    }
}
