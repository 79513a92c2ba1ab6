//! What a host chooses about the driver.

use std::num::NonZeroU32;
use std::path::PathBuf;

use function_gateway_core::{Error, ErrorKind, Result};
use serde::Deserialize;

/// What a host chooses about the driver. Everything has a default; a key that is not known is refused.
///
/// ```
/// use function_gateway_local_process::LocalProcessConfig;
///
/// let config: LocalProcessConfig = serde_json::from_str(r#"{"search_path": ["/opt/functions/bin"]}"#)?;
/// assert_eq!(config, LocalProcessConfig::new().with_search_path(["/opt/functions/bin"]));
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LocalProcessConfig {
    /// The folders, all absolute, in which a program is looked up that a function names without a path and without a
    /// `PATH` of its own. `/usr/local/bin`, `/usr/bin` and `/bin` unless set; the host's `PATH` is never read.
    pub search_path: Vec<PathBuf>,
    /// How many processes the driver runs at a time, of all functions together; no limit unless set. A call beyond it
    /// is refused at once, as transient and not sent.
    pub max_processes: Option<NonZeroU32>,
}

impl Default for LocalProcessConfig {
    fn default() -> Self {
        Self { search_path: ["/usr/local/bin", "/usr/bin", "/bin"].map(PathBuf::from).to_vec(), max_processes: None }
    }
}

impl LocalProcessConfig {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the folders in which programs are looked up.
    #[must_use]
    pub fn with_search_path<I: IntoIterator<Item = P>, P: Into<PathBuf>>(mut self, folders: I) -> Self {
        self.search_path = folders.into_iter().map(Into::into).collect();
        self
    }

    /// Limits how many processes run at a time.
    #[must_use]
    pub fn with_max_processes(mut self, limit: NonZeroU32) -> Self {
        self.max_processes = Some(limit);
        self
    }

    pub(crate) fn validate(&self) -> Result<()> {
        match self.search_path.iter().find(|folder| !folder.is_absolute()) {
            Some(relative) => {
                let message = format!("search_path: {} is not an absolute path", relative.display());
                Err(Error::new(ErrorKind::InvalidArgument, message))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_does_not_exist_is_refused() {
        let error = serde_json::from_str::<LocalProcessConfig>(r#"{"max_proceses": 3}"#).unwrap_err();
        assert!(error.to_string().contains("max_processes"), "{error}");
        assert!(serde_json::from_str::<LocalProcessConfig>(r#"{"max_processes": 0}"#).is_err());
    }

    #[test]
    fn a_relative_folder_is_refused() {
        let error = LocalProcessConfig::new().with_search_path(["/bin", "bin"]).validate().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains("bin is not an absolute path"));
    }
}
