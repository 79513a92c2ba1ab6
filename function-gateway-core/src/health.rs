//! Whether a gateway can do its work.

use crate::{FunctionId, Gateway, InvocationId, Result, TenantId};

impl Gateway {
    /// Says whether work that comes in now can be done: the gateway is not shutting down, and its stores answer. Engines are not
    /// asked, since one that is down is no reason to send the calls for others elsewhere.
    ///
    /// # Errors
    /// [`ErrorKind::ShuttingDown`](crate::ErrorKind::ShuttingDown); what reading from a store gives.
    ///
    /// # Cancel safety
    /// Cancel-safe: it only reads.
    pub async fn ready(&self) -> Result<()> {
        let host = &self.host;
        host.lifetime.check_open()?;
        host.functions.find(FunctionId::generate()).await?;
        host.invocations.get(&TenantId::new("readiness")?, InvocationId::generate()).await?;
        Ok(())
    }
}
