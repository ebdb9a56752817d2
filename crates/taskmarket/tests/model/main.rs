//! The domain against a reference model: whatever is said, in whatever order, the crate does what the documents say. Settled tasks have a
//! test of their own.
//!
//! Random sequences of right, wrong, late, repeated and forged messages, of time passing and of releases are
//! driven through the crate and through [`reference::Model`], and compared after every step. The history that results must
//! replay to the same record; a falsified one must be refused, or be a lawful history as well.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]
#![expect(clippy::wildcard_enum_match_arm, reason = "what a test does not name, it does not mean")]

mod actors;
mod history;
mod reference;
mod steps;
mod world;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_crate_does_what_the_model_says(
        shape in steps::shapes(),
        sequence in steps::sequences(),
        tampers in steps::tampers(),
    ) {
        let mut world = world::World::new(&shape);
        for step in &sequence {
            world.take(step);
        }
        history::check_replay(&world);
        for (tamper, index, renumber) in &tampers {
            history::check_tampered(&world, tamper, *index, *renumber);
        }
        world.finish();
        history::check_replay(&world);
    }
}
