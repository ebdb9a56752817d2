//! The challenge on the CPU.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::thread;

use super::matrices::{self, Factors};
use super::{Backend, BackendError, Bytes32, Challenge};

/// As many columns of the right factor as stay in a core's cache while the rows pass by.
const BLOCK_COLUMNS: usize = 64;

/// All cores of the machine, or some.
#[derive(Debug)]
pub struct Cpu {
    threads: NonZeroUsize,
}

impl Cpu {
    /// With this many threads.
    pub fn new(threads: NonZeroUsize) -> Self {
        Self { threads }
    }
}

impl Default for Cpu {
    /// With a thread for each core that this process may use.
    fn default() -> Self {
        Self::new(thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        format!("CPU, {} threads", self.threads)
    }

    fn batch(&self) -> u32 {
        1
    }

    fn digests(&mut self, challenge: &Challenge, range: Range<u32>) -> Result<Vec<Bytes32>, BackendError> {
        range.map(|index| self.product(challenge, index).map(|c| matrices::digest(&c))).collect()
    }

    fn product(&mut self, challenge: &Challenge, index: u32) -> Result<Vec<u8>, BackendError> {
        let n = challenge.n as usize;
        let factors = Factors::generate(challenge, index);
        let (a, b) = factors.halves();
        let mut c = vec![0; challenge.product_bytes()];
        let rows = n.div_ceil(self.threads.get());
        thread::scope(|scope| {
            for (a, c) in a.chunks(rows * n).zip(c.chunks_mut(4 * rows * n)) {
                scope.spawn(move || multiply(n, a, b, c));
            }
        });
        Ok(c)
    }
}

/// Some rows of the product.
fn multiply(n: usize, a: &[u8], b: &[u8], c: &mut [u8]) {
    for (block, columns) in b.chunks(BLOCK_COLUMNS * n).enumerate() {
        for (row, out) in a.chunks_exact(n).zip(c.chunks_exact_mut(4 * n)) {
            let out = out[4 * block * BLOCK_COLUMNS..].as_chunks_mut::<4>().0;
            for (column, entry) in columns.chunks_exact(n).zip(out) {
                *entry = dot(row, column).to_le_bytes();
            }
        }
    }
}

/// Exact: 4096 terms of at most 2¹⁴ stay below 2³¹.
fn dot(row: &[u8], column: &[u8]) -> i32 {
    let product = |(a, b): (&u8, &u8)| i32::from(a.cast_signed()) * i32::from(b.cast_signed());
    row.iter().zip(column).map(product).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_does_not_depend_on_the_threads() {
        let challenge = Challenge { seed: Bytes32([9; 32]), n: 128, products: 1 };
        let product = |threads| Cpu::new(NonZeroUsize::new(threads).unwrap()).product(&challenge, 0).unwrap();
        let one = product(1);
        assert!(one == product(3) && one == product(200));
        let factors = Factors::generate(&challenge, 0);
        let (a, b) = factors.halves();
        for (i, j) in [(0, 0), (5, 127), (127, 64)] {
            let expected = dot(&a[i * 128..][..128], &b[j * 128..][..128]);
            let at = 4 * (i * 128 + j);
            assert_eq!(one[at..at + 4], expected.to_le_bytes());
        }
    }
}
