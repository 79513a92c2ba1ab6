//! Whether the gateway can do its work, asked of it at most once a second however many ask here.

use std::time::{Duration, Instant};

use function_gateway_core::{Error, ErrorKind, Gateway, Result};
use tokio::sync::Mutex;

const FOR: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(crate) struct Readiness(Mutex<Option<(Instant, Result<()>)>>);

impl Readiness {
    pub(crate) async fn of(&self, gateway: &Gateway) -> Result<()> {
        let mut last = self.0.lock().await;
        if let Some((at, result)) = &*last
            && at.elapsed() < FOR
        {
            return result.clone();
        }
        let result = tokio::time::timeout(LIMIT, gateway.ready()).await.unwrap_or_else(|_| {
            let message = format!("the store did not answer within {} s", LIMIT.as_secs());
            Err(Error::new(ErrorKind::Store, message))
        });
        *last = Some((Instant::now(), result.clone()));
        result
    }
}
