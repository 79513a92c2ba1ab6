//! Reads a payload as JSON, and says where it is not.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Parses a document. The reason why it can't be parsed gives a position and never shows the document.
///
/// A name that stands twice in one object is refused: readers differ in which of the two they take, so what was
/// checked might not be what the function sees.
pub(crate) fn parse(bytes: &[u8], max_name_bytes: usize) -> Result<Value, String> {
    if bytes.is_empty() {
        return Err("is empty, where JSON is needed".to_owned());
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let good = error.valid_up_to();
        format!("is not valid JSON: it is not UTF-8 after the first {good} bytes")
    })?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let checked = Names { max_bytes: max_name_bytes }.deserialize(&mut reader).and_then(|()| reader.end());
    // What the parser says of a syntax error is fixed text and a position.
    checked.and_then(|()| serde_json::from_str(text)).map_err(|error| format!("is not valid JSON: {error}"))
}

/// Whether a parsed document has at most so many levels of objects and arrays.
pub(crate) fn nests_within(document: &Value, levels: usize) -> bool {
    // The parser has bounded the depth, and with it this recursion.
    levels >= MOST_LEVELS
        || match document {
            Value::Array(items) => levels > 0 && items.iter().all(|item| nests_within(item, levels - 1)),
            Value::Object(members) => levels > 0 && members.values().all(|member| nests_within(member, levels - 1)),
            _ => true,
        }
}

/// The parser's own limit.
const MOST_LEVELS: usize = 127;

/// Checks the names in a document, and keeps nothing of it.
#[derive(Clone, Copy)]
struct Names {
    max_bytes: usize,
}

impl<'de> DeserializeSeed<'de> for Names {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Names {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = members.next_key_seed(Name)? {
            if name.len() > self.max_bytes {
                return Err(A::Error::custom(format_args!("a name of more than {} bytes", self.max_bytes)));
            }
            if !names.insert(name) {
                return Err(A::Error::custom("a name that stands twice in one object"));
            }
            members.next_value_seed(self)?;
        }
        Ok(())
    }
}

/// Reads a name, without a copy where it stands as it is in the text.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(document: &[u8]) -> String {
        parse(document, 8).unwrap_err()
    }

    #[test]
    fn what_is_json_is_read_as_it_stands() {
        let document = br#" {"a": [1, -1, 1.5, "x\n\u00e9", null, true], "b\t": {"a": {}}} "#;
        assert_eq!(parse(document, 8).unwrap(), json!({"a": [1, -1, 1.5, "x\né", null, true], "b\t": {"a": {}}}));
    }

    #[test]
    fn what_is_not_json_is_refused_with_its_position_and_without_its_content() {
        for (document, reason) in [
            (&b""[..], "is empty"),
            (b" \n", "EOF while parsing a value at line 2 column 0"),
            (b"canary", "expected value at line 1 column 1"),
            (b"{\n \"a\": canary}", "line 2 column 7"),
            (b"\"canary", "EOF while parsing a string"),
            (b"1 canary", "trailing characters at line 1 column 3"),
            (b"{\"a\": 1,}", "trailing comma"),
            (b"1e999", "number out of range"),
            (b"\"\xff\"", "not UTF-8 after the first 1 bytes"),
            (b"\"\\ud800\"", "line 1 column"),
            (b"\xef\xbb\xbf1", "expected value at line 1 column 1"),
        ] {
            let refused = refused(document);
            assert!(refused.contains(reason), "{refused}");
            assert!(!refused.contains("canary"), "{refused}");
        }
    }

    #[test]
    fn a_name_stands_once_in_an_object() {
        assert!(refused(br#"{"canary": 1, "b": 2, "canary": 3}"#).contains("stands twice in one object at line 1"));
        assert!(refused(br#"[{"a": {"b": 1, "\u0062": 2}}]"#).contains("stands twice"));
        assert!(parse(br#"[{"a": 1}, {"a": {"a": 2}}]"#, 8).is_ok());
    }

    #[test]
    fn levels_are_counted() {
        let deepest = "[".repeat(MOST_LEVELS) + &"]".repeat(MOST_LEVELS);
        assert!(nests_within(&parse(deepest.as_bytes(), 8).unwrap(), MOST_LEVELS));
        assert!(parse(format!("[{deepest}]").as_bytes(), 8).is_err());
        for (document, levels) in [(json!(1), 0), (json!([]), 1), (json!([1, {"a": [1]}]), 3)] {
            assert!(nests_within(&document, levels));
            assert!(levels == 0 || !nests_within(&document, levels - 1));
        }
    }

    #[test]
    fn depth_and_names_are_bounded() {
        assert!(refused("[".repeat(100_000).as_bytes()).contains("recursion limit exceeded"));
        assert!(refused(br#"{"123456789": 1}"#).contains("a name of more than 8 bytes"));
        assert!(parse(br#"{"12345678": "123456789"}"#, 8).is_ok());
    }
}
