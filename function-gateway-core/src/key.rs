//! Validated identities: a name that exists is a name that is valid.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// Why a text is not a valid name, identifier or reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what} {value:?}: {reason}")]
pub struct InvalidName {
    what: &'static str,
    value: String,
    reason: String,
}

impl InvalidName {
    /// How much of a rejected text is repeated in the error, in characters.
    const SHOWN: usize = 80;

    pub(crate) fn new(what: &'static str, value: &str, reason: impl Into<String>) -> Self {
        let mut shown: String = value.chars().take(Self::SHOWN).collect();
        if shown.len() < value.len() {
            shown.push('…');
        }
        Self { what, value: shown, reason: reason.into() }
    }

    /// What kind of name was expected, such as `function name`.
    #[must_use]
    pub fn what(&self) -> &str {
        self.what
    }

    /// What was wrong, and what would be right.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

fn check_length(what: &'static str, value: &str, max: usize) -> Result<(), InvalidName> {
    if value.is_empty() {
        return Err(InvalidName::new(what, value, "must not be empty"));
    }
    if value.len() > max {
        let reason = format!("is {} bytes long, at most {max} are allowed", value.len());
        return Err(InvalidName::new(what, value, reason));
    }
    Ok(())
}

/// A label as in RFC 1123: lower-case letters, digits and `-`, starting and ending with a letter or digit.
fn check_label(what: &'static str, value: &str, max: usize) -> Result<(), InvalidName> {
    check_length(what, value, max)?;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if let Some(bad) = value.chars().find(|&c| !allowed(c)) {
        let reason = format!("contains {bad:?}, allowed are a-z, 0-9 and '-'");
        return Err(InvalidName::new(what, value, reason));
    }
    if value.starts_with('-') || value.ends_with('-') {
        return Err(InvalidName::new(what, value, "must start and end with a letter or a digit"));
    }
    Ok(())
}

/// Letters, digits, `.`, `_` and `-`, starting with a letter or digit, so never `.` or `..`.
fn check_token(what: &'static str, value: &str, max: usize) -> Result<(), InvalidName> {
    check_length(what, value, max)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if let Some(bad) = value.chars().find(|&c| !allowed(c)) {
        let reason = format!("contains {bad:?}, allowed are letters, digits, '.', '_' and '-'");
        return Err(InvalidName::new(what, value, reason));
    }
    if !value.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(InvalidName::new(what, value, "must start with a letter or a digit"));
    }
    Ok(())
}

fn check_principal(what: &'static str, value: &str, max: usize) -> Result<(), InvalidName> {
    check_length(what, value, max)?;
    if let Some(bad) = value.chars().find(|c| c.is_control()) {
        return Err(InvalidName::new(what, value, format!("contains the control character {bad:?}")));
    }
    Ok(())
}

macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The greatest length in bytes.
            pub const MAX_LEN: usize = $max;

            /// Checks a text and takes it as this kind of name.
            ///
            /// # Errors
            /// [`InvalidName`] says which rule the text breaks.
            pub fn new(value: impl AsRef<str>) -> Result<Self, InvalidName> {
                let value = value.as_ref();
                $check($what, value, $max)?;
                Ok(Self(Arc::from(value)))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl From<$name> for Arc<str> {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(value: &str) -> Result<Self, InvalidName> {
                Self::new(value)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = InvalidName;

            fn try_from(value: &str) -> Result<Self, InvalidName> {
                Self::new(value)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::new(&*value).map_err(serde::de::Error::custom)
            }
        }
    };
}

text_name! {
    /// The tenant that owns functions, records and secrets.
    ///
    /// Letters, digits, `.`, `_` and `-`, starting with a letter or digit; case matters.
    TenantId, "tenant", 64, check_token
}

text_name! {
    /// The name of a function within its tenant: a DNS label (RFC 1123), so that every engine can carry it.
    FunctionName, "function name", 63, check_label
}

text_name! {
    /// The name under which a driver is registered with a gateway: a DNS label (RFC 1123).
    DriverName, "driver name", 63, check_label
}

impl DriverName {
    /// What stands for the driver of a function that is not there.
    pub(crate) fn none() -> Self {
        Self(Arc::from("none"))
    }
}

text_name! {
    /// Identifies one installation of the gateway on the engines that it shares with others.
    ///
    /// A DNS label of at most 24 characters, since it is part of names in the engine.
    GatewayId, "gateway id", 24, check_label
}

text_name! {
    /// Identifies who calls, as the host's authentication knows them: any text without control characters.
    PrincipalId, "principal", 256, check_principal
}

impl PrincipalId {
    /// Whether it is `me`, which in queries stands for whoever asks. No API key is made for a principal of this name, which nobody
    /// else could ask for.
    #[must_use]
    pub fn is_caller(&self) -> bool {
        self.as_str() == "me"
    }
}

text_name! {
    /// The name of a secret, as a specification refers to it: letters, digits, `.`, `_` and `-`.
    SecretRef, "secret name", 253, check_token
}

text_name! {
    /// How a gateway's driver talks to a function: `exec`, `http`, `lambda`, or a name of the driver's own.
    Protocol, "protocol", 63, check_label
}

impl Protocol {
    /// `exec`: one process for each invocation, payload on standard input, result on standard output.
    #[must_use]
    pub fn exec() -> Self {
        Self(Arc::from("exec"))
    }

    /// `http`: the function is an HTTP server.
    #[must_use]
    pub fn http() -> Self {
        Self(Arc::from("http"))
    }

    /// `lambda`: the function asks the driver for its calls, by the AWS Lambda Runtime API.
    #[must_use]
    pub fn lambda() -> Self {
        Self(Arc::from("lambda"))
    }
}

impl GatewayId {
    /// Mints an identifier at random (60 bits).
    #[must_use]
    pub fn generate() -> Self {
        // The low half of a UUIDv7 is two bits of variant, then random.
        let (_, low) = Uuid::now_v7().as_u64_pair();
        Self(Arc::from(format!("g{:015x}", low & 0x0fff_ffff_ffff_ffff)))
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Mints a new identifier (UUIDv7, RFC 9562): later ones sort after earlier ones.
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// Takes an identifier from its 16 bytes.
            #[must_use]
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// The 16 bytes, in the order that sorts.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(value: &str) -> Result<Self, InvalidName> {
                Uuid::parse_str(value)
                    .map(Self)
                    .map_err(|error| InvalidName::new($what, value, error.to_string()))
            }
        }
    };
}

uuid_id! {
    /// Identifies a function for ever: deleting and creating again under one name are two functions.
    FunctionId, "function id"
}

uuid_id! {
    /// Identifies one execution; made by the gateway or brought by the caller.
    InvocationId, "invocation id"
}

uuid_id! {
    /// Identifies an API key. It is no secret: who knows it can't call with it.
    ApiKeyId, "API key id"
}

uuid_id! {
    /// Identifies an event of the audit log.
    AuditEventId, "audit event id"
}

/// Counts the changes of a function's specification, from 1. Every generation is kept as a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(NonZeroU64);

impl Generation {
    /// The first generation of every function.
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// Takes a number as a generation; `None` for 0.
    #[must_use]
    pub fn new(value: u64) -> Option<Self> {
        NonZeroU64::new(value).map(Self)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Counts the changes of a function's row, status included. Serves for compare and set, and as an ETag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(u64);

impl Version {
    /// The version of a row that was just created.
    pub const FIRST: Self = Self(1);

    /// Takes a number as a version.
    #[must_use]
    pub fn new(value: u64) -> Self {
        Self(value)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }

    /// The version after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A function's tenant and name: what every look-up that serves a caller goes by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FunctionKey {
    /// The tenant.
    pub tenant: TenantId,
    /// The name within the tenant.
    pub name: FunctionName,
}

impl FunctionKey {
    /// Puts a tenant and a name together.
    #[must_use]
    pub fn new(tenant: TenantId, name: FunctionName) -> Self {
        Self { tenant, name }
    }
}

impl fmt::Display for FunctionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.name)
    }
}

/// Which of a function's revisions a reference means.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Qualifier {
    /// What the route says: the serving revision.
    Serving,
    /// One generation.
    Generation(Generation),
    /// A named alias. The form is reserved: the gateway answers it with
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported).
    Alias(FunctionName),
}

/// A function as a caller refers to it: `name`, `name@7` or `name:alias`.
///
/// ```
/// use function_gateway_core::{FunctionRef, Qualifier};
///
/// let seventh: FunctionRef = "resize@7".parse()?;
/// assert_eq!(seventh.name().as_str(), "resize");
/// assert!(matches!(seventh.qualifier(), Qualifier::Generation(g) if g.get() == 7));
/// assert!("Resize".parse::<FunctionRef>().is_err());
/// # Ok::<_, function_gateway_core::InvalidName>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FunctionRef {
    name: FunctionName,
    qualifier: Qualifier,
}

impl FunctionRef {
    /// Refers to one generation of a function.
    #[must_use]
    pub fn at(name: FunctionName, generation: Generation) -> Self {
        Self { name, qualifier: Qualifier::Generation(generation) }
    }

    /// The function's name.
    #[must_use]
    pub fn name(&self) -> &FunctionName {
        &self.name
    }

    /// Which of its revisions.
    #[must_use]
    pub fn qualifier(&self) -> &Qualifier {
        &self.qualifier
    }
}

impl From<FunctionName> for FunctionRef {
    fn from(name: FunctionName) -> Self {
        Self { name, qualifier: Qualifier::Serving }
    }
}

impl fmt::Display for FunctionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.qualifier {
            Qualifier::Serving => fmt::Display::fmt(&self.name, f),
            Qualifier::Generation(generation) => write!(f, "{}@{generation}", self.name),
            Qualifier::Alias(alias) => write!(f, "{}:{alias}", self.name),
        }
    }
}

impl FromStr for FunctionRef {
    type Err = InvalidName;

    fn from_str(value: &str) -> Result<Self, InvalidName> {
        if let Some((name, generation)) = value.split_once('@') {
            let generation = generation
                .parse()
                .ok()
                .and_then(Generation::new)
                .filter(|parsed| parsed.to_string() == generation)
                .ok_or_else(|| {
                    let reason = "after '@' stands a generation: a whole number from 1";
                    InvalidName::new("function reference", value, reason)
                })?;
            return Ok(Self::at(name.parse()?, generation));
        }
        if let Some((name, alias)) = value.split_once(':') {
            return Ok(Self { name: name.parse()?, qualifier: Qualifier::Alias(alias.parse()?) });
        }
        Ok(Self::from(FunctionName::new(value)?))
    }
}

impl TryFrom<&str> for FunctionRef {
    type Error = InvalidName;

    fn try_from(value: &str) -> Result<Self, InvalidName> {
        value.parse()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_invalid_name_says_what_is_wrong() {
        let error = FunctionName::new("Hello").unwrap_err();
        assert_eq!(error.to_string(), "invalid function name \"Hello\": contains 'H', allowed are a-z, 0-9 and '-'");
        assert!(FunctionName::new("").unwrap_err().reason().contains("empty"));
        assert!(FunctionName::new("-a").is_err());
        assert!(FunctionName::new("a-").is_err());
        assert!(FunctionName::new("a".repeat(63)).is_ok());
        assert!(FunctionName::new("a".repeat(64)).is_err());
    }

    #[test]
    fn a_tenant_or_secret_is_never_a_way_out_of_a_folder() {
        for bad in ["..", ".", "../etc", "a/b", "-x", ".hidden", "a\0"] {
            assert!(TenantId::new(bad).is_err(), "{bad:?}");
            assert!(SecretRef::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_error_repeats_a_bounded_part_of_the_input() {
        let error = FunctionName::new("é".repeat(5000)).unwrap_err();
        assert!(error.to_string().len() < 400);
    }

    proptest! {
        #[test]
        fn every_accepted_function_name_is_a_dns_label(value in "\\PC{0,70}") {
            if let Ok(name) = FunctionName::new(&value) {
                let text = name.as_str();
                prop_assert!(!text.is_empty() && text.len() <= 63);
                prop_assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
                prop_assert!(!text.starts_with('-') && !text.ends_with('-'));
            }
        }

        #[test]
        fn names_that_follow_the_rule_are_accepted(value in "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?") {
            let name = FunctionName::new(&value).unwrap();
            prop_assert_eq!(name.as_str(), &value);
        }

        #[test]
        fn references_round_trip(
            name in "[a-z]([-a-z0-9]{0,20}[a-z0-9])?",
            generation in 1_u64..,
            alias in "[a-z]([-a-z0-9]{0,20}[a-z0-9])?",
        ) {
            for text in [name.clone(), format!("{name}@{generation}"), format!("{name}:{alias}")] {
                let parsed: FunctionRef = text.parse().unwrap();
                prop_assert_eq!(parsed.to_string(), text);
            }
        }

        #[test]
        fn parsing_never_panics(value in any::<String>()) {
            let _ = value.parse::<FunctionRef>();
            let _ = value.parse::<FunctionId>();
            let _ = TenantId::new(&value);
            let _ = PrincipalId::new(&value);
        }
    }
}
