//! What every [`Store`](store::Store) must do. Each case gets an empty one.

pub(crate) mod artifacts;
pub(crate) mod calls;
pub(crate) mod chain;
pub(crate) mod sessions;
pub(crate) mod tasks;

/// Hands all cases to a macro that makes a test of each.
macro_rules! each_case {
    ($conforms:ident) => {
        $conforms! {
            tasks::a_publication_counts_once
            tasks::of_publications_at_once_each_task_counts_once
            tasks::an_unknown_task_is_none
            tasks::of_two_commits_on_one_version_one_wins
            tasks::events_must_lead_to_the_record
            tasks::histories_keep_their_order_and_each_status
            tasks::events_are_found_by_sequence_task_and_requester
            tasks::a_follower_is_woken
            tasks::listings_filter_by_any_combination
            tasks::pages_neither_repeat_nor_skip_while_tasks_are_added
            tasks::open_and_held_tasks_come_oldest_first
            tasks::counts_follow_the_commits
            tasks::due_tasks_come_most_overdue_first
            tasks::the_host_stays_with_its_attempt
            tasks::a_closed_store_refuses
            sessions::generations_count_each_hosts_sessions
            sessions::a_relay_ends_the_sessions_that_it_left_open
            sessions::sessions_of_a_killed_relay_ended_when_it_lived_last
            sessions::sessions_of_silent_relays_ended_when_they_lived_last
            sessions::metadata_is_refreshed_while_a_session_lasts
            sessions::reports_find_the_sessions_of_a_time
            sessions::old_sessions_are_removed_and_open_ones_never
            sessions::commits_keep_attempts_and_how_they_end
            sessions::each_attempt_at_a_task_is_kept
            sessions::an_attempt_that_is_taken_once_more_lasts_again
            sessions::only_a_newer_host_status_counts
            sessions::secrets_are_made_once
            artifacts::the_first_word_on_an_artifact_stays
            artifacts::an_owner_stores_no_more_than_its_quota
            artifacts::uploads_at_once_do_not_pass_the_quota_together
            artifacts::what_is_unused_can_be_doomed_and_forgotten
            artifacts::what_was_left_doomed_is_taken_over
            artifacts::unfinished_tasks_come_in_portions
            chain::the_cursor_and_its_facts_are_kept_together
            chain::facts_wait_for_their_tasks
            calls::keys_are_kept_listed_and_revoked
            calls::use_adds_up_by_key_and_day
            calls::receipts_are_found_and_add_up_by_model
            calls::old_receipts_are_forgotten_and_their_use_is_not
            calls::a_request_is_carried_out_once
            calls::a_lost_request_may_begin_again
            calls::a_request_that_goes_on_keeps_its_mark
            calls::webhooks_walk_their_tasks_history
            calls::a_delivery_is_one_callers_until_it_lapses
            calls::a_failing_webhook_is_given_up_and_replayed
        }
    };
}
pub(crate) use each_case;
