//! Tasks that are paid in a token: funded by an allowance of the contract or by a signature at Permit2, disputed, and decided.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]
#![expect(clippy::print_stderr, reason = "a skipped test says why")]

mod market;
mod payment;
mod verdict;
