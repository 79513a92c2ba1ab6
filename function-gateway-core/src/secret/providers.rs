//! Providers that need nothing but this machine. Each is told which tenant may see what; no tenant sees more.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};
use std::time::UNIX_EPOCH;

use async_trait::async_trait;

use super::{ProvidedSecret, Secret, SecretProvider};
use crate::{CallContext, Error, ErrorKind, Result, SecretRef, TenantId};

/// Secrets that the host puts in, held in memory.
#[derive(Default)]
pub struct MemorySecrets(RwLock<HashMap<(TenantId, SecretRef), (Secret, u64)>>);

impl MemorySecrets {
    /// A provider without a secret.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a tenant's secret; replacing one is a rotation and changes its version.
    pub fn set(&self, tenant: TenantId, name: SecretRef, secret: Secret) {
        let mut secrets = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let entry = secrets.entry((tenant, name)).or_insert_with(|| (secret.clone(), 0));
        *entry = (secret, entry.1 + 1);
    }

    /// Removes a tenant's secret. Says whether there was one.
    pub fn remove(&self, tenant: &TenantId, name: &SecretRef) -> bool {
        let mut secrets = self.0.write().unwrap_or_else(PoisonError::into_inner);
        secrets.remove(&(tenant.clone(), name.clone())).is_some()
    }
}

impl fmt::Debug for MemorySecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.read().unwrap_or_else(PoisonError::into_inner).len();
        f.debug_struct("MemorySecrets").field("secrets", &count).finish()
    }
}

#[async_trait]
impl SecretProvider for MemorySecrets {
    async fn get(&self, _: &CallContext, tenant: &TenantId, secret: &SecretRef) -> Result<Option<ProvidedSecret>> {
        let secrets = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let found = secrets.get(&(tenant.clone(), secret.clone()));
        Ok(found.map(|(secret, version)| ProvidedSecret::new(secret.clone(), version.to_string())))
    }
}

/// Secrets from environment variables that the host hands over.
///
/// A tenant sees the variables that start with its own prefix: with the prefix `ACME_`, the secret `db-password` is
/// the variable `ACME_DB_PASSWORD` (upper case, `-` and `.` as `_`). A tenant without a prefix sees none.
pub struct EnvironmentSecrets {
    variables: HashMap<String, Secret>,
    prefixes: BTreeMap<TenantId, String>,
}

impl EnvironmentSecrets {
    /// Takes variables, such as `std::env::vars_os()`, and the prefix of each tenant's. A value need not be UTF-8; a
    /// variable whose name is not is no secret's.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where a prefix is empty, or starts with another tenant's prefix: one tenant would
    /// see what belongs to the other.
    pub fn new<N: Into<OsString>, V: Into<OsString>>(
        variables: impl IntoIterator<Item = (N, V)>,
        prefixes: impl IntoIterator<Item = (TenantId, String)>,
    ) -> Result<Self> {
        let prefixes: BTreeMap<TenantId, String> = prefixes.into_iter().collect();
        for (tenant, prefix) in &prefixes {
            let overlaps = |(other, known): (&TenantId, &String)| other != tenant && prefix.starts_with(known.as_str());
            if prefix.is_empty() || prefixes.iter().any(overlaps) {
                let message = format!("the prefix {prefix:?} is empty or starts with another tenant's prefix");
                return Err(Error::new(ErrorKind::InvalidArgument, message).with_context("tenant", tenant.as_str()));
            }
        }
        let visible = |name: &String| prefixes.values().any(|prefix| name.starts_with(prefix));
        let variables = variables
            .into_iter()
            .filter_map(|(name, value)| Some((name.into().into_string().ok()?, value)))
            .filter(|(name, _)| visible(name))
            .map(|(name, value)| (name, Secret::new(value.into().into_encoded_bytes())))
            .collect();
        Ok(Self { variables, prefixes })
    }
}

impl fmt::Debug for EnvironmentSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnvironmentSecrets").field("prefixes", &self.prefixes).finish_non_exhaustive()
    }
}

#[async_trait]
impl SecretProvider for EnvironmentSecrets {
    async fn get(&self, _: &CallContext, tenant: &TenantId, secret: &SecretRef) -> Result<Option<ProvidedSecret>> {
        let Some(prefix) = self.prefixes.get(tenant) else { return Ok(None) };
        let suffix = secret.as_str().to_ascii_uppercase().replace(['-', '.'], "_");
        let found = self.variables.get(&format!("{prefix}{suffix}"));
        // The variables were handed over once and do not change.
        Ok(found.map(|secret| ProvidedSecret::new(secret.clone(), "1")))
    }
}

/// Secrets from folders of files, one file for each, as Kubernetes and Docker mount them.
///
/// The bytes of a file are the value, a newline at the end included. Files are read anew each time, so a mounted
/// secret that is rotated is seen.
#[derive(Debug)]
pub struct DirectorySecrets {
    folders: BTreeMap<TenantId, PathBuf>,
}

impl DirectorySecrets {
    /// How large a file may be: 1 MiB, as Kubernetes limits secrets.
    pub const MAX_BYTES: u64 = 1024 * 1024;

    /// Takes each tenant's folder. A tenant without a folder has no secrets here.
    #[must_use]
    pub fn new(folders: impl IntoIterator<Item = (TenantId, PathBuf)>) -> Self {
        Self { folders: folders.into_iter().collect() }
    }
}

#[async_trait]
impl SecretProvider for DirectorySecrets {
    async fn get(&self, _: &CallContext, tenant: &TenantId, secret: &SecretRef) -> Result<Option<ProvidedSecret>> {
        let Some(folder) = self.folders.get(tenant) else { return Ok(None) };
        // A secret's name has no separator and is never `.` or `..`.
        let path = folder.join(secret.as_str());
        let read = tokio::task::spawn_blocking(move || read_file(&path)).await;
        let failed = |error: io::Error| {
            Error::new(ErrorKind::DependencyUnavailable, "a secret's file can't be read").with_source(error)
        };
        match read.map_err(io::Error::other).and_then(|read| read) {
            Ok(provided) => Ok(Some(provided)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }
}

fn read_file(path: &std::path::Path) -> io::Result<ProvidedSecret> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    if metadata.len() > DirectorySecrets::MAX_BYTES {
        return Err(io::Error::other(format!("larger than {} bytes", DirectorySecrets::MAX_BYTES)));
    }
    let changed = metadata.modified()?.duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    let secret = Secret::new(std::fs::read(path)?);
    Ok(ProvidedSecret::new(secret, changed.as_nanos().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Principal;

    fn cx(tenant: &str) -> CallContext {
        CallContext::new(Principal::new(tenant.parse().unwrap(), "ada".parse().unwrap()))
    }

    async fn get(provider: &dyn SecretProvider, tenant: &str, name: &str) -> Option<Vec<u8>> {
        let cx = cx(tenant);
        let found = provider.get(&cx, cx.tenant(), &name.parse().unwrap()).await.unwrap();
        found.map(|provided| provided.secret.expose().to_vec())
    }

    #[tokio::test]
    async fn memory_keeps_tenants_apart_and_counts_rotations() {
        let secrets = MemorySecrets::new();
        let (acme, key): (TenantId, SecretRef) = ("acme".parse().unwrap(), "key".parse().unwrap());
        secrets.set(acme.clone(), key.clone(), Secret::new("one"));
        let first = secrets.get(&cx("acme"), &acme, &key).await.unwrap().unwrap().version;
        secrets.set(acme.clone(), key.clone(), Secret::new("two"));
        let second = secrets.get(&cx("acme"), &acme, &key).await.unwrap().unwrap().version;
        assert_ne!(first, second);
        assert_eq!(get(&secrets, "acme", "key").await.unwrap(), b"two");
        assert_eq!(get(&secrets, "other", "key").await, None);
        assert!(secrets.remove(&acme, &key));
        assert_eq!(get(&secrets, "acme", "key").await, None);
    }

    #[tokio::test]
    async fn environment_goes_by_the_tenants_prefix() {
        let variables = [("ACME_DB_PASSWORD", "pw"), ("OTHER_KEY", "x"), ("PATH", "/bin")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let prefixes = [("acme", "ACME_"), ("other", "OTHER_")];
        let prefixes = prefixes.map(|(tenant, prefix)| (tenant.parse().unwrap(), prefix.to_owned()));
        let secrets = EnvironmentSecrets::new(variables, prefixes).unwrap();
        assert_eq!(get(&secrets, "acme", "db-password").await.unwrap(), b"pw");
        assert_eq!(get(&secrets, "other", "db-password").await, None);
        assert_eq!(get(&secrets, "third", "key").await, None);
    }

    #[test]
    fn overlapping_prefixes_are_refused() {
        for (one, two) in [("A_", "A_B_"), ("A_", "A_"), ("", "A_")] {
            let prefixes = [("t1".parse().unwrap(), one.to_owned()), ("t2".parse().unwrap(), two.to_owned())];
            assert!(EnvironmentSecrets::new(std::env::vars_os(), prefixes).is_err(), "{one:?} {two:?}");
        }
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn variables_that_are_not_text_are_taken_as_they_are_and_break_nothing() {
        use std::os::unix::ffi::OsStringExt as _;
        let variables = [(&b"ACME_KEY"[..], &b"\xff\xfe"[..]), (b"ACME_\xff", b"x")];
        let variables =
            variables.map(|(name, value)| (OsString::from_vec(name.into()), OsString::from_vec(value.into())));
        let secrets = EnvironmentSecrets::new(variables, [("acme".parse().unwrap(), "ACME_".to_owned())]).unwrap();
        assert_eq!(get(&secrets, "acme", "key").await.unwrap(), b"\xff\xfe");
        assert_eq!(secrets.variables.len(), 1);
    }

    #[tokio::test]
    async fn a_folder_is_read_as_kubernetes_mounts_it() {
        let folder = tempfile::tempdir().unwrap();
        // Kubernetes: files are links into `..data`, itself a link to a dated folder.
        std::fs::create_dir(folder.path().join("..2026")).unwrap();
        std::fs::write(folder.path().join("..2026/token"), "t0ken\n").unwrap();
        std::os::unix::fs::symlink("..2026", folder.path().join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/token", folder.path().join("token")).unwrap();
        let secrets = DirectorySecrets::new([("acme".parse().unwrap(), folder.path().to_path_buf())]);
        assert_eq!(get(&secrets, "acme", "token").await.unwrap(), b"t0ken\n");
        assert_eq!(get(&secrets, "acme", "absent").await, None);
        assert_eq!(get(&secrets, "other", "token").await, None);
    }

    #[tokio::test]
    async fn an_unreadable_folder_is_not_a_missing_secret() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("big"), vec![0; 1024 * 1024 + 1]).unwrap();
        let secrets = DirectorySecrets::new([("acme".parse().unwrap(), folder.path().to_path_buf())]);
        let cx = cx("acme");
        let error = secrets.get(&cx, cx.tenant(), &"big".parse().unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DependencyUnavailable);
    }
}
