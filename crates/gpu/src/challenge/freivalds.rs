//! Freivalds' check of a matrix product over the prime field of 2⁶¹ − 1.

use chacha20::rand_core::Rng;

/// A Mersenne prime.
const P: i128 = (1 << 61) - 1;
/// What one vector leaves of a wrong product's chance is below 2 to the minus this.
pub(crate) const BITS_PER_VECTOR: u32 = 60;

/// Whether `c` (little-endian 32-bit integers, row by row) is the product of `a` (row by row) and `b` (column by column),
/// both signed bytes. A wrong one passes with a probability of at most 2⁻⁶⁰ per vector. All must be `n × n`.
pub(crate) fn is_product(
    n: usize,
    a: &[u8],
    b: &[u8],
    c: &[u8],
    vectors: u32,
    random: &mut impl Rng,
) -> bool {
    (0..vectors).all(|_| {
        let r: Vec<i128> = (0..n).map(|_| element(random)).collect();
        let br = times_columns(n, b, &r);
        let left = a.chunks_exact(n).map(|row| dot(row.iter().map(|byte| signed(*byte)), &br));
        let right = c.chunks_exact(4 * n).map(|row| dot(integers(row), &r));
        left.eq(right)
    })
}

/// A uniform element of the field.
fn element(random: &mut impl Rng) -> i128 {
    loop {
        let drawn = i128::from(random.next_u64() >> 3);
        if drawn < P {
            return drawn;
        }
    }
}

/// `b × r` where `b` is stored column by column. A sum of 4096 terms below 2⁷ · 2⁶¹ fits with ease.
fn times_columns(n: usize, b: &[u8], r: &[i128]) -> Vec<i128> {
    let mut sums = vec![0_i128; n];
    for (column, factor) in b.chunks_exact(n).zip(r) {
        for (sum, byte) in sums.iter_mut().zip(column) {
            *sum += signed(*byte) * factor;
        }
    }
    sums.into_iter().map(|sum| sum.rem_euclid(P)).collect()
}

fn dot(row: impl Iterator<Item = i128>, vector: &[i128]) -> i128 {
    row.zip(vector).map(|(entry, factor)| entry * factor).sum::<i128>().rem_euclid(P)
}

fn integers(row: &[u8]) -> impl Iterator<Item = i128> {
    row.as_chunks::<4>().0.iter().map(|bytes| i128::from(i32::from_le_bytes(*bytes)))
}

fn signed(byte: u8) -> i128 {
    i128::from(byte.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use chacha20::ChaCha8Rng;
    use chacha20::rand_core::SeedableRng;

    fn bytes(entries: &[i32]) -> Vec<u8> {
        entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
    }

    fn check(c: &[i32]) -> bool {
        // [[1, -2], [127, -128]] × [[3, -128], [4, 5]], the second column by column.
        let (a, b) = ([1, 254, 127, 128], [3, 4, 128, 5]);
        is_product(2, &a, &b, &bytes(c), 2, &mut ChaCha8Rng::from_seed([1; 32]))
    }

    #[test]
    fn a_product_is_told_from_all_that_are_nearly_one() {
        let right = [-5, -138, -131, -16_896];
        assert!(check(&right));
        for place in 0..4 {
            for error in [1, -1, i32::MIN, 1 << 20] {
                let mut wrong = right;
                wrong[place] = wrong[place].wrapping_add(error);
                assert!(!check(&wrong), "{place} {error}");
            }
        }
        let mut swapped = right;
        swapped.swap(1, 2);
        assert!(!check(&swapped));
    }
}
