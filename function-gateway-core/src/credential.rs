//! API keys as they are stored: what a key may do and until when, and of the key itself only a hash.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ApiKeyId, PrincipalId, TenantId, Timestamp};

/// A key by which a principal of a tenant can be known, for authenticators of the host's.
///
/// The key that its holder presents is never here, only the hash of its secret part. There is no serialization, so
/// that the hash does not get into an answer by accident.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ApiKey {
    /// The key's identity, by which it is looked up. The same is never used again, in no tenant.
    pub id: ApiKeyId,
    /// The tenant that it belongs to.
    pub tenant: TenantId,
    /// As whom its holder acts.
    pub principal: PrincipalId,
    /// What its holder is given, for an [`Authorizer`](crate::Authorizer) to go by.
    pub scopes: BTreeSet<String>,
    /// What it is for, in words of whoever created it.
    pub description: String,
    /// SHA-256 of the secret part of the key, which has to be drawn at random: no salt and no slow hash protects one that
    /// can be guessed.
    pub hash: [u8; 32],
    /// When it was created.
    pub created_at: Timestamp,
    /// Who created it.
    pub created_by: PrincipalId,
    /// From when on it is of no more use; it never expires where this is absent.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked, if it was. It is of no use then, whatever that time is.
    pub revoked_at: Option<Timestamp>,
}

impl ApiKey {
    /// A key without scopes that does not expire.
    #[must_use]
    pub fn new(
        id: ApiKeyId,
        tenant: TenantId,
        principal: PrincipalId,
        hash: [u8; 32],
        (created_at, created_by): (Timestamp, PrincipalId),
    ) -> Self {
        Self {
            id,
            tenant,
            principal,
            scopes: BTreeSet::new(),
            description: String::new(),
            hash,
            created_at,
            created_by,
            expires_at: None,
            revoked_at: None,
        }
    }

    /// Whether it can be used at a time.
    #[must_use]
    pub fn state(&self, now: Timestamp) -> ApiKeyState {
        if self.revoked_at.is_some() {
            return ApiKeyState::Revoked;
        }
        match self.expires_at {
            Some(expires_at) if expires_at <= now => ApiKeyState::Expired,
            _ => ApiKeyState::Active,
        }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            tenant,
            principal,
            scopes,
            description,
            hash: _,
            created_at,
            created_by,
            expires_at,
            revoked_at,
        } = self;
        f.debug_struct("ApiKey")
            .field("id", id)
            .field("tenant", tenant)
            .field("principal", principal)
            .field("scopes", scopes)
            .field("description", description)
            .field("created_at", created_at)
            .field("created_by", created_by)
            .field("expires_at", expires_at)
            .field("revoked_at", revoked_at)
            .finish_non_exhaustive()
    }
}

/// Whether a key can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ApiKeyState {
    /// It can.
    Active,
    /// Its time is over.
    Expired,
    /// It was revoked, for good.
    Revoked,
}

impl ApiKeyState {
    /// The name in JSON and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

impl fmt::Display for ApiKeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ApiKey {
        let created = (Timestamp::from_micros(0), "ann".parse().unwrap());
        ApiKey::new(ApiKeyId::from_bytes([7; 16]), "acme".parse().unwrap(), "bob".parse().unwrap(), [0xab; 32], created)
    }

    #[test]
    fn a_key_is_active_until_it_expires_or_is_revoked() {
        let time = Timestamp::from_micros;
        let rows = [
            (None, None, ApiKeyState::Active),
            (Some(11), None, ApiKeyState::Active),
            (Some(10), None, ApiKeyState::Expired),
            (None, Some(9), ApiKeyState::Revoked),
            (Some(9), Some(9), ApiKeyState::Revoked),
            // Written by a gateway whose clock is ahead.
            (None, Some(11), ApiKeyState::Revoked),
        ];
        for (expires_at, revoked_at, expected) in rows {
            let mut key = key();
            (key.expires_at, key.revoked_at) = (expires_at.map(time), revoked_at.map(time));
            assert_eq!(key.state(time(10)), expected, "{key:?}");
        }
    }

    #[test]
    fn debug_output_shows_no_hash() {
        let text = format!("{:?} {:#?}", key(), key());
        assert!(text.contains("acme") && !text.contains("171") && !text.contains("0xab"), "{text}");
    }
}
