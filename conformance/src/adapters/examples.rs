//! The example daemons, one of each: what people copy is what is tested.

#[path = "../../../handoff-blocking/examples/kv.rs"]
pub mod blocking;
#[path = "../../../handoff-smol/examples/kv.rs"]
pub mod smol;
#[path = "../../../handoff-tokio/examples/kv.rs"]
pub mod tokio;
