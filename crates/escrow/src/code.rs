//! The contract's code: what is deployed, and how a deployed contract is known to be it.

use std::sync::LazyLock;

use serde::Deserialize;

use crate::abi::ZORAIComputeEscrow;

/// The committed file, whose ABI and creation code the bindings carry; the places of the immutables are read here.
const COMMITTED: &str = include_str!("../../../contracts/abi/ZORAIComputeEscrow.json");

#[derive(Deserialize)]
struct Committed {
    immutables: Vec<Immutable>,
}

/// A place that the constructor fills.
#[derive(Deserialize)]
struct Immutable {
    start: usize,
    length: usize,
}

static IMMUTABLES: LazyLock<Vec<Immutable>> = LazyLock::new(|| {
    serde_json::from_str::<Committed>(COMMITTED).expect("the committed file is checked by a test").immutables
});

/// Whether deployed code is the escrow's, whatever its constructor was given.
pub(crate) fn is_escrow(found: &[u8]) -> bool {
    let expected = &ZORAIComputeEscrow::DEPLOYED_BYTECODE;
    let mut found = found.to_vec();
    for place in IMMUTABLES.iter() {
        if let Some(bytes) = found.get_mut(place.start..place.start + place.length) {
            bytes.fill(0);
        }
    }
    found == expected.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_known_but_for_its_immutables() {
        let mut code = ZORAIComputeEscrow::DEPLOYED_BYTECODE.to_vec();
        assert!(!IMMUTABLES.is_empty());
        let place = IMMUTABLES[0].start;
        code[place] = 7;
        assert!(is_escrow(&code));
        code[place - 1] ^= 1;
        assert!(!is_escrow(&code));
        assert!(!is_escrow(&[]));
        assert!(!is_escrow(&code[..place + 1]));
    }
}
