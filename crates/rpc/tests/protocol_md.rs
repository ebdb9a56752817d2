//! `docs/protocol.md` names every code that a program can meet, where it belongs.

use rpc::error::ErrorCode;
use rpc::failure::{self, Blame};

const PROTOCOL: &str = include_str!("../../../docs/protocol.md");

/// The codes in the table's row that begins with these cells.
fn row(first_cell: &str) -> Vec<&'static str> {
    let begin = format!("| {first_cell} |");
    let line = PROTOCOL.lines().find(|line| line.starts_with(&begin));
    let line = line.unwrap_or_else(|| panic!("the protocol has no row `{begin}`"));
    line[begin.len()..].split('`').skip(1).step_by(2).filter(|word| !word.contains('-')).collect()
}

#[test]
fn every_error_stands_at_its_status() {
    let mut statuses: Vec<u16> = ErrorCode::ALL.iter().map(|code| code.http_status()).collect();
    statuses.sort_unstable();
    statuses.dedup();
    for status in statuses {
        let known = ErrorCode::ALL.iter().filter(|code| code.http_status() == status);
        let known: Vec<_> = known.map(|code| code.as_str()).collect();
        assert_eq!(row(&status.to_string()), known, "{status}");
    }
}

#[test]
fn every_failure_stands_with_whose_making_it_is() {
    let rows = [
        ("the requester's", Blame::Requester),
        ("the provider's", Blame::Provider),
        ("nobody's for certain", Blame::Neither),
    ];
    let mut told = 0;
    for (name, blame) in rows {
        for code in row(name) {
            assert!(failure::is_known(code), "{code} is not a failure code");
            assert_eq!(failure::blame(code), blame, "{code}");
            told += 1;
        }
    }
    assert_eq!(told, failure::codes().count(), "the protocol lists every code once");
}
