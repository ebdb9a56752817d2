//! SQLite does what every store must do.

use std::sync::Arc;

use store::Sqlite;

macro_rules! conforms {
    ($($case:ident)*) => {$(
        #[tokio::test]
        async fn $case() {
            let dir = tempfile::tempdir().unwrap();
            let store = Sqlite::open(dir.path()).await.unwrap();
            crate::conformance::$case(Arc::new(store)).await;
        }
    )*};
}

conforms! {
    a_publication_counts_once
    an_unknown_task_is_none
    of_two_commits_on_one_version_one_wins
    events_must_lead_to_the_record
    histories_keep_their_order_and_each_status
    events_are_found_by_sequence_task_and_requester
    listings_filter_by_any_combination
    pages_neither_repeat_nor_skip_while_tasks_are_added
    open_and_held_tasks_come_oldest_first
    counts_follow_the_commits
    due_tasks_come_most_overdue_first
    the_host_stays_with_its_attempt
    generations_count_each_hosts_sessions
    a_relay_ends_the_sessions_that_it_left_open
    only_a_newer_host_status_counts
    the_first_word_on_an_artifact_stays
    secrets_are_made_once
    a_closed_store_refuses
}
