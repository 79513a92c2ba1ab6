//! Pages of a list, by keyset: a cursor says after which key to go on, so a page at any depth costs the same.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::{Error, ErrorKind, Result, Timestamp};

/// The error for a cursor whose key a list can't read.
pub(super) fn invalid_cursor() -> Error {
    Error::new(ErrorKind::InvalidArgument, "the cursor is not one that this list gave; start again without")
}

/// The place of an item in a list that goes by time and then by id, as a cursor's key.
pub(super) fn place_in_time(at: Timestamp, id: impl fmt::Display) -> String {
    format!("{}/{id}", at.as_micros())
}

/// Reads what [`place_in_time`] gives.
pub(super) fn read_place_in_time<I: FromStr>(key: &str) -> Option<(Timestamp, I)> {
    let (micros, id) = key.split_once('/')?;
    Some((Timestamp::from_micros(micros.parse().ok()?), id.parse().ok()?))
}

/// Which list a cursor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CursorKind {
    /// A tenant's functions.
    Functions,
    /// A function's revisions.
    Revisions,
    /// A tenant's records.
    Records,
    /// All functions of all tenants.
    Scan,
    /// A tenant's API keys.
    ApiKeys,
    /// A tenant's audit events.
    Audit,
    /// A tenant's dead letters.
    DeadLetters,
    /// A tenant's documents of a kind.
    Documents,
}

impl CursorKind {
    fn tag(self) -> u8 {
        match self {
            Self::Functions => b'f',
            Self::Revisions => b'r',
            Self::Records => b'i',
            Self::Scan => b's',
            Self::ApiKeys => b'k',
            Self::Audit => b'a',
            Self::DeadLetters => b'd',
            Self::Documents => b'o',
        }
    }
}

/// Where a list goes on: opaque text for whoever holds it. Its form has a version, so that it can change.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Cursor(String);

impl Cursor {
    const VERSION: u8 = 1;
    /// The greatest length of a cursor's text that is looked at.
    const MAX_LEN: usize = 1024;

    /// A cursor that goes on after a key, as stores make it.
    #[must_use]
    pub fn after(kind: CursorKind, key: &str) -> Self {
        let mut bytes = vec![Self::VERSION, kind.tag()];
        bytes.extend_from_slice(key.as_bytes());
        Self(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Takes a cursor's text as a client sent it. It is read when the list is.
    #[must_use]
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key after which a list goes on, as stores read it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where it is no cursor, or one of another list or of a version not known here.
    pub fn key(&self, kind: CursorKind) -> Result<String> {
        if self.0.len() > Self::MAX_LEN {
            return Err(invalid_cursor());
        }
        let bytes = URL_SAFE_NO_PAD.decode(&self.0).map_err(|_| invalid_cursor())?;
        match bytes.split_first_chunk::<2>() {
            Some(([Self::VERSION, tag], key)) if *tag == kind.tag() => {
                String::from_utf8(key.to_vec()).map_err(|_| invalid_cursor())
            }
            _ => Err(invalid_cursor()),
        }
    }
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which page is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PageRequest {
    /// How many items at most: 1 to [`MAX_LIMIT`](Self::MAX_LIMIT). More is taken as that, 0 as 1.
    pub limit: usize,
    /// Where to go on; the start where absent.
    pub after: Option<Cursor>,
}

impl PageRequest {
    /// The most items that a page holds.
    pub const MAX_LIMIT: usize = super::MAX_PAGE;

    /// The first page.
    #[must_use]
    pub fn first(limit: usize) -> Self {
        Self { limit, after: None }
    }

    /// The page after a cursor.
    #[must_use]
    pub fn after(mut self, cursor: Cursor) -> Self {
        self.after = Some(cursor);
        self
    }

    /// How many items a store gives.
    #[must_use]
    pub fn effective_limit(&self) -> usize {
        self.limit.clamp(1, Self::MAX_LIMIT)
    }

    /// The key after which to go on, as stores read it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where the cursor is not of this kind of list.
    pub fn key(&self, kind: CursorKind) -> Result<Option<String>> {
        self.after.as_ref().map(|cursor| cursor.key(kind)).transpose()
    }
}

impl Default for PageRequest {
    fn default() -> Self {
        Self::first(100)
    }
}

/// A row that is stored but can't be read. The rest of its list is served all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnreadableRow {
    /// What it is: a name or an id.
    pub id: String,
    /// What is wrong with it.
    pub reason: String,
}

impl UnreadableRow {
    /// Names a row, and what is wrong with it.
    #[must_use]
    pub fn new(id: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { id: id.into(), reason: reason.into() }
    }
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the list goes on; absent at its end.
    pub next: Option<Cursor>,
    /// Rows in this part that can't be read.
    pub unreadable: Vec<UnreadableRow>,
}

impl<T> Page<T> {
    /// A page without unreadable rows.
    #[must_use]
    pub fn new(items: Vec<T>, next: Option<Cursor>) -> Self {
        Self { items, next, unreadable: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KINDS: [CursorKind; 6] = [
        CursorKind::Functions,
        CursorKind::Revisions,
        CursorKind::Records,
        CursorKind::Scan,
        CursorKind::ApiKeys,
        CursorKind::Audit,
    ];

    proptest! {
        #[test]
        fn cursors_round_trip_in_their_own_list_only(key in "\\PC{0,100}", one in 0_usize..6, two in 0_usize..6) {
            let cursor = Cursor::after(KINDS[one], &key);
            let sent = Cursor::from_text(cursor.as_str());
            match sent.key(KINDS[two]) {
                Ok(read) => {
                    prop_assert_eq!(one, two);
                    prop_assert_eq!(read, key);
                }
                Err(error) => {
                    prop_assert_ne!(one, two);
                    prop_assert_eq!(error.kind(), ErrorKind::InvalidArgument);
                }
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in any::<String>()) {
            let _ = Cursor::from_text(text).key(CursorKind::Functions);
        }
    }
}
