//! What property tests draw from. Seeds are fixed: a run is the same everywhere.
#![allow(dead_code, reason = "shared by several test binaries, none of which uses all of it")]

use handoff_core::{Capabilities, HandoffId, Message, Side};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// A fixed seed, and no file that remembers failures: what failed once becomes a test of its own.
pub(crate) fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(0x0068_616e_646f_6666),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

pub(crate) fn id() -> impl Strategy<Value = HandoffId> {
    any::<[u8; 16]>().prop_map(HandoffId::from_random_bytes)
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Incumbent), Just(Side::Successor)]
}

/// Any number, small ones and the ends of each varint's length among them.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..4_u64,
        any::<u64>(),
        (0..10_u32, 0..3_u64).prop_map(|(sevens, more)| (1_u64 << (7 * sevens)) - 1 + more),
        Just(u64::MAX),
    ]
}

fn text() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..20).prop_map(String::from_iter)
}

/// Any message of W3, all of them equally often.
pub(crate) fn message() -> impl Strategy<Value = Message> {
    let hello =
        (side(), any::<u32>(), vec(any::<u8>(), 0..40), any::<u16>(), any::<u16>(), any::<u64>());
    let prepare = (id(), any::<u32>(), number(), number());
    let ready = (id(), vec(text(), 0..4), any::<bool>(), vec(number(), 0..20));
    prop_oneof![
        hello.prop_map(|(role, pid, build_id, proto_min, proto_max, reserved)| {
            Message::Hello {
                role,
                pid,
                build_id,
                proto_min,
                proto_max,
                capabilities: Capabilities { reserved },
            }
        }),
        (any::<u16>(), id()).prop_map(|(proto_version_chosen, handoff_id)| Message::HelloAck {
            proto_version_chosen,
            handoff_id
        }),
        prepare.prop_map(|(handoff_id, successor_pid, deadline_ms, drain_grace_ms)| {
            Message::PrepareHandoff { handoff_id, successor_pid, deadline_ms, drain_grace_ms }
        }),
        (any::<u32>(), any::<bool>()).prop_map(|(open_conns_remaining, accept_closed)| {
            Message::Drained { open_conns_remaining, accept_closed }
        }),
        id().prop_map(|handoff_id| Message::SealRequest { handoff_id }),
        (any::<u32>(), any::<u32>(), number()).prop_map(
            |(shards_sealed, shards_total, last_revision)| Message::SealProgress {
                shards_sealed,
                shards_total,
                last_revision
            }
        ),
        (id(), vec(number(), 0..20), any::<[u8; 32]>()).prop_map(
            |(handoff_id, last_revision_per_shard, data_dir_fingerprint)| Message::SealComplete {
                handoff_id,
                last_revision_per_shard,
                data_dir_fingerprint
            }
        ),
        (id(), text(), text()).prop_map(|(handoff_id, error, partial_state)| {
            Message::SealFailed { handoff_id, error, partial_state }
        }),
        id().prop_map(|handoff_id| Message::Begin { handoff_id }),
        ready.prop_map(|(handoff_id, listening_on, healthz_ok, revisions)| {
            Message::Ready {
                handoff_id,
                listening_on,
                healthz_ok,
                advertised_revision_per_shard: revisions,
            }
        }),
        id().prop_map(|handoff_id| Message::Commit { handoff_id }),
        (id(), text()).prop_map(|(handoff_id, reason)| Message::Abort { handoff_id, reason }),
        id().prop_map(|handoff_id| Message::ResumeAfterAbort { handoff_id }),
        number().prop_map(|ts_ms| Message::Heartbeat { ts_ms }),
    ]
}
