//! The drivers of one gateway, by name. A value, not a global: a process may hold several gateways.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{DriverName, Error, ErrorKind, FaasDriver, Result};

/// The drivers of one gateway, by the names under which specifications refer to them.
#[derive(Debug, Clone, Default)]
pub struct DriverRegistry(BTreeMap<DriverName, Arc<dyn FaasDriver>>);

impl DriverRegistry {
    /// A registry without a driver.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a driver.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] where the name is taken.
    pub fn register(&mut self, name: DriverName, driver: Arc<dyn FaasDriver>) -> Result<()> {
        if self.0.contains_key(&name) {
            let message = format!("a driver is registered as {name:?} already");
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
        self.0.insert(name, driver);
        Ok(())
    }

    /// The driver of a name.
    #[must_use]
    pub fn get(&self, name: &DriverName) -> Option<&Arc<dyn FaasDriver>> {
        self.0.get(name)
    }

    /// The driver of a name that a stored function refers to.
    ///
    /// # Errors
    /// [`ErrorKind::Misconfigured`], with the names that there are.
    pub fn require(&self, name: &DriverName) -> Result<&Arc<dyn FaasDriver>> {
        self.get(name).ok_or_else(|| {
            let message = format!("no driver is registered as {name:?}; there are: {}", self.names());
            Error::new(ErrorKind::Misconfigured, message)
        })
    }

    /// Every driver with its name, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&DriverName, &Arc<dyn FaasDriver>)> {
        self.0.iter()
    }

    /// The names, for messages.
    #[must_use]
    pub fn names(&self) -> String {
        if self.0.is_empty() {
            return "none".to_owned();
        }
        self.0.keys().map(DriverName::as_str).collect::<Vec<_>>().join(", ")
    }
}
