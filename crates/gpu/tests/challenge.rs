//! The capability challenge between a prover and a verifier that trust each other in nothing.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::num::NonZeroUsize;
use std::ops::Range;
use std::time::Duration;

use gpu::challenge::{
    Audit, Backend, BackendError, Bytes32, Challenge, Commitment, Cpu, Terms, Verdict, Verifier, VerifyError,
    commit, open,
};

const TERMS: Terms = Terms { n: 128, products: 4, openings: 2, error_bits: 60 };
const MINUTE: Duration = Duration::from_secs(60);

fn cpu() -> Cpu {
    Cpu::new(NonZeroUsize::new(2).unwrap())
}

fn start(entropy: u8) -> (Verifier, Challenge) {
    Verifier::start(&TERMS, [entropy; 32]).unwrap()
}

fn audit(entropy: u8) -> (Audit, Challenge) {
    let (verifier, challenge) = start(entropy);
    let commitment = commit(&mut cpu(), &challenge, MINUTE).unwrap();
    (verifier.commitment(commitment, Duration::from_millis(100)).unwrap(), challenge)
}

#[test]
fn an_honest_prover_passes_with_the_verifiers_time() {
    let (mut audit, challenge) = audit(1);
    let wanted: Vec<u32> = audit.wanted().collect();
    assert_eq!(wanted.len(), 2);
    assert_eq!(audit.check(&open(&mut cpu(), &challenge, wanted[0]).unwrap()), Ok(None));
    assert_eq!(audit.wanted().collect::<Vec<_>>(), wanted[1..]);
    let verdict = audit.check(&open(&mut cpu(), &challenge, wanted[1]).unwrap()).unwrap().unwrap();
    let multiply_adds = 4 * 128_u64.pow(3);
    let expected =
        Verdict { multiply_adds, elapsed_us: 100_000, multiply_adds_per_second: 10 * multiply_adds };
    assert_eq!(verdict, expected);
}

#[test]
fn challenges_and_openings_differ_and_all_products_get_their_turn() {
    let (_, first) = start(1);
    let (_, second) = start(2);
    assert_ne!(first.seed, second.seed);
    let commitment = Commitment { digests: vec![Bytes32([0; 32]); 4], elapsed_us: 0 };
    let mut seen = [false; 4];
    for entropy in 0..64 {
        let audit = start(entropy).0.commitment(commitment.clone(), MINUTE).unwrap();
        audit.wanted().for_each(|index| seen[index as usize] = true);
    }
    assert_eq!(seen, [true; 4]);
}

#[test]
fn what_was_not_promised_is_refused() {
    let (mut audit, challenge) = audit(3);
    let index = audit.wanted().next().unwrap();
    let right = open(&mut cpu(), &challenge, index).unwrap();
    let mut flipped = right.clone();
    flipped[1000] ^= 1;
    assert_eq!(audit.check(&flipped), Err(VerifyError::NotCommitted { index }));
    let expected = 4 * 128 * 128;
    let short = audit.check(&right[..right.len() - 4]);
    assert_eq!(short, Err(VerifyError::Length { index, got: expected - 4, expected }));
    assert_eq!(audit.check(&[]), Err(VerifyError::Length { index, got: 0, expected }));
    let other = (0..4).find(|other| *other != index).unwrap();
    let other = open(&mut cpu(), &challenge, other).unwrap();
    assert_eq!(audit.check(&other), Err(VerifyError::NotCommitted { index }));
    assert_eq!(audit.check(&right), Ok(None));
}

/// Gets one entry of every product wrong by one.
struct Lazy;

impl Backend for Lazy {
    fn name(&self) -> String {
        "lazy".into()
    }

    fn batch(&self) -> u32 {
        3
    }

    fn digests(&mut self, challenge: &Challenge, range: Range<u32>) -> Result<Vec<Bytes32>, BackendError> {
        // The digest of the wrong product, by the definition in the docs.
        range.map(|index| Ok(Bytes32(sha(&pieces(&pieces(&self.product(challenge, index)?)))))).collect()
    }

    fn product(&mut self, challenge: &Challenge, index: u32) -> Result<Vec<u8>, BackendError> {
        let mut product = cpu().product(challenge, index)?;
        product[4 * 77] ^= 1;
        Ok(product)
    }
}

fn sha(bytes: &[u8]) -> [u8; 32] {
    <sha2::Sha256 as sha2::Digest>::digest(bytes).into()
}

fn pieces(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(1024).flat_map(sha).collect()
}

#[test]
fn a_wrong_product_is_found_though_it_was_promised() {
    let (verifier, challenge) = start(4);
    let commitment = commit(&mut Lazy, &challenge, MINUTE).unwrap();
    let mut audit = verifier.commitment(commitment, MINUTE).unwrap();
    let index = audit.wanted().next().unwrap();
    let wrong = open(&mut Lazy, &challenge, index).unwrap();
    assert_eq!(audit.check(&wrong), Err(VerifyError::Wrong { index }));
    let again = audit.check(&wrong).unwrap_err();
    assert_eq!(again.code(), "challenge_wrong_product");
}

#[test]
fn a_commitment_needs_a_digest_for_each_product() {
    for got in [0, 3, 5] {
        let commitment = Commitment { digests: vec![Bytes32([0; 32]); got], elapsed_us: 0 };
        let refused = start(5).0.commitment(commitment, MINUTE).err();
        assert_eq!(refused, Some(VerifyError::Digests { got, products: 4 }));
    }
}

#[test]
fn terms_and_challenges_outside_the_limits_are_refused() {
    let refused = |terms: Terms| Verifier::start(&terms, [0; 32]).err().map(|error| error.code());
    assert_eq!(refused(Terms { n: 100, ..TERMS }), Some("challenge_size"));
    assert_eq!(refused(Terms { products: 0, ..TERMS }), Some("challenge_products"));
    assert_eq!(refused(Terms { openings: 0, ..TERMS }), Some("challenge_openings"));
    assert_eq!(refused(Terms { openings: 5, ..TERMS }), Some("challenge_openings"));
    assert_eq!(refused(Terms { error_bits: 0, ..TERMS }), Some("challenge_error_bits"));
    assert_eq!(refused(Terms { error_bits: 301, ..TERMS }), Some("challenge_error_bits"));
    assert_eq!(refused(Terms::default()), None);
    let hostile = Challenge { seed: Bytes32([0; 32]), n: u32::MAX, products: u32::MAX };
    assert_eq!(commit(&mut cpu(), &hostile, MINUTE).unwrap_err().code(), "challenge_size");
    assert_eq!(open(&mut cpu(), &hostile, 0).unwrap_err().code(), "challenge_size");
    let (_, challenge) = start(6);
    assert_eq!(open(&mut cpu(), &challenge, 4).unwrap_err().code(), "challenge_no_such_product");
}

#[test]
fn a_prover_that_is_too_slow_gives_up() {
    let challenge = Challenge { products: 20, ..start(7).1 };
    let error = commit(&mut cpu(), &challenge, Duration::ZERO).unwrap_err();
    assert_eq!(error.code(), "challenge_too_slow");
}
