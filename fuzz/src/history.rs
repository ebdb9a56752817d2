//! Histories of tasks, as somebody else wrote them.

use rpc::evidence::{Evidence, verify};
use taskmarket::{Recorded, TaskRecord, Timestamp, Word, elapse, next_due, replay};

use crate::{Outcome, again, read};

/// The JSON of a task's events. Where they replay, they do so after a round trip too, and so do all of them but the last.
pub fn history(data: &[u8]) -> Outcome {
    let Some(history) = read::<Vec<Recorded>>(data) else { return Outcome::Refused };
    let Ok(record) = replay(&history) else {
        assert!(replay(&again(&history)).is_err(), "a history became right on its way");
        return Outcome::Refused;
    };
    check(&history, &record);
    Outcome::Taken
}

/// The JSON of a task's evidence. Where it holds, its history replays and its report is the same after a round trip.
pub fn evidence(data: &[u8]) -> Outcome {
    let Some(evidence) = read::<Evidence>(data) else { return Outcome::Refused };
    let Ok(report) = verify(&evidence) else {
        assert!(verify(&again(&evidence)).is_err(), "evidence became right on its way");
        return Outcome::Refused;
    };
    assert_eq!(verify(&again(&evidence)).expect("it held before"), report);
    assert_eq!(again(&report), report);
    assert_eq!(report.task_id, evidence.task_id);
    assert_eq!(report.status, evidence.status);
    Outcome::Taken
}

/// Asserts what holds of a history that comes to `record`.
pub(crate) fn check(history: &[Recorded], record: &TaskRecord) {
    assert_eq!(&replay(history).expect("it replays"), record);
    assert_eq!(&replay(&again(&history.to_vec())).expect("it replayed before"), record);
    assert_eq!(&again(record), record);
    // One event less is enough: every shorter beginning is a history of its own to whoever feeds this.
    if let [beginning @ .., last] = history
        && !beginning.is_empty()
    {
        let earlier = replay(beginning).expect("a beginning of a history is one");
        assert_eq!(earlier.version + 1, record.version);
        // Money moves after work has ended; nothing else happens.
        assert!(
            !earlier.status().is_final() || last.event.word() == Word::Chain,
            "work went on after its end"
        );
    }
    match next_due(record) {
        Some(due) => {
            assert!(elapse(record, due).is_some(), "nothing is due when something should be");
            let before = Timestamp::from_unix(due.unix().saturating_sub(1));
            assert!(before == due || elapse(record, before).is_none(), "due before its time");
        }
        None => assert!(elapse(record, Timestamp::MAX).is_none(), "due, though nothing is"),
    }
}
