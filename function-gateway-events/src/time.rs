//! Timestamps as RFC 3339 has them.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use function_gateway_core::Timestamp;

use crate::InvalidAttribute;

/// A point in time (the type `Timestamp`): a text as in RFC 3339, kept as it is.
///
/// Offset and precision of the sender are part of the text, so that an event that is passed on is the one that came.
/// Texts are compared, not points in time: `T12:00:00Z` and `T12:00:00.0Z` differ.
///
/// ```
/// use function_gateway_events::EventTime;
///
/// let time: EventTime = "2018-04-05T19:31:00.123456789+02:00".parse()?;
/// assert_eq!(time.as_str(), "2018-04-05T19:31:00.123456789+02:00");
/// assert_eq!(time.timestamp().to_string(), "2018-04-05T17:31:00.123456Z");
/// # Ok::<_, function_gateway_events::InvalidAttribute>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct EventTime {
    text: Arc<str>,
    at: Timestamp,
}

impl EventTime {
    /// Takes a text as in RFC 3339.
    ///
    /// # Errors
    /// [`InvalidAttribute`] says what is wrong.
    pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidAttribute> {
        let text = text.as_ref();
        let at = parse(text).map_err(|reason| InvalidAttribute::new("Timestamp", reason))?;
        Ok(Self { text: Arc::from(text), at })
    }

    /// The text, as it came.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The point in time. What is finer than microseconds is cut off.
    #[must_use]
    pub fn timestamp(&self) -> Timestamp {
        self.at
    }
}

impl TryFrom<Timestamp> for EventTime {
    type Error = InvalidAttribute;

    /// Fails outside of the years 0000 to 9999, which RFC 3339 can't tell.
    fn try_from(at: Timestamp) -> Result<Self, InvalidAttribute> {
        Self::new(at.to_string())
    }
}

impl FromStr for EventTime {
    type Err = InvalidAttribute;

    fn from_str(text: &str) -> Result<Self, InvalidAttribute> {
        Self::new(text)
    }
}

impl fmt::Display for EventTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for EventTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

const FORM: &str = "is not a date and time as in RFC 3339, such as 2018-04-05T17:31:00Z";

/// By hand, as parsers of dates take more than RFC 3339 has, and less than its years 0000 to 9999 in every offset.
fn parse(text: &str) -> Result<Timestamp, &'static str> {
    let number = |range: Range<usize>| {
        let digits = text.get(range)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<i64>().ok())?
    };
    let fields =
        || Some([number(0..4)?, number(5..7)?, number(8..10)?, number(11..13)?, number(14..16)?, number(17..19)?]);
    let [year, month, day, hour, minute, second] = fields().ok_or(FORM)?;
    let separators = [4, 7, 10, 13, 16].map(|at| text.as_bytes().get(at).copied());
    let [Some(b'-'), Some(b'-'), Some(b'T' | b't'), Some(b':'), Some(b':')] = separators else { return Err(FORM) };
    let rest = text.get(19..).ok_or(FORM)?;
    let (micros, zone) = match rest.strip_prefix('.') {
        None => (0, rest),
        Some(rest) => {
            let end = rest.find(|char: char| !char.is_ascii_digit()).unwrap_or(rest.len());
            let (fraction, zone) = rest.split_at_checked(end).filter(|(digits, _)| !digits.is_empty()).ok_or(FORM)?;
            let micros = fraction.bytes().chain(std::iter::repeat(b'0')).take(6);
            (micros.fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0')), zone)
        }
    };
    let offset = offset_minutes(zone)?;
    if !(1..=12).contains(&month) || day < 1 || day > days_of(year, month) {
        return Err("names a day that is not in the calendar");
    }
    // A leap second is counted as the one after it.
    if hour > 23 || minute > 59 || second > 60 {
        return Err("names a time that is not in the day");
    }
    let seconds = ((days_since_epoch(year, month, day) * 24 + hour) * 60 + minute - offset) * 60 + second;
    Ok(Timestamp::from_micros(seconds * 1_000_000 + micros))
}

fn offset_minutes(zone: &str) -> Result<i64, &'static str> {
    if matches!(zone, "Z" | "z") {
        return Ok(0);
    }
    let bytes: [u8; 6] = zone.as_bytes().try_into().map_err(|_| FORM)?;
    let [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] = bytes else { return Err(FORM) };
    if ![h1, h2, m1, m2].iter().all(u8::is_ascii_digit) {
        return Err(FORM);
    }
    let [hours, minutes] =
        [(h1, h2), (m1, m2)].map(|(tens, ones)| i64::from(tens - b'0') * 10 + i64::from(ones - b'0'));
    if hours > 23 || minutes > 59 {
        return Err("has an offset that is not within a day");
    }
    let offset = hours * 60 + minutes;
    Ok(if sign == b'-' { -offset } else { offset })
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the Gregorian calendar, with years that begin in March, so that a leap day ends them.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_rfc_3339_has_is_taken_as_it_is() {
        for text in [
            "2018-04-05T17:31:00Z",
            "1985-04-12T23:20:50.52Z",
            "1996-12-19T16:39:57-08:00",
            "1990-12-31T23:59:60Z",
            "1937-01-01T12:00:27.87+00:20",
            "2024-02-29t00:00:00.123456789012345z",
            "0000-01-01T00:00:00+23:59",
            "9999-12-31T23:59:59.999999-23:59",
        ] {
            assert_eq!(EventTime::new(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn what_rfc_3339_does_not_have_is_refused() {
        for text in [
            "",
            "2018-04-05",
            "2018-04-05T17:31:00",
            "2018-04-05 17:31:00Z",
            "2018-04-05T17:31Z",
            "2018-04-05T17:31:00.Z",
            "2018-04-05T17:31:00,5Z",
            "2018-04-05T17:31:00+0200",
            "2018-04-05T17:31:00+24:00",
            "2018-04-05T17:31:00Z[UTC]",
            "20180405T173100Z",
            "+002018-04-05T17:31:00Z",
            "2018-13-05T17:31:00Z",
            "2018-02-29T17:31:00Z",
            "1900-02-29T17:31:00Z",
            "2018-04-05T24:00:00Z",
            "2018-04-05T17:31:61Z",
            "2018-04-05T17:31:00Zé",
            "２018-04-05T17:31:00Z",
        ] {
            assert!(EventTime::new(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn the_point_in_time_is_what_another_parser_finds(
            micros in -62_000_000_000_000_000_i64..250_000_000_000_000_000,
            offset in -1439_i64..1440,
        ) {
            let at = Timestamp::from_micros(micros);
            let time = EventTime::try_from(at).unwrap();
            prop_assert_eq!(time.timestamp(), at);
            let sign = if offset < 0 { '-' } else { '+' };
            let zone = format!("{sign}{:02}:{:02}", offset.abs() / 60, offset.abs() % 60);
            let elsewhere = time.as_str().replace('Z', &zone);
            prop_assert_eq!(EventTime::new(&elsewhere).unwrap().timestamp(), elsewhere.parse::<Timestamp>().unwrap());
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,40}", digits in "[-0-9TZ:.+]{15,30}") {
            let _ = (EventTime::new(text), EventTime::new(digits));
        }
    }
}
