//! Signatures as Standard Webhooks 1.0.0 has them, of its symmetric kind (`v1`).

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use function_gateway_core::{Error, ErrorKind, Result, Secret};

/// Marks a key that is written in base64.
const KEY: &str = "whsec_";

/// Marks the keys of the asymmetric kind, which would be useless as text to sign with.
const ASYMMETRIC: [&str; 2] = ["whsk_", "whpk_"];

/// Receivers read keys with and without padding, so both are seen.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The value of `webhook-signature`: one signature for each key that the secret holds.
pub(crate) fn signatures(secret: &Secret, id: &str, timestamp: &str, body: &[u8]) -> Result<String> {
    let signatures = keys(secret)?.into_iter().map(|key| {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key.expose()));
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            context.update(part);
        }
        format!("v1,{}", BASE64.encode(context.sign()))
    });
    Ok(signatures.collect::<Vec<_>>().join(" "))
}

fn keys(secret: &Secret) -> Result<Vec<Secret>> {
    let value = secret.expose();
    // Random bytes are a key as they are, whichever of them look like spaces.
    let text = std::str::from_utf8(value)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()));
    let keys = match text {
        Some(text) => text.split_ascii_whitespace().map(key).collect::<Result<Vec<_>>>()?,
        None => vec![secret.clone()],
    };
    if keys.is_empty() { Err(unusable("it is empty")) } else { Ok(keys) }
}

fn key(text: &str) -> Result<Secret> {
    if ASYMMETRIC.iter().any(|prefix| text.starts_with(prefix)) {
        return Err(unusable("it holds an asymmetric key, and callbacks are signed with symmetric ones"));
    }
    let Some(encoded) = text.strip_prefix(KEY) else { return Ok(Secret::new(text)) };
    // The source would cite a part of it.
    let decoded = BASE64.decode(encoded).map_err(|_| unusable("what follows whsec_ is no base64"))?;
    if decoded.is_empty() { Err(unusable("nothing follows whsec_")) } else { Ok(Secret::new(decoded)) }
}

fn unusable(why: &str) -> Error {
    Error::new(ErrorKind::Misconfigured, format!("the secret that callbacks are signed with can't be used: {why}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn signed(secret: &[u8], id: &str, timestamp: &str, body: &[u8]) -> String {
        signatures(&Secret::new(secret), id, timestamp, body).unwrap()
    }

    /// What a receiver does, which has the key's bytes.
    fn verifies(key: &[u8], header: &str, id: &str, timestamp: &str, body: &[u8]) -> bool {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        let content = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
        header.split(' ').filter_map(|signature| signature.strip_prefix("v1,")).any(|signature| {
            BASE64.decode(signature).is_ok_and(|signature| hmac::verify(&key, &content, &signature).is_ok())
        })
    }

    /// From the tests of the reference libraries in Python and Rust.
    #[test]
    fn vectors_of_the_reference_libraries() {
        for (secret, id, timestamp, body, expected) in [
            (
                "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                "1614265330",
                r#"{"test": 2432232314}"#,
                "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            ),
            (
                "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
                "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
                "1649367553",
                r#"{"email":"test@example.com","username":"test_user"}"#,
                "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
            ),
        ] {
            assert_eq!(signed(secret.as_bytes(), id, timestamp, body.as_bytes()), expected);
        }
    }

    #[test]
    fn a_secret_is_base64_text_or_bytes() {
        let by = |secret: &[u8]| signed(secret, "id", "1", b"body");
        let is_by = |secret: &[u8], key: &[u8]| assert!(verifies(key, &by(secret), "id", "1", b"body"));
        is_by(b"whsec_YWJjZA==", b"abcd");
        is_by(b"whsec_YWJjZA", b"abcd");
        is_by(b"abcd", b"abcd");
        is_by(b"abcd\n", b"abcd");
        // Bytes that are no text are one key, spaces and line ends included.
        is_by(b"\xff ab\n", b"\xff ab\n");
        is_by(b"\0 ab\n", b"\0 ab\n");
        assert_eq!(by(b"abcd").split(' ').count(), 1);
    }

    #[test]
    fn a_secret_of_several_keys_signs_with_each() {
        let header = signed(b"whsec_YWJjZA== old\n", "id", "1", b"body");
        assert_eq!(header, [signed(b"abcd", "id", "1", b"body"), signed(b"old", "id", "1", b"body")].join(" "));
    }

    #[test]
    fn a_secret_that_is_of_no_use_is_named_and_not_shown() {
        for (secret, expected) in [
            ("", "empty"),
            (" \n", "empty"),
            ("whsec_", "nothing follows"),
            ("whsec_can*ary", "no base64"),
            ("fine whsec_can*ary", "no base64"),
            ("whsk_canary", "asymmetric"),
            ("whpk_canary", "asymmetric"),
        ] {
            let error = signatures(&Secret::new(secret), "id", "1", b"body").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Misconfigured);
            assert!(error.message().contains(expected), "{secret:?}: {error}");
            assert!(!format!("{error:?}").contains("ary"), "{error:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_signed_verifies_and_nothing_else_does(
            key in prop::collection::vec(any::<u8>(), 1..80),
            other in prop::collection::vec(any::<u8>(), 1..80),
            id in "[a-z0-9-]{1,36}",
            timestamp in 0_u32..,
            body in prop::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let timestamp = timestamp.to_string();
            let header = signed(format!("whsec_{}", BASE64.encode(&key)).as_bytes(), &id, &timestamp, &body);
            prop_assert!(verifies(&key, &header, &id, &timestamp, &body));

            let turned = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
                bytes
            };
            prop_assert!(!verifies(&turned(&key), &header, &id, &timestamp, &body));
            prop_assert!(!verifies(&key, &header, &(id.clone() + "a"), &timestamp, &body));
            prop_assert!(!verifies(&key, &header, &id, &(timestamp.clone() + "0"), &body));
            prop_assert!(!verifies(&key, &header, &id, &timestamp, &[body.as_slice(), b"0"].concat()));
            if !body.is_empty() {
                prop_assert!(!verifies(&key, &header, &id, &timestamp, &turned(&body)));
            }
            // Shorter keys are filled with zeros, so those alone make no other key.
            let bare = |key: &[u8]| key.iter().rposition(|byte| *byte != 0).map(|last| key[..=last].to_vec());
            if bare(&other) != bare(&key) {
                prop_assert!(!verifies(&other, &header, &id, &timestamp, &body));
            }
            let mac = BASE64.decode(header.strip_prefix("v1,").unwrap()).unwrap();
            let forged = format!("v1,{}", BASE64.encode(turned(&mac)));
            prop_assert!(!verifies(&key, &forged, &id, &timestamp, &body));
        }
    }
}
