//! W3C Trace Context: the `traceparent` and `tracestate` headers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::InvalidName;

/// A `traceparent` of version 00 (W3C Trace Context, section 3.2): trace id, parent span id, flags.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

impl TraceParent {
    /// The header's name.
    pub const HEADER: &'static str = "traceparent";
    /// The name of the header with the vendors' data of the same trace.
    pub const STATE_HEADER: &'static str = "tracestate";
    const SAMPLED: u8 = 1;

    /// Starts a new trace, not sampled.
    #[must_use]
    pub fn root() -> Self {
        Self { trace_id: fastrand::u128(1..), span_id: fastrand::u64(1..), flags: 0 }
    }

    /// The same trace and flags with a new span id: what is handed on to the next hop.
    #[must_use]
    pub fn child(self) -> Self {
        Self { span_id: fastrand::u64(1..), ..self }
    }

    /// The trace's 16 bytes as 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// The header's value, in ASCII: `00-<trace>-<span>-<flags>`.
    pub(crate) fn text(self) -> [u8; 55] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let (trace, span) = (self.trace_id.to_be_bytes(), self.span_id.to_be_bytes());
        let parts: [&[u8]; 4] = [&[0], &trace, &span, &[self.flags]];
        let mut text = [b'-'; 55];
        let mut places = text.iter_mut();
        for part in parts {
            for byte in part {
                for digit in [byte >> 4, byte & 15] {
                    if let (Some(place), Some(digit)) = (places.next(), DIGITS.get(usize::from(digit))) {
                        *place = *digit;
                    }
                }
            }
            places.next();
        }
        text
    }

    /// Whether the caller may have recorded the trace.
    #[must_use]
    pub fn is_sampled(self) -> bool {
        self.flags & Self::SAMPLED != 0
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(&self.text()).unwrap_or_default())
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TraceParent {
    type Err = InvalidName;

    /// Parses a header's value. A version above 00 is read as far as version 00 defines it, as the
    /// specification asks (section 4.3 "versioning of traceparent").
    fn from_str(value: &str) -> Result<Self, InvalidName> {
        let invalid = |reason| InvalidName::new("traceparent", value, reason);
        let lower_hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let mut parts = value.splitn(5, '-');
        let mut part = |len: usize, reason: &'static str| {
            parts.next().filter(|part| part.len() == len && lower_hex(part)).ok_or_else(|| invalid(reason))
        };
        let version = part(2, "starts with a version of 2 lower-case hexadecimal digits")?;
        let trace_id = part(32, "the trace id is 32 lower-case hexadecimal digits")?;
        let span_id = part(16, "the parent id is 16 lower-case hexadecimal digits")?;
        let flags = part(2, "the flags are 2 lower-case hexadecimal digits")?;
        if version == "ff" || (version == "00" && parts.next().is_some()) {
            return Err(invalid("is not of a version that can be read"));
        }
        let number = |_| invalid("is not hexadecimal");
        let parsed = Self {
            trace_id: u128::from_str_radix(trace_id, 16).map_err(number)?,
            span_id: u64::from_str_radix(span_id, 16).map_err(number)?,
            flags: u8::from_str_radix(flags, 16).map_err(number)? & Self::SAMPLED,
        };
        if parsed.trace_id == 0 || parsed.span_id == 0 {
            return Err(invalid("trace id and parent id must not be all zero"));
        }
        Ok(parsed)
    }
}

impl Serialize for TraceParent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TraceParent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        value.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_example_of_the_specification_round_trips() {
        let parsed: TraceParent = EXAMPLE.parse().unwrap();
        assert!(parsed.is_sampled());
        assert_eq!(parsed.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(parsed.to_string(), EXAMPLE);
        assert_eq!(parsed.child().trace_id(), parsed.trace_id());
        assert_ne!(parsed.child(), parsed);
    }

    #[test]
    fn what_the_specification_forbids_is_refused() {
        for bad in [
            "",
            "00-0-0-0",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            assert!(bad.parse::<TraceParent>().is_err(), "{bad}");
        }
        assert!("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x".parse::<TraceParent>().is_ok());
    }

    proptest! {
        #[test]
        fn the_text_is_hexadecimal(trace_id: u128, span_id: u64, flags: u8) {
            let text = TraceParent { trace_id, span_id, flags }.to_string();
            prop_assert_eq!(text, format!("00-{trace_id:032x}-{span_id:016x}-{flags:02x}"));
        }

        #[test]
        fn parsing_never_panics(value in any::<String>()) {
            let _ = value.parse::<TraceParent>();
        }
    }
}
