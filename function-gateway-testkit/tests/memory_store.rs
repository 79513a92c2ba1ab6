//! The in-memory store keeps what stores promise.

use function_gateway_core::GatewayId;
use function_gateway_core::store::memory::MemoryStore;

async fn open() -> MemoryStore {
    MemoryStore::new(GatewayId::generate())
}

function_gateway_testkit::function_store_conformance!(open());
function_gateway_testkit::invocation_store_conformance!(open());
function_gateway_testkit::audit_log_conformance!(open());
function_gateway_testkit::api_key_store_conformance!(open());
function_gateway_testkit::document_store_conformance!(open());

mod queue {
    function_gateway_testkit::invocation_queue_conformance!(crate::open());
}
